"""Small real data sets that need no download: digits, tables, photos and English text."""

import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jopt.data.normalize import normalize
from jopt.data.splits import random_split, stratified_split

TEST_IMAGES = 360
TEST_SHARE = 0.2  # of the tables, and of the width of a photo
PHOTOS = ("china.jpg", "flower.jpg")


class _Parts(NamedTuple):
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class Split(_Parts):
    """A data set in two parts, `train_x, train_y, test_x, test_y`; first axis: examples.

    Attributes:
        name: which data set it is; it tells whether `mnist()` returned digits instead.
    """

    name: str = ""

    @classmethod
    def of(cls, name: str, train_x: Any, train_y: Any, test_x: Any, test_y: Any) -> "Split":
        """A split with a name."""
        split = cls(train_x, train_y, test_x, test_y)
        split.name = name
        return split


class Text(NamedTuple):
    """A text as integers: `vocabulary[ids[i]]` is its i-th character, the test part comes after the training part."""

    train: np.ndarray
    test: np.ndarray
    vocabulary: str


def digits() -> Split:
    """Scikit-learn's 1797 grey 8 × 8 images of handwritten digits, 360 of them for testing.

    The split is fixed and stratified: each digit has the same share in both parts. Pixels are shifted and
    scaled by the mean and the deviation over all training pixels, so nothing of the test part leaks.

    Images are float32 of shape (n, 8, 8); labels are int32 of shape (n,). As a sequence for a
    recurrent network the same array reads as 8 steps (rows from the top) of 8 numbers.

    Raises:
        ImportError: scikit-learn is missing.
    """
    images, labels = _loader("digits", "load_digits")(return_X_y=True)
    from sklearn.model_selection import train_test_split

    images = images.reshape(-1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    mean, deviation = train_x.mean(), train_x.std()
    return Split.of(
        "digits",
        ((train_x - mean) / deviation).astype(np.float32),
        train_y.astype(np.int32),
        ((test_x - mean) / deviation).astype(np.float32),
        test_y.astype(np.int32),
    )


def breast_cancer() -> Split:
    """569 tumours as 30 measurements each, malignant (0) or benign (1); a stratified fifth for testing.

    Measurements are float32 of shape (n, 30), each scaled by its mean and deviation over the training
    part; labels are int32 of shape (n,).

    Raises:
        ImportError: scikit-learn is missing.
    """
    return _classes("breast_cancer")


def wine() -> Split:
    """178 wines of three growers as 13 chemical measurements each; a stratified fifth for testing.

    Measurements are float32 of shape (n, 13), each scaled by its mean and deviation over the training
    part; labels are int32 of shape (n,), from 0 to 2.

    Raises:
        ImportError: scikit-learn is missing.
    """
    return _classes("wine")


def iris() -> Split:
    """150 irises of three species, sepals and petals measured; a stratified fifth for testing.

    Measurements are float32 of shape (n, 4), each scaled by its mean and deviation over the training
    part; labels are int32 of shape (n,), from 0 to 2.

    Raises:
        ImportError: scikit-learn is missing.
    """
    return _classes("iris")


def diabetes() -> Split:
    """442 patients as 10 measurements each, and how far their diabetes went in a year: regression.

    A random fifth is for testing. Measurements (n, 10) and targets (n,) are float32 and scaled by the
    means and deviations over the training part: a mean squared error of 1 is that of the mean.

    Raises:
        ImportError: scikit-learn is missing.
    """
    x, y = _loader("diabetes", "load_diabetes")(return_X_y=True)
    train, test = random_split(len(y), (1 - TEST_SHARE, TEST_SHARE))
    train_x, test_x, _ = normalize(x[train], x[test])
    train_y, test_y, _ = normalize(y[train], y[test])
    return Split.of("diabetes", *(part.astype(np.float32) for part in (train_x, train_y, test_x, test_y)))


def photo_patches(size: int = 8) -> Split:
    """Square patches of two colour photos, a temple (0) and a flower (1), for autoencoders and denoising.

    The photos have 427 × 640 pixels and are cut along a grid, so that patches do not overlap. The right
    fifth of each photo is the test part: neighbours of training patches only along one line.

    Patches are float32 of shape (n, size, size, 3) in [0, 1], red, green, blue; `y` says which photo.

    Args:
        size: side of a patch in pixels, from 1 to 320.

    Raises:
        ImportError: scikit-learn, or Pillow, which reads the photos, is missing.
        ValueError: `size` out of range.
    """
    if not 1 <= size <= 320:
        raise ValueError(
            f"jopt.data.photo_patches: size={size!r} was given, a whole number from 1 to 320 was expected: a photo "
            f"has 640 pixels, and both parts want a patch. Pass for example size=8."
        )
    train_x, train_y, test_x, test_y = [], [], [], []
    for label, name in enumerate(PHOTOS):
        grid = _cut(_photo(name), size)
        columns = grid.shape[1]
        train = columns - max(1, round(TEST_SHARE * columns))
        for part, x, y in ((grid[:, :train], train_x, train_y), (grid[:, train:], test_x, test_y)):
            x.append(part.reshape(-1, size, size, 3))
            y.append(np.full(len(x[-1]), label, np.int32))
    return Split.of("photo_patches", *map(np.concatenate, (train_x, train_y, test_x, test_y)))


def english_text(test_share: float = 0.1) -> Text:
    """The Python language reference as CPython carries it for `help()`: about 400 000 characters.

    Paragraphs that occur twice are kept once, or the test part would repeat the training part. Each
    Python version words the reference a little differently: compare perplexities within one version.

    Args:
        test_share: share of the text, at its end, that is for testing; in (0, 1).

    Raises:
        ImportError: this Python was built without `pydoc_data`.
        ValueError: `test_share` outside (0, 1).
    """
    if not 0 < test_share < 1:
        raise ValueError(
            f"jopt.data.english_text: test_share={test_share!r} was given, a number in (0, 1) was expected. "
            f"Pass for example test_share=0.1."
        )
    text = _language_reference()
    vocabulary = "".join(sorted(set(text)))
    index = {character: i for i, character in enumerate(vocabulary)}
    ids = np.array([index[character] for character in text], np.int32)
    cut = int(len(ids) * (1 - test_share))
    return Text(ids[:cut], ids[cut:], vocabulary)


def windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut `ids` into pieces of `length` without overlap, and beside each the same piece one character later.

    Returns two arrays (pieces, length): what the model reads, and what it should say after each character.
    What is left over at the end is dropped.
    """
    if not 1 <= length < len(ids):
        raise ValueError(
            f"jopt.data.windows: length={length!r} was given for {len(ids)} characters, a whole number from 1 "
            f"to {len(ids) - 1} was expected. Choose a shorter length."
        )
    pieces = (len(ids) - 1) // length
    used = pieces * length
    return ids[:used].reshape(pieces, length), ids[1 : used + 1].reshape(pieces, length)


def _loader(name: str, function: str) -> Callable[..., Any]:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            f"jopt.data.{name}: scikit-learn is not installed; the data come with it. "
            f'Install it with: pip install "jopt[data]"'
        ) from error
    return getattr(datasets, function)


def _classes(name: str) -> Split:
    x, y = _loader(name, f"load_{name}")(return_X_y=True)
    train, test = stratified_split(y, (1 - TEST_SHARE, TEST_SHARE))
    train_x, test_x, _ = normalize(x[train].astype(np.float32), x[test].astype(np.float32))
    return Split.of(name, train_x, y[train].astype(np.int32), test_x, y[test].astype(np.int32))


def _photo(name: str) -> np.ndarray:
    """A photo as float32 of shape (427, 640, 3) in [0, 1]."""
    load = _loader("photo_patches", "load_sample_image")
    try:
        return load(name).astype(np.float32) / 255
    except ImportError as error:
        raise ImportError(
            "jopt.data.photo_patches: Pillow is not installed; it reads the photos, which are JPEG files. "
            'Install it with: pip install "jopt[data]"'
        ) from error


def _cut(photo: np.ndarray, size: int) -> np.ndarray:
    """Patches of a photo on a grid: (rows, columns, size, size, 3)."""
    rows, columns = photo.shape[0] // size, photo.shape[1] // size
    grid = photo[: rows * size, : columns * size].reshape(rows, size, columns, size, 3)
    return grid.swapaxes(1, 2)


def _language_reference() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            "jopt.data.english_text: the module pydoc_data.topics was not found; every complete CPython has "
            "it, this one was stripped. Install the full standard library (Debian: apt install libpython3-stdlib)."
        ) from error
    seen: set[str] = set()
    paragraphs = []
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                paragraphs.append(paragraph.strip("\n"))
    return "\n\n".join(paragraphs)
