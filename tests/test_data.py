"""The data sets: what is in them, and that nothing of the test part leaks."""

import pickle
import re
import sys
import types

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits

from jopt import data


def test_digits_have_a_fixed_stratified_split():
    split, again = data.digits(), data.digits()
    assert [a.shape for a in split] == [(1437, 8, 8), (1437,), (360, 8, 8), (360,)]
    assert [a.dtype for a in split] == [np.float32, np.int32, np.float32, np.int32]
    for a, b in zip(split, again, strict=True):
        np.testing.assert_array_equal(a, b)
    shares = [np.bincount(y) / len(y) for y in (split.train_y, split.test_y)]
    np.testing.assert_allclose(*shares, atol=0.003)


def test_digits_are_scaled_by_the_training_part_alone():
    split = data.digits()
    assert split.train_x.mean() == pytest.approx(0, abs=1e-6)
    assert split.train_x.std() == pytest.approx(1, abs=1e-6)
    assert abs(split.test_x.mean()) > 1e-4  # it would be 0 if it had been scaled by itself


def test_every_digit_is_in_one_part():
    split = data.digits()
    both = np.concatenate([split.train_x, split.test_x])
    raw = load_digits().images
    scale = (raw.max() - raw.min()) / (both.max() - both.min())
    restored = np.rint((both - both.min()) * scale).astype(int)
    assert sorted(map(bytes, restored)) == sorted(map(bytes, raw.astype(int)))


def test_text_is_english_and_long():
    text = data.english_text()
    assert len(text.train) > 250_000
    assert len(text.test) == pytest.approx(0.1 * (len(text.train) + len(text.test)), abs=1)
    words = "".join(text.vocabulary[i] for i in text.train[:100_000]).split()
    assert sum(word in ("the", "of", "a", "is", "to", "and") for word in words) > 0.1 * len(words)


def test_vocabulary_is_sorted_and_every_symbol_occurs():
    text = data.english_text()
    assert list(text.vocabulary) == sorted(set(text.vocabulary))
    used = np.unique(np.concatenate([text.train, text.test]))
    np.testing.assert_array_equal(used, np.arange(len(text.vocabulary)))


def test_no_paragraph_of_the_test_text_is_in_the_training_text():
    text = data.english_text()
    train, test = ("".join(text.vocabulary[i] for i in ids) for ids in (text.train, text.test))
    paragraphs = {" ".join(p.split()) for p in re.split(r"\n\s*\n", train)}
    # The cut goes through a paragraph: its second half is no whole paragraph.
    assert not paragraphs & {" ".join(p.split()) for p in re.split(r"\n\s*\n", test)[1:-1]}


def test_windows_pair_each_character_with_the_next():
    x, y = data.windows(np.arange(10), 3)
    np.testing.assert_array_equal(x, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    np.testing.assert_array_equal(y, x + 1)


@pytest.mark.parametrize("length", [0, 10])
def test_windows_of_an_impossible_length_are_an_error(length):
    with pytest.raises(ValueError, match=rf"length={length} .*10 characters.*from 1 to 9"):
        data.windows(np.arange(10), length)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_that_leaves_nothing_is_an_error(share):
    with pytest.raises(ValueError, match=r"test_share=.*\(0, 1\)"):
        data.english_text(share)


def test_missing_sources_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "jopt\[data\]"'):
        data.digits()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", types.ModuleType("pydoc_data.topics"))
    with pytest.raises(ImportError, match=r"pydoc_data.topics.*standard library"):
        data.english_text()


TABLES = {"breast_cancer": (569, 30, 2), "wine": (178, 13, 3), "iris": (150, 4, 3)}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_split_by_class_and_scaled_by_the_training_part(name):
    examples, features, classes = TABLES[name]
    split = getattr(data, name)()
    assert split.name == name
    assert len(split.train_y) + len(split.test_y) == examples
    assert len(split.test_y) == pytest.approx(0.2 * examples, abs=1)
    assert split.train_x.shape[1:] == split.test_x.shape[1:] == (features,)
    assert [a.dtype for a in split] == [np.float32, np.int32, np.float32, np.int32]
    counts = [np.bincount(y, minlength=classes) for y in (split.train_y, split.test_y)]
    np.testing.assert_allclose(counts[1], 0.2 * (counts[0] + counts[1]), atol=1)
    np.testing.assert_allclose(split.train_x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(split.train_x.std(0), 1, atol=1e-5)
    assert np.abs(split.test_x.mean(0)).max() > 0.01


def test_diabetes_is_a_regression_in_deviations():
    split = data.diabetes()
    assert [a.shape for a in split] == [(354, 10), (354,), (88, 10), (88,)]
    assert {a.dtype for a in split} == {np.dtype(np.float32)}
    assert split.train_y.mean() == pytest.approx(0, abs=1e-5)
    assert split.train_y.std() == pytest.approx(1, abs=1e-5)
    slope, *_ = np.linalg.lstsq(split.train_x, split.train_y)
    error = np.mean((split.test_x @ slope - split.test_y) ** 2)
    assert error < 0.8 * split.test_y.var()  # it can be learned


def test_photo_patches_are_the_photos_again():
    pytest.importorskip("PIL")
    from sklearn.datasets import load_sample_image

    split = data.photo_patches(16)
    assert split.train_x.shape[1:] == (16, 16, 3)
    assert split.train_x.dtype == np.float32
    china, flower = (load_sample_image(name).astype(np.float32) / 255 for name in ("china.jpg", "flower.jpg"))
    np.testing.assert_array_equal(split.train_x[0], china[:16, :16])
    np.testing.assert_array_equal(split.train_x[split.train_y == 1][1], flower[:16, 16:32])
    np.testing.assert_array_equal(split.test_x[0], china[:16, 32 * 16 : 33 * 16])
    np.testing.assert_array_equal(np.bincount(split.train_y), [26 * 32] * 2)
    np.testing.assert_array_equal(np.bincount(split.test_y), [26 * 8] * 2)


@pytest.mark.parametrize("size", [0, 321])
def test_patches_of_an_impossible_size_are_an_error(size):
    with pytest.raises(ValueError, match=rf"size={size} .*1 to 320"):
        data.photo_patches(size)


def test_missing_pillow_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'Pillow.*pip install "jopt\[data\]"'):
        data.photo_patches()


def test_a_split_is_a_tuple_with_a_name():
    split = data.iris()
    train_x, *_, test_y = split
    assert train_x is split.train_x
    assert test_y is split.test_y
    again = pickle.loads(pickle.dumps(split))
    assert again.name == "iris"
    assert type(jax.tree.map(np.asarray, split)) is data.Split
