"""Small real data sets that need no download: handwritten digits and English text."""

import re
from typing import NamedTuple

import numpy as np

TEST_IMAGES = 360


class Split(NamedTuple):
    """A data set in two parts; first axis: examples."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


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
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "jopt.train.data.digits: scikit-learn is not installed; the images come with it. "
            'Install it with: pip install "jopt[data]"'
        ) from error
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    mean, deviation = train_x.mean(), train_x.std()
    return Split(
        ((train_x - mean) / deviation).astype(np.float32),
        train_y.astype(np.int32),
        ((test_x - mean) / deviation).astype(np.float32),
        test_y.astype(np.int32),
    )


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
            f"jopt.train.data.english_text: test_share={test_share!r} was given, a number in (0, 1) was expected. "
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
            f"jopt.train.data.windows: length={length!r} was given for {len(ids)} characters, a whole number from 1 "
            f"to {len(ids) - 1} was expected. Choose a shorter length."
        )
    pieces = (len(ids) - 1) // length
    used = pieces * length
    return ids[:used].reshape(pieces, length), ids[1 : used + 1].reshape(pieces, length)


def _language_reference() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            "jopt.train.data.english_text: the module pydoc_data.topics was not found; every complete CPython has "
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
