"""A zip archive whose first member is written in place, like a file of its own.

zipfile writes a member from its start to its end; HDF5 seeks. Writing it elsewhere first, and
copying it, would take the disk twice as long.
"""

import contextlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["large_member"]

_BLOCK = 1 << 22


@contextlib.contextmanager
def large_member(path: Path, name: str) -> Iterator[io.RawIOBase]:
    """Make an archive of one stored member. More may be appended to it afterwards.

    Yields:
      The member, to be written; it can seek.
    """
    info = zipfile.ZipInfo(name)
    info.CRC = info.header_offset = 0
    info.external_attr = 0o600 << 16  # the user who unpacks it may read it
    with path.open("w+b", buffering=0) as file:
        # With zip64 the header is as long before sizes and checksum are known as after.
        start = file.write(info.FileHeader(zip64=True))
        yield _Rest(file, start)
        info.file_size = info.compress_size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        while block := file.read(_BLOCK):
            info.CRC = zlib.crc32(block, info.CRC)
        file.seek(0)
        file.write(info.FileHeader(zip64=True))
    with zipfile.ZipFile(path, "a") as archive:
        archive.infolist().append(info)


class _Rest(io.RawIOBase):
    """What comes after a position in a file, as a file of its own."""

    def __init__(self, file: io.FileIO, start: int) -> None:
        self._file, self._start = file, start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = self._start if whence == os.SEEK_SET else 0
        return self._file.seek(begin + offset, whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        return self._file.truncate(self._start + size) - self._start

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def write(self, data: Any) -> int:
        return self._file.write(data)
