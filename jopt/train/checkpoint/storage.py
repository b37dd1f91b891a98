"""Every file-system operation of checkpoints, as one record of functions.

Nothing else in this package touches a file. Tests replace single functions to stop, fail or tear the
k-th operation, and to replay what a power loss leaves behind.
"""

import contextlib
import dataclasses
import errno
import io
import os
import shutil
from collections.abc import Callable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_SUCH_OPERATION = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}
"""What file systems answer that cannot lock, or cannot fsync a folder."""


class LockHeldError(Exception):
    """Another session holds the lock; the argument says who."""


def _create(path: str) -> io.FileIO:
    return io.FileIO(path, "xb")


def _open(path: str) -> io.FileIO:
    return io.FileIO(path, "rb")


def _write(file: io.FileIO, data: memoryview) -> int:
    return file.write(data) or 0


def _read_into(file: io.FileIO, data: memoryview) -> int:
    return file.readinto(data) or 0


def _fsync(file: io.FileIO) -> None:
    os.fsync(file.fileno())


def _size(file: io.FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _seek(file: io.FileIO, offset: int) -> None:
    file.seek(offset)


def _close(file: io.FileIO) -> None:
    file.close()


def _fsync_dir(path: str) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SUCH_OPERATION:
            raise
    finally:
        os.close(descriptor)


def _free(path: str) -> int:
    return shutil.disk_usage(path).free


def _lock(path: str, owner: str) -> io.FileIO:
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no flock", path)
    file = io.FileIO(path, "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(1000).decode("utf-8", "replace").strip()
        file.close()
        raise LockHeldError(holder) from None
    except BaseException:
        file.close()
        raise
    with contextlib.suppress(OSError):  # a full disk: locked all the same
        file.truncate(0)
        file.write(owner.encode())
    return file


@dataclasses.dataclass(frozen=True)
class Storage:
    """The file system as checkpoints use it."""

    create: Callable[[str], io.FileIO] = _create
    write: Callable[[io.FileIO, memoryview], int] = _write
    fsync: Callable[[io.FileIO], None] = _fsync
    close: Callable[[io.FileIO], None] = _close
    replace: Callable[[str, str], None] = os.replace
    fsync_dir: Callable[[str], None] = _fsync_dir
    unlink: Callable[[str], None] = os.unlink
    mkdir: Callable[[str], None] = os.mkdir
    open: Callable[[str], io.FileIO] = _open
    size: Callable[[io.FileIO], int] = _size
    seek: Callable[[io.FileIO, int], None] = _seek
    read_into: Callable[[io.FileIO, memoryview], int] = _read_into
    listdir: Callable[[str], list[str]] = os.listdir
    free: Callable[[str], int] = _free
    lock: Callable[[str, str], io.FileIO] = _lock


CHUNK = 1 << 26


def write_all(storage: Storage, file: io.FileIO, data: memoryview | bytes) -> None:
    """Write all of `data`; a system may take less than it is given in one call."""
    view = memoryview(data)
    while view.nbytes:
        view = view[storage.write(file, view[:CHUNK]) :]


def read_exactly(storage: Storage, file: io.FileIO, offset: int, data: memoryview) -> bool:
    """Fill `data` from `offset`; False if the file ends before."""
    storage.seek(file, offset)
    while data.nbytes:
        got = storage.read_into(file, data[:CHUNK])
        if not got:
            return False
        data = data[got:]
    return True


def make_directory(storage: Storage, path: str) -> None:
    """Make a folder and those above it, and their entries durable."""
    parent = os.path.dirname(os.path.abspath(path))
    try:
        storage.mkdir(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        if parent == os.path.abspath(path):
            raise
        make_directory(storage, parent)
        storage.mkdir(path)
    storage.fsync_dir(parent)


def write_atomically(storage: Storage, path: str, needed: int, write: Callable[[io.FileIO], None]) -> None:
    """Make a file that is there whole or not at all, also after a power loss.

    A temporary file beside it is written, flushed to the disk and renamed; then the folder's entry
    is flushed. Whatever happens before the rename leaves `path` as it was.

    Args:
        path: the file.
        needed: bytes it will have at least; less free space is an error before anything is written.
        write: fills the open file.

    Raises:
        OSError: as the system raises it.
    """
    directory, name = os.path.split(os.path.abspath(path))
    free = storage.free(directory)
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free", directory)
    # A random name: process numbers repeat in containers. A short one: `name` may be as long as names can be.
    temporary = os.path.join(directory, f"{name[:40]}.{os.urandom(4).hex()}.tmp")
    file = storage.create(temporary)
    try:
        try:
            write(file)
            storage.fsync(file)
        finally:
            storage.close(file)
        storage.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            storage.unlink(temporary)
        raise
    storage.fsync_dir(directory)
