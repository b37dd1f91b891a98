"""Splits, class weights, balanced orders and scaling: the laws they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jopt import data

KEY = jax.random.key(0)
SHARES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(lambda parts: [p / sum(parts) for p in parts])
LABELS = st.lists(st.integers(12, 60), min_size=1, max_size=5)


def labels_of(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.RandomState(0).permutation(labels)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(40, 500), shares=SHARES, seed=st.integers(0, 9))
def test_a_random_split_uses_every_example_once(n, shares, seed):
    parts = data.random_split(n, shares, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - n * share) < 1
    for part, again in zip(parts, data.random_split(n, shares, seed), strict=True):
        np.testing.assert_array_equal(part, again)


@settings(max_examples=100, deadline=None)
@given(counts=LABELS, shares=SHARES, seed=st.integers(0, 9))
def test_a_stratified_split_keeps_the_shares_of_the_classes(counts, shares, seed):
    labels = labels_of(counts)
    n = len(labels)
    if min(int(n * share) for share in shares) < len(counts):
        return  # a part with fewer examples than classes is an error, tested below
    parts = data.stratified_split(labels, shares, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - n * share) < 1
        found = np.bincount(labels[part], minlength=len(counts))
        assert found.min() >= 1
        np.testing.assert_allclose(found, np.array(counts) * share, atol=2)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(5, 20), min_size=1, max_size=3), rare=st.integers(3, 5))
def test_sizes_are_exact_and_a_rare_class_is_in_every_part(sizes, rare):
    labels = labels_of([rare, 60, 40])
    parts = data.stratified_split(labels, sizes, seed=1)
    assert [len(part) for part in parts] == sizes
    assert all(set(labels[part]) == {0, 1, 2} for part in parts)
    everything = np.concatenate(parts)
    assert len(set(everything)) == len(everything)


def test_a_seed_gives_one_split_and_another_seed_another():
    labels = labels_of([30, 50])
    first, again, other = (data.stratified_split(labels, (0.5, 0.5), seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert set(first[0]) != set(other[0])
    # The stream of the old generator is frozen; a split made today is the split of tomorrow.
    np.testing.assert_array_equal(data.random_split(6, (3, 3))[0], [5, 2, 1])


def test_parts_are_mixed_and_classes_may_be_words():
    labels = np.array(["cat", "dog"] * 30)
    train, test = data.stratified_split(labels, (0.5, 0.5))
    assert sorted(labels[train]) == ["cat"] * 15 + ["dog"] * 15
    assert list(labels[train]) != sorted(labels[train])
    assert list(test) != sorted(test)


def test_shares_with_rounding_errors_use_everything():
    shares = (0.1,) * 10  # a little less than 1 when added one after the other
    assert [len(part) for part in data.random_split(1430, shares)] == [143] * 10
    assert sum(map(len, data.random_split(1437, shares))) == 1437


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "positive numbers"),
        ((0.5, 0.0), "positive numbers"),
        ((-1, 5), "positive numbers"),
        ((float("nan"),), "positive numbers"),
        ((0.8, 0.3), "20 together"),
        ((15, 10), "20 together"),
        ((0.99, 0.01), "at least one example"),
        ((0.5, 10), "mixes"),
    ],
)
def test_impossible_parts_are_errors(parts, message):
    for split in (lambda: data.random_split(20, parts), lambda: data.stratified_split(labels_of([10, 10]), parts)):
        with pytest.raises(ValueError, match=f"parts=.*{message}"):
            split()


def test_classes_that_cannot_be_everywhere_are_errors():
    with pytest.raises(ValueError, match=r"class 0 with 1 examples was given for 2 parts.*random_split"):
        data.stratified_split(labels_of([1, 30]), (0.5, 0.5))
    with pytest.raises(ValueError, match=r"a part of 2 examples was asked for with 3 classes"):
        data.stratified_split(labels_of([10, 10, 10]), (20, 2))
    with pytest.raises(ValueError, match=r"shape \(3, 2\).*argmax"):
        data.stratified_split(np.ones((3, 2)), (0.5, 0.5))


def test_weighted_classes_count_alike():
    labels = labels_of([5, 20, 75])
    weights = data.class_weights(labels)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights * np.bincount(labels), 100 / 3, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    np.testing.assert_array_equal(data.class_weights(jnp.asarray(labels), classes=3), weights)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 2], None, "no example of class 1"),
        ([0, 1], 3, "no example of class 2"),
        ([0, 5], 2, "label 5"),
        ([-1, 0], None, "from 0"),
        ([0.5, 1.0], None, "float64"),
        ([], None, r"shape \(0,\)"),
    ],
)
def test_weights_of_strange_labels_are_errors(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        data.class_weights(np.array(labels), classes)


# One length of labels and of orders, so that each of the two compiles once.
DRAWS = 100
order_of = jax.jit(lambda key, labels: data.balanced_order(key, labels, DRAWS))
orders_of = jax.jit(jax.vmap(lambda key, labels: data.balanced_order(key, labels, DRAWS), (0, None)))


@pytest.mark.parametrize("counts", [[40], [1, 39], [3, 9, 20, 8]])
def test_a_balanced_order_takes_turns_and_wastes_nothing(counts):
    labels = labels_of(counts)
    order = np.asarray(order_of(KEY, labels))
    assert order.shape == (DRAWS,)
    assert order.dtype == np.int32
    drawn = np.bincount(labels[order], minlength=len(counts))
    assert drawn.max() - drawn.min() <= 1
    for c in range(len(counts)):
        times = np.bincount(order[labels[order] == c], minlength=len(labels))[labels == c]
        assert times.max() - times.min() <= 1, "an example is repeated before its class is through"
    assert len(counts) == 1 or list(labels[order]) != sorted(labels[order]), "classes are mixed"


def test_a_balanced_order_may_be_short():
    labels = labels_of([10, 30])
    order = np.asarray(data.balanced_order(KEY, labels, 8))
    assert len(set(order)) == 8
    np.testing.assert_array_equal(np.bincount(labels[order]), [4, 4])


def test_balanced_orders_are_mapped_over_keys_and_every_class_gets_the_odd_draw():
    labels = jnp.asarray(labels_of([5, 15, 20]))
    keys = jax.random.split(KEY, 60)
    orders = np.asarray(orders_of(keys, labels))
    np.testing.assert_array_equal(orders[0], order_of(keys[0], labels))
    assert not np.array_equal(orders[0], orders[1])
    favoured = {int(np.bincount(np.asarray(labels)[order]).argmax()) for order in orders}
    assert favoured == {0, 1, 2}
    first = orders[:, 0]
    assert len(set(first)) > 20, "any example may come first"


def test_a_balanced_order_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="n=0"):
        data.balanced_order(KEY, labels_of([3]), 0)
    with pytest.raises(ValueError, match="dtype float"):
        data.balanced_order(KEY, jnp.ones(3), 3)


PHOTOS = np.random.RandomState(0).normal(3, 2, (50, 4, 5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("per", "axes", "shape"), [("feature", 0, (4, 5, 3)), ("channel", (0, 1, 2), (3,)), ("all", None, ())]
)
def test_training_data_gets_mean_0_and_deviation_1(per, axes, shape):
    train, test, statistics = data.normalize(PHOTOS, PHOTOS[:7] * 5, per=per)
    assert statistics.mean.shape == statistics.deviation.shape == shape
    assert train.dtype == test.dtype == statistics.mean.dtype == np.float32
    np.testing.assert_allclose(train.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axes), 1, atol=1e-5)
    np.testing.assert_allclose(statistics.invert(test), PHOTOS[:7] * 5, rtol=1e-5, atol=1e-5)


def test_other_data_have_no_part_in_the_numbers():
    train, test, statistics = data.normalize(PHOTOS, PHOTOS)
    again, spoiled, same = data.normalize(PHOTOS, np.full_like(PHOTOS, np.nan))
    np.testing.assert_array_equal(train, test)
    np.testing.assert_array_equal(train, again)
    np.testing.assert_array_equal(statistics.deviation, same.deviation)
    assert np.isnan(spoiled).all()


def test_a_constant_feature_is_safe():
    x = np.random.RandomState(0).normal(size=(1000, 2)).astype(np.float32)
    x[:, 1] = 0.1  # whose float64 mean is not exactly 0.1 over 1000 examples
    scaled, other, statistics = data.normalize(x, x + 1)
    assert statistics.deviation[1] == 1
    np.testing.assert_allclose(scaled[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(other[:, 1], 1, rtol=1e-6)


def test_a_large_mean_does_not_swallow_a_small_deviation():
    x = 1e4 + np.random.RandomState(0).normal(0, 0.5, (10_000, 1))
    scaled, statistics = data.normalize(x)
    assert statistics.deviation == pytest.approx(x.std(), rel=1e-5)
    assert scaled.std() == pytest.approx(1, rel=1e-5)


def test_many_examples_are_summed_in_pieces():
    x = np.arange(20_000, dtype=np.float32).reshape(-1, 2)
    _, statistics = data.normalize(x)
    np.testing.assert_allclose(statistics.mean, x.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(statistics.deviation, x.std(0, dtype=np.float64), rtol=1e-6)


def test_bytes_become_float32_and_doubles_stay():
    pixels = np.random.RandomState(0).randint(0, 256, (20, 3, 3)).astype(np.uint8)
    scaled, statistics = data.normalize(pixels, per="all")
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(statistics.invert(scaled), pixels, atol=1e-3)
    assert data.normalize(pixels.astype(np.float64))[0].dtype == np.float64


def test_statistics_travel_through_jit_and_fit_single_examples():
    *_, statistics = data.normalize(PHOTOS, per="channel")
    on_device = jax.jit(lambda s, x: s.apply(x))(statistics, jnp.asarray(PHOTOS))
    np.testing.assert_allclose(on_device, statistics.apply(PHOTOS), rtol=1e-6)
    np.testing.assert_allclose(statistics.apply(PHOTOS[0]), on_device[0], rtol=1e-5)
    half = statistics.apply(jnp.asarray(PHOTOS, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    scaled, _ = data.normalize(jnp.asarray(PHOTOS))
    assert isinstance(scaled, jax.Array)


@pytest.mark.parametrize(
    ("arrays", "per", "message"),
    [
        ((PHOTOS, PHOTOS[..., :2]), "all", r"\(50, 4, 5, 2\) was given beside .*\(50, 4, 5, 3\)"),
        ((PHOTOS,), "pixel", "per='pixel'"),
        ((np.ones(5),), "channel", "channels on the last"),
        ((np.ones((0, 2)),), "all", r"\(0, 2\)"),
        ((np.array([1.0, np.inf, np.nan]),), "all", "2 values .* not finite"),
    ],
)
def test_data_that_cannot_be_scaled_are_errors(arrays, per, message):
    with pytest.raises(ValueError, match=message):
        data.normalize(*arrays, per=per)
