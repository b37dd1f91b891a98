"""One file of blobs and a JSON manifest: a stored ZIP64 archive of which every byte is checked.

The file is, in this order: ``000000.raw``, ``000001.raw``, ... (the blobs), ``manifest.json``, and
ZIP's directory, whose comment says where the manifest is and gives its digest. The manifest holds the
size, CRC-32 and SHA-256 of each blob. From these the reader computes all of ZIP's own headers and
compares: nothing in the file is believed, and so no name, size or offset in it can do harm. The CRC is
there for ZIP tools, which can read the file as well.
"""

import errno
import hashlib
import io
import re
import struct
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jopt.train.checkpoint import strict_json
from jopt.train.checkpoint.errors import CheckpointError, damaged
from jopt.train.checkpoint.storage import Storage, read_exactly, write_all

MANIFEST = "manifest.json"
COMMENT = "jopt checkpoint, manifest at {:016x}, {:016x} bytes, sha256 {}"
COMMENT_PATTERN = re.compile(COMMENT.format(0, 0, "").replace("0" * 16, "([0-9a-f]{16})") + "([0-9a-f]{64})")
COMMENT_SIZE = len(COMMENT.format(0, 0, "0" * 64))

FREE_MEMORY = 80 << 20
"""Bytes that a manifest may take in memory, beside the size of the file: more than those of real models do."""

MIDNIGHT_1980 = 0x0021_0000  # the earliest date of ZIP, so that equal contents make equal files


class Member(NamedTuple):
    """One entry of the archive."""

    name: str
    offset: int
    size: int
    crc: int

    @property
    def header(self) -> bytes:
        """What stands before its bytes."""
        name = self.name.encode("ascii")
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.size)
        fixed = (0x04034B50, 45, 0, 0, MIDNIGHT_1980, self.crc, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
        return struct.pack("<IHHHIIIIHH", *fixed) + name + extra

    @property
    def data(self) -> int:
        """Where its bytes begin."""
        return self.offset + len(self.header)

    @property
    def end(self) -> int:
        return self.data + self.size

    @property
    def directory_entry(self) -> bytes:
        name = self.name.encode("ascii")
        extra = struct.pack("<HHQQQ", 1, 24, self.size, self.size, self.offset)
        sizes = (0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
        fixed = (0x02014B50, 45, 45, 0, 0, MIDNIGHT_1980, self.crc, *sizes, 0, 0, 0, 0, 0xFFFFFFFF)
        return struct.pack("<IHHHHIIIIHHHHHII", *fixed) + name + extra


def _ending(members: list[Member], digest: str) -> bytes:
    """ZIP's directory, and the three records after it; `members` ends with the manifest."""
    manifest = members[-1]
    entries = b"".join(member.directory_entry for member in members)
    start, end, n = manifest.end, manifest.end + len(entries), len(members)
    comment = COMMENT.format(manifest.data, manifest.size, digest).encode("ascii")
    zip64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, n, n, len(entries), start)
    locator = struct.pack("<IIQI", 0x07064B50, 0, end, 1)
    last = struct.pack("<IHHHHIIH", 0x06054B50, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, len(comment))
    return entries + zip64 + locator + last + comment


def _blob_name(index: int) -> str:
    return f"{index:06d}.raw"


# Writing -----------------------------------------------------------------------------------------


def write(
    storage: Storage, file: io.FileIO, content: dict[str, Any], blobs: Iterable[memoryview], reserve: int = 0
) -> None:
    """Fill an open file; the blobs are taken one by one, and let go when written.

    Args:
        storage: the file system.
        file: open and empty.
        content: plain JSON, goes into the manifest beside the list of blobs.
        blobs: the bytes of each.
        reserve: bytes that a reader makes of the content, beside the JSON itself.

    Raises:
        CheckpointError: the manifest is larger than a reader would accept.
    """
    members: list[Member] = []
    digests = []

    def append(name: str, data: memoryview | bytes) -> Member:
        member = Member(name, members[-1].end if members else 0, len(data), zlib.crc32(data))
        write_all(storage, file, member.header)
        write_all(storage, file, data)
        members.append(member)
        return member

    for blob in blobs:  # no `enumerate`: it would hold the last one while the next is made
        member = append(_blob_name(len(digests)), blob)
        digests.append([member.size, member.crc, hashlib.sha256(blob).hexdigest()])
        del blob
    manifest = strict_json.dump(content | {"blobs": digests})
    size = members[-1].end if members else 0
    if strict_json.memory(manifest) + reserve > FREE_MEMORY + size:
        raise CheckpointError(
            f"save: the manifest (the names of the leaves and meta) has {len(manifest)} bytes, beside {size} bytes of "
            f"arrays; less was expected. Put long tables, such as a history, into the tree as arrays, and join tiny "
            f"leaves."
        )
    append(MANIFEST, manifest)
    write_all(storage, file, _ending(members, hashlib.sha256(manifest).hexdigest()))


# Reading -----------------------------------------------------------------------------------------


class Archive:
    """An open archive, with a manifest that is sound; its blobs are checked when they are read.

    Attributes:
        content: the manifest.
        sizes: bytes of each blob.
        room: bytes that may be made of the content, beside the JSON itself.
    """

    def __init__(self, storage: Storage, path: str, call: str):
        self._storage, self._call = storage, call
        try:
            self._file = storage.open(path)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self.content, self._members, self._digests = self._open()
        except BaseException:
            self.close()
            raise
        self.sizes = [member.size for member in self._members]

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._storage.close(self._file)

    def read(self, index: int) -> np.ndarray:
        """The bytes of one blob.

        Raises:
            DamagedCheckpointError: they are not those that were written.
        """
        member = self._members[index]
        header, data = self._bytes(member.offset, len(member.header)), self._bytes(member.data, member.size)
        if header.tobytes() != member.header or hashlib.sha256(data.data).hexdigest() != self._digests[index]:
            raise damaged(self._call, f"{member.name} does not have its digest")
        return data

    def _unreadable(self, error: OSError) -> CheckpointError:
        reason = error.strerror or str(error)
        return CheckpointError(f"{self._call}: {reason}; a readable checkpoint was expected. Check the path.")

    def _bytes(self, offset: int, size: int) -> np.ndarray:
        if not 0 <= offset <= offset + size <= self._size:
            raise damaged(self._call, f"it has {self._size} bytes, and {offset + size} were needed")
        data = np.empty(size, np.uint8)
        try:
            complete = read_exactly(self._storage, self._file, offset, data.data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise self._unreadable(error) from error
            complete = False
        if not complete:
            raise damaged(self._call, f"the bytes from {offset} on cannot be read")
        return data

    def _open(self) -> tuple[dict[str, Any], list[Member], list[str]]:
        try:
            self._size = self._storage.size(self._file)
        except OSError as error:
            raise self._unreadable(error) from error
        comment = self._bytes(self._size - COMMENT_SIZE, COMMENT_SIZE).tobytes().decode("latin-1")
        found = COMMENT_PATTERN.fullmatch(comment)
        if found is None:
            raise damaged(self._call, "it does not end as a checkpoint does")
        start, size, digest = int(found[1], 16), int(found[2], 16), found[3]
        text = self._bytes(start, size).tobytes()
        if hashlib.sha256(text).hexdigest() != digest:
            raise damaged(self._call, "the manifest does not have its digest")
        content = self._manifest(text)
        members, digests = self._layout(content)
        manifest = Member(MANIFEST, members[-1].end if members else 0, size, zlib.crc32(text))
        expected = {
            manifest.offset: manifest.header,
            manifest.end: _ending([*members, manifest], digest),
        }
        if manifest.data != start or self._size != manifest.end + len(expected[manifest.end]):
            raise damaged(self._call, "its parts do not fill the file")
        for offset, header in expected.items():
            if self._bytes(offset, len(header)).tobytes() != header:
                raise damaged(self._call, f"the {len(header)} bytes at {offset} are not ZIP's headers")
        return content, members, digests

    def _manifest(self, text: bytes) -> dict[str, Any]:
        self.room = FREE_MEMORY + self._size - strict_json.memory(text)
        if self.room < 0:
            raise damaged(self._call, f"the manifest of {len(text)} bytes is larger than jopt.save writes")
        try:
            content = strict_json.load(text)
        except ValueError as error:
            raise damaged(self._call, f"the manifest is not strict JSON: {error}") from None
        if not isinstance(content, dict):
            raise damaged(self._call, "the manifest is no JSON object")
        return content

    def _layout(self, content: dict[str, Any]) -> tuple[list[Member], list[str]]:
        blobs = content.get("blobs")
        if not isinstance(blobs, list):
            raise damaged(self._call, "the manifest lists no blobs")
        members: list[Member] = []
        digests: list[str] = []
        for index, blob in enumerate(blobs):
            match blob:
                case [int(size), int(crc), str(digest)] if 0 <= size <= self._size and 0 <= crc < 1 << 32:
                    members.append(Member(_blob_name(index), members[-1].end if members else 0, size, crc))
                    digests.append(digest)
                case _:
                    raise damaged(self._call, f"the manifest describes blob {index} wrongly")
        return members, digests
