"""MNIST, Fashion-MNIST and CIFAR-10: downloaded once, checked every time, read without pickle.

Files live in `~/.cache/jopt`, or where the environment variable `JOPT_DATA` says. A file counts only
with the right size and SHA-256; it gets its name in one step, when all of it has been checked. Archives
are read in memory: no path out of an archive is ever written to disk.
"""

import gzip
import hashlib
import http.client
import os
import sys
import tarfile
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jopt.data.normalize import Per, normalize
from jopt.data.offline import Split, digits

TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 20  # bytes


class Remote(NamedTuple):
    """A file on the net.

    Attributes:
        name: in the cache folder.
        url: where it is.
        size: in bytes.
        sha256: of its bytes, in hexadecimal digits.
    """

    name: str
    url: str
    size: int
    sha256: str


class DownloadError(OSError):
    """A data set could not be had: no connection, a wrong file, or no place for it."""


class OfflineWarning(UserWarning):
    """Digits were returned in place of a data set that could not be had."""


# Published by Keras (keras/src/datasets/mnist.py); the size is what its progress bar shows.
MNIST = Remote(
    "mnist.npz",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    11_490_434,
    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
)

# Sizes and digests published by TensorFlow Datasets (url_checksums/fashion_mnist.txt). The authors'
# own server has no https, their repository holds the same files.
_FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION_MNIST = tuple(
    Remote(f"fashion-{name}", _FASHION_URL + name, size, sha256)
    for name, size, sha256 in (
        (
            "train-images-idx3-ubyte.gz",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        ("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    )
)

# Published by TensorFlow Datasets (url_checksums/cifar10.txt). The binary version: the Python one is
# a pickle, which runs code when it is read.
CIFAR10 = Remote(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR10_TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_TEST = "cifar-10-batches-bin/test_batch.bin"
CIFAR10_RECORDS = 10_000  # in every file of the archive


def mnist(fallback: bool = True) -> Split:
    """60 000 handwritten digits for training and 10 000 for testing, 28 × 28 grey pixels; 11 MB.

    Images are float32 of shape (n, 28, 28), scaled by the mean and the deviation over all training
    pixels; labels are int32 of shape (n,).

    Args:
        fallback: where the files cannot be had, warn and return `digits()`, whose images have 8 × 8
            pixels; `split.name` says which it is. With False that is an error.

    Raises:
        DownloadError: the files cannot be had, and `fallback` is False.
    """
    return _or_digits("mnist", lambda: _mnist_arrays(fetch(MNIST)), "all", fallback)


def fashion_mnist(fallback: bool = True) -> Split:
    """60 000 pictures of clothes for training and 10 000 for testing, 28 × 28 grey pixels; 31 MB.

    A drop-in for MNIST that is harder: shapes, scaling and arguments are those of `mnist`.

    Args:
        fallback: see `mnist`.

    Raises:
        DownloadError: the files cannot be had, and `fallback` is False.
    """
    return _or_digits("fashion_mnist", lambda: tuple(read_idx(fetch(part)) for part in FASHION_MNIST), "all", fallback)


def cifar10(fallback: bool = True) -> Split:
    """50 000 colour photos of ten kinds of things for training and 10 000 for testing; 170 MB.

    Images are float32 of shape (n, 32, 32, 3), scaled by the mean and the deviation of each channel over
    the training part; labels are int32 of shape (n,).

    Args:
        fallback: see `mnist`; digits then have a channel axis too, shape (n, 8, 8, 1).

    Raises:
        DownloadError: the file cannot be had, and `fallback` is False.
    """
    split = _or_digits("cifar10", lambda: read_cifar10(fetch(CIFAR10)), "channel", fallback)
    if split.name == "cifar10":
        return split
    return Split.of(split.name, split.train_x[..., None], split.train_y, split.test_x[..., None], split.test_y)


def cache_folder() -> Path:
    """Where downloads are kept: `JOPT_DATA`, or `~/.cache/jopt`."""
    return Path(os.environ.get("JOPT_DATA") or "~/.cache/jopt").expanduser()


def fetch(remote: Remote, timeout: float = TIMEOUT) -> Path:
    """The path of a checked file: out of the cache, or else downloaded to it.

    Args:
        remote: which file.
        timeout: seconds without an answer before giving up.

    Raises:
        DownloadError: no connection, a wrong or cut file, or a folder that cannot be written. Nothing is
            left behind.
    """
    path = cache_folder() / remote.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or _fault(remote, path) is not None:
            print(f"Downloading {remote.url} ({remote.size / 1e6:.1f} MB) to {path}", file=sys.stderr)
            _download(remote, path, timeout)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"jopt.data: {remote.url} was asked for, and this came instead: {error}. A file of {remote.size} bytes "
            f"with SHA-256 {remote.sha256} was expected. Check the connection and try again, or put the file at "
            f"{path} yourself; the environment variable JOPT_DATA chooses another folder."
        ) from error
    return path


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the gzipped IDX format: labels (n,) or images (n, height, width), uint8."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3] if content[:3] == b"\0\0\x08" else 0  # two zeros, 8 for unsigned bytes, number of axes
    shape = tuple(int(n) for n in np.frombuffer(content, ">i4", axes, 4)) if axes else ()
    if not axes or len(content) != 4 + 4 * axes + int(np.prod(shape)):
        raise ValueError(
            f"jopt.data: {path} holds {len(content)} bytes that begin with {content[:4]!r}, an IDX file of unsigned "
            f"bytes was expected. Delete it, so that it is downloaded again."
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The binary CIFAR-10 archive as uint8: images (n, 32, 32, 3) and labels (n,), training and test.

    Members are found by their exact names and read in memory; others, whatever their path, are ignored.
    """
    wanted = {*CIFAR10_TRAIN, CIFAR10_TEST}
    records: dict[str, np.ndarray] = {}
    size = CIFAR10_RECORDS * 3073  # a label, then 32 × 32 pixels in each of three channels
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if member.name in wanted and member.isfile() and member.size == size:
                content = archive.extractfile(member)
                assert content is not None, "a regular file has content"
                records[member.name] = np.frombuffer(content.read(), np.uint8).reshape(-1, 3073)
    missing = sorted(wanted - records.keys())
    if missing:
        raise ValueError(
            f"jopt.data: {path} was read without finding {', '.join(missing)}, a regular file of {size} bytes each "
            f"was expected. Delete the archive, so that it is downloaded again."
        )
    train = np.concatenate([records[name] for name in CIFAR10_TRAIN])
    return *_images_and_labels(train), *_images_and_labels(records[CIFAR10_TEST])


def _or_digits(name: str, load: Callable[[], tuple[np.ndarray, ...]], per: Per, fallback: bool) -> Split:
    try:
        train_x, train_y, test_x, test_y = load()
    except DownloadError as error:
        if not fallback:
            raise
        warnings.warn(
            f"{name}: NOT {name} BUT DIGITS is what you get, scikit-learn's 8 × 8 images (split.name is 'digits'). "
            f"{error} To stop here instead, call {name}(fallback=False).",
            OfflineWarning,
            stacklevel=3,
        )
        return digits()
    train_x, test_x, _ = normalize(train_x, test_x, per=per)
    return Split.of(name, train_x, train_y.astype(np.int32), test_x, test_y.astype(np.int32))


def _mnist_arrays(path: Path) -> tuple[np.ndarray, ...]:
    with np.load(path, allow_pickle=False) as arrays:
        return tuple(arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))


def _images_and_labels(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _download(remote: Remote, path: Path, timeout: float) -> None:
    """Write what the server sends beside `path`, at most one chunk too much; check it, then give it its name."""
    request = urllib.request.Request(remote.url, headers={"User-Agent": "jopt"})
    part = path.with_name(f".{remote.name}.{uuid.uuid4().hex}.part")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer, open(part, "xb") as file:
            while file.tell() <= remote.size and (chunk := answer.read(CHUNK)):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        fault = _fault(remote, part)
        if fault is not None:
            raise DownloadError(fault)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _fault(remote: Remote, path: Path) -> str | None:
    """What is wrong with a file, or None."""
    size = path.stat().st_size
    if size != remote.size:
        return f"a file of {size} bytes"
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return None if sha256 == remote.sha256 else f"a file with SHA-256 {sha256}"
