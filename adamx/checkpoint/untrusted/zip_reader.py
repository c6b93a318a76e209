"""Untrusted zip archives: members are read in place by name, none is extracted.

Keras and torch store members as they are, in one piece after another; NumPy may deflate them.
Anything else is refused before memory is taken for it.
"""

import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import unpack, unpack_from
from typing import Any, NamedTuple

from adamx.checkpoint.errors import CheckpointError

__all__ = ["SIGNATURE", "Member", "list_members", "open_member", "read_member", "verify"]

SIGNATURE = b"PK\x03\x04"

_DIRECTORY, _END, _END_64, _LOCATOR = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LONGEST_COMMENT = 0xFFFF
_ELSEWHERE = 0xFFFFFFFF  # the size is in an extra field, having more than 32 bits
_BLOCK = 1 << 20
_DEFLATED = 8  # a method of compression


class Member(NamedTuple):
    """A file in an archive: its name, its checksum, and which bytes of the archive it is.

    `size` is what the archive states. For a deflated member (`stored` differs), nothing confirms it
    until the member is read.
    """

    name: str
    checksum: int
    start: int
    size: int
    stored: int
    is_deflated: bool = False


def list_members(
    path: Path, *, deflated: bool = False, start: int = 0, size: int | None = None
) -> Iterator[Member]:
    """The members of an archive, each of which is wholly in it.

    Args:
      path: the archive.
      deflated: whether members may be compressed. What they take unpacked is then for the caller
        to charge.
      start: where it begins in the file, if that is not all of it.
      size: of the archive; None for the rest of the file.

    Raises:
      CheckpointError: one is compressed or encrypted, or they claim more bytes than there are.
    """
    there = path.stat().st_size - start
    left = there if size is None else size
    if not 0 <= left <= there:
        raise CheckpointError(f"the archive claims {left} bytes at {start}; the file has fewer")
    whole = Member("", 0, start, left, left)
    with path.open("rb") as first, path.open("rb") as second:
        file, other = open_member(first, whole), open_member(second, whole)
        directory, end = _directory(file, left)
        file.seek(directory)
        while file.tell() < end:
            head = _read(file, 46)
            if head[:4] != _DIRECTORY:
                raise ValueError("the directory of the archive is damaged")
            flags, method, checksum, stored, size = unpack_from("<HH4xIII", head, 8)
            name_size, extra_size, comment_size, at = unpack_from("<HHH8xI", head, 28)
            name = _read(file, name_size)
            extra = _read(file, extra_size + comment_size)[:extra_size]
            size, stored, at = _wide(extra, size, stored, at)
            shown = name.decode("utf-8", "replace")
            is_deflated = deflated and method == _DEFLATED
            if flags & 1 or (method and not is_deflated):
                raise CheckpointError(
                    where=shown,
                    expected="it stored without compression or encryption",
                    found="it compressed or encrypted",
                    remedy="unpack the archive, and pack it again with `zip -0`",
                )
            left -= stored
            begin = _find_start(other, at, name)
            if left < 0 or begin + stored > directory or (stored != size and not is_deflated):
                raise CheckpointError(f"claims {size} bytes; the file has fewer", where=shown)
            yield Member(shown, checksum, start + begin, size, stored, is_deflated)
        if file.tell() != end:
            raise ValueError("the directory of the archive does not end where it should")


def read_member(path: Path, member: Member) -> bytes:
    """All bytes of a member, after verifying its checksum."""
    verify(path, member)
    with path.open("rb") as file:
        file.seek(member.start)
        return file.read(member.size)


def verify(path: Path, member: Member) -> None:
    """Raise unless the checksum is right; torch writes 0 if it is configured to compute none."""
    checksum, left = 0, member.size
    with path.open("rb") as file:
        file.seek(member.start)
        while left and (block := file.read(min(left, _BLOCK))):
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
    if member.checksum not in (0, checksum):
        raise ValueError(f"{member.name}: the checksum is wrong")


def open_member(file: io.BufferedReader, member: Member) -> io.BufferedReader:
    """A member of an open archive as a file of its own; one that is deflated cannot seek."""
    part = _Part(file, member)
    return io.BufferedReader(_Inflated(part, member.size) if member.is_deflated else part)


class _Inflated(io.RawIOBase):
    """What a deflated stream unpacks to, up to a size."""

    def __init__(self, packed: io.RawIOBase, size: int) -> None:
        self._packed, self._left = packed, size
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # without a header, as in archives

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._left)
        while wanted and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._packed.read(_BLOCK)
            found = self._inflater.decompress(packed or b"", wanted)
            buffer[: len(found)] = found
            self._left -= len(found)
            if found or not packed:
                return len(found)
        return 0


class _Part(io.RawIOBase):
    def __init__(self, file: io.BufferedReader, member: Member) -> None:
        self._file, self._member, self._at = file, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._member.stored}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._member.stored - self._at)]
        self._file.seek(self._member.start + self._at)
        count = self._file.readinto(view)
        self._at += count
        return count


def _directory(file: io.BufferedReader, size: int) -> tuple[int, int]:
    """Where the central directory begins and ends: right before its end records.

    Readers look for it in several ways. Where they could find different ones, it is refused.
    """
    start = max(0, size - _LONGEST_COMMENT - 22)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise ValueError("the archive's directory is missing")
    length, offset = unpack_from("<II", tail, at + 12)
    end = start + at
    if end >= 76:
        file.seek(end - 76)
        records = file.read(76)
        if records[56:60] == _LOCATOR:
            end -= 76
            if records[:4] != _END_64 or unpack_from("<Q", records, 64) != (end,):
                raise ValueError("the archive's directory is damaged")
            length, offset = unpack_from("<QQ", records, 40)
    if offset + length != end:
        raise ValueError("the archive's directory is not where it should be")
    return offset, end


def _wide(extra: bytes, *sizes: int) -> tuple[int, ...]:
    """Sizes and offset, those with more than 32 bits from the extra field of ZIP64."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(unpack_from(f"<{length // 8}Q", extra, at + 4))
            return tuple(next(wide) if size == _ELSEWHERE else size for size in sizes)
        at += 4 + length
    return sizes


def _find_start(file: io.BufferedReader, at: int, name: bytes) -> int:
    """Where the bytes of the member begin, whose own header is at `at`."""
    file.seek(at)
    head = _read(file, 30)
    name_size, extra_size = unpack("<HH", head[26:])
    if head[:4] != SIGNATURE or _read(file, name_size) != name:
        raise ValueError(f"the archive has no {name.decode('utf-8', 'replace')} at {at}")
    return at + 30 + name_size + extra_size


def _read(file: io.BufferedReader, count: int) -> bytes:
    found = file.read(count)
    if len(found) != count:
        raise ValueError("the archive ends too early")
    return found
