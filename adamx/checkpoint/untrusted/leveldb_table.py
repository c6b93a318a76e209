"""Untrusted LevelDB tables: sorted keys and their values, as TensorFlow's `.index` files have them.

A table is a row of blocks, each with a checksum. The last block but one lists the others. Keys
share the beginning of the one before, so that a small file can hold long ones: their memory is
charged before it is taken.
"""

import io
from collections.abc import Iterator

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.castagnoli import compute_crc32c, mask_crc32c
from adamx.checkpoint.untrusted.protocol_buffers import read_varint

__all__ = ["FOOTER", "MAGIC", "read_table"]

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48  # bytes at the end of a table, the last of which are MAGIC

_TRAILER = 5  # bytes after a block: how it is compressed, and its checksum


def read_table(file: io.BufferedReader, account: Account) -> Iterator[tuple[bytes, bytes]]:
    """The keys of a table in their order, and the value of each.

    Raises:
      CheckpointError: a block is compressed, or what it holds takes too much memory.
      ValueError: the table is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    if size < FOOTER:
        raise ValueError("a table is cut off")
    file.seek(size - FOOTER)
    footer = file.read(FOOTER)
    if not footer.endswith(MAGIC):
        raise ValueError("the end of a table is missing")
    _, at = _read_handle(footer, 0)  # of what describes the table: nothing that is needed
    (start, length), _ = _read_handle(footer, at)
    last: bytes | None = None
    for _, handle in _list_entries(_read_block(file, start, length, size), account):
        (start, length), end = _read_handle(handle, 0)
        if end != len(handle):
            raise ValueError("the list of blocks is damaged")
        for key, value in _list_entries(_read_block(file, start, length, size), account):
            if last is not None and key <= last:
                raise ValueError("the keys of a table are out of order")
            last = key
            yield key, value


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Where a block begins and how long it is; and where that ends."""
    start, at = read_varint(data, at)
    length, at = read_varint(data, at)
    return (start, length), at


def _read_block(file: io.BufferedReader, start: int, length: int, size: int) -> bytes:
    """The entries of a block whose checksum is right, without the list of its restarts."""
    if start + length + _TRAILER > size - FOOTER:
        raise ValueError("a block of a table is not in the file")
    file.seek(start)
    block = file.read(length + _TRAILER)
    if len(block) != length + _TRAILER:
        raise ValueError("a block of a table is cut off")
    checksum = int.from_bytes(block[length + 1 :], "little")
    if mask_crc32c(compute_crc32c(memoryview(block)[: length + 1])) != checksum:
        raise ValueError("the checksum of a block is wrong")
    if block[length]:
        raise CheckpointError(
            expected="a table that is not compressed, as TensorFlow writes it",
            found=f"compression {block[length]}",
            remedy="load the checkpoint in TensorFlow, and save it again",
        )
    restarts = int.from_bytes(block[length - 4 : length], "little")
    end = length - 4 - 4 * restarts
    if length < 4 or end < 0:
        raise ValueError("a block of a table has no list of its parts")
    return block[:end]


def _list_entries(entries: bytes, account: Account) -> Iterator[tuple[bytes, bytes]]:
    key, at = b"", 0
    while at < len(entries):
        shared, at = read_varint(entries, at)
        own, at = read_varint(entries, at)
        length, at = read_varint(entries, at)
        if shared > len(key) or own + length > len(entries) - at:
            raise ValueError("an entry of a table is cut off")
        account.spend(shared + own + length)
        key = key[:shared] + entries[at : at + own]
        at += own
        yield key, entries[at : at + length]
        at += length
