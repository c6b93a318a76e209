"""The files of a TensorFlow checkpoint: an index of named tensors, and shards with their bytes.

`PREFIX.index` is a LevelDB table of protocol buffers (BundleHeaderProto, BundleEntryProto); the
tensors are in `PREFIX.data-00000-of-00001` and so on. TensorFlow is not needed to read them.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.castagnoli import compute_crc32c, mask_crc32c
from adamx.checkpoint.untrusted.leveldb_table import read_table
from adamx.checkpoint.untrusted.protocol_buffers import (
    list_fields,
    read_fixed32,
    read_integers,
    read_varint,
)

__all__ = ["Bundle", "Entry"]

# What DataType of TensorFlow means; others are no numbers, or need its own kernels.
_DTYPES: dict[int, np.dtype] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    8: np.dtype(np.complex64),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(np.uint16),
    18: np.dtype(np.complex128),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}
_TEXT = 7
_MOST_AXES = 32
_MOST_MEMORY = 1 << 62
_PER_ENTRY = 430  # bytes of memory that an entry takes beside its name
_LONGEST_NAME = 4096
_SLICE = b"\0"  # with which the names of parts of a tensor begin


class Entry(NamedTuple):
    """Where the bytes of a tensor are, and what they mean; dtype is None if they are no numbers."""

    dtype: np.dtype | None
    is_text: bool
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    is_sliced: bool

    @property
    def is_floating(self) -> bool:
        """Whether its dtype is one that weights can have."""
        return self.dtype is not None and (
            self.dtype.kind in "fc" or self.dtype == ml_dtypes.bfloat16
        )


class Bundle:
    """An open checkpoint: its entries by name, and their arrays one at a time.

    Attributes:
      entries: by name, in the order of the index, which sorts them.
      account: the memory that may still be taken.
      read: the names that were asked for.
    """

    def __init__(self, prefix: Path, progress: Progress | None = None) -> None:
        index = prefix.with_name(f"{prefix.name}.index")
        self._prefix, self._progress = prefix, progress
        self.account = Account(index.stat().st_size + _sum_sizes(prefix))
        self._shards = 0
        self.entries: Mapping[str, Entry] = self._list_entries(index)
        self.read: set[str] = set()

    def _list_entries(self, index: Path) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        with index.open("rb") as file:
            for number, (key, value) in enumerate(read_table(file, self.account)):
                if number == 0:
                    self._shards = _read_header(key, value)
                elif not key.startswith(_SLICE):
                    if len(key) > _LONGEST_NAME:
                        raise CheckpointError(f"a name of {len(key)} bytes")
                    self.account.spend(_PER_ENTRY)
                    entries[key.decode()] = _read_entry(value)
        if not self._shards:
            raise ValueError("the index is empty")
        return entries

    def array(self, name: str) -> np.ndarray:
        """The tensor of that name, after verifying its checksum."""
        entry = self._find(name)
        dtype = entry.dtype
        if dtype is None:
            raise CheckpointError(where=name, expected="numbers", found="a tensor of another kind")
        if entry.is_sliced:
            raise CheckpointError(
                where=name,
                expected="a tensor in one piece",
                found="one that a partitioner has split",
                remedy="load the checkpoint in TensorFlow without the partitioner, and save it",
            )
        nbytes = math.prod(entry.shape) * dtype.itemsize
        if nbytes != entry.size:
            raise CheckpointError(
                where=name, expected=f"{nbytes} bytes for shape {entry.shape}", found=entry.size
            )
        array = np.frombuffer(self._take(name, entry), dtype).reshape(entry.shape)
        if self._progress:
            self._progress(nbytes)
        return array

    def text(self, name: str) -> bytes:
        """The one string of a scalar of strings, after verifying its checksum."""
        entry = self._find(name)
        if not entry.is_text or entry.shape:
            raise CheckpointError(where=name, expected="one string", found="something else")
        self.account.spend(2 * entry.size)  # for copies
        data = bytes(self._take(name, entry, whole=False))
        size, at = read_varint(data, 0)
        start = at + 4  # after the checksum of the size
        if size != len(data) - start:
            raise ValueError(f"{name}: a string is cut off")
        told = size.to_bytes(4 if size >> 32 == 0 else 8, "little")
        checksum = compute_crc32c(memoryview(data)[at:], compute_crc32c(told))
        _check(name, checksum, entry)
        return data[start:]

    def _find(self, name: str) -> Entry:
        if name not in self.entries:
            raise CheckpointError(
                "the checkpoint refers to it, but it is not in the index", where=name
            )
        self.read.add(name)
        return self.entries[name]

    def _take(self, name: str, entry: Entry, *, whole: bool = True) -> bytearray:
        """The bytes of an entry; `whole` verifies that their checksum is that of the entry."""
        path = self._find_shard(name, entry.shard)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if entry.offset + entry.size > size:
                raise CheckpointError(
                    where=name,
                    expected=f"{entry.size} bytes at {entry.offset} in {path.name}",
                    found=f"a file of {size}",
                )
            self.account.spend(entry.size)
            data = bytearray(entry.size)
            file.seek(entry.offset)
            if file.readinto(data) != entry.size:
                raise ValueError(f"{path.name} is cut off")
        if whole:
            _check(name, compute_crc32c(memoryview(data)), entry)
        return data

    def _find_shard(self, name: str, shard: int) -> Path:
        if shard >= self._shards:
            raise ValueError(f"{name}: is in shard {shard} of {self._shards}")
        path = self._prefix.with_name(_name_shard(self._prefix, shard, self._shards))
        if not path.is_file():
            raise CheckpointError(
                where=name,
                expected=f"the file {path.name} in the folder of the index",
                found="none",
                remedy="copy all files of the checkpoint",
            )
        return path


def _name_shard(prefix: Path, shard: int, shards: int) -> str:
    return f"{prefix.name}.data-{shard:05d}-of-{shards:05d}"


def _sum_sizes(prefix: Path) -> int:
    """The bytes of all files that may be shards."""
    start = f"{prefix.name}.data-"
    with os.scandir(prefix.parent) as entries:
        return sum(e.stat().st_size for e in entries if e.name.startswith(start) and e.is_file())


def _read_header(key: bytes, value: bytes) -> int:
    """The number of shards."""
    if key:
        raise ValueError("the index has no header")
    shards, is_big_endian = read_integers(value, (1, 2))
    if is_big_endian:
        raise CheckpointError(
            expected="numbers in little-endian order",
            found="those of a big-endian machine",
            remedy="load the checkpoint in TensorFlow there, and save it in another format",
        )
    if shards < 1:
        raise ValueError(f"the index claims {shards} shards")
    return shards


def _read_entry(value: bytes) -> Entry:
    dtype, shard, offset, size = read_integers(value, (1, 3, 4, 5))
    shape: tuple[int, ...] = ()
    checksum, is_sliced = 0, False
    for number, field in list_fields(value):
        if number == 2:
            shape = _read_shape(field)
        elif number == 6:
            checksum = read_fixed32(field)
        elif number == 7:
            is_sliced = True
    if min(shard, offset, size) < 0:
        raise ValueError("an entry of the index has a negative size")
    return Entry(
        _DTYPES.get(dtype), dtype == _TEXT, shape, shard, offset, size, checksum, is_sliced
    )


def _read_shape(field: int | bytes) -> tuple[int, ...]:
    """The sizes in a TensorShapeProto."""
    if isinstance(field, int):
        raise ValueError("an entry of the index has a damaged shape")
    sizes: list[int] = []
    for number, axis in list_fields(field):
        if number == 3 and axis:
            raise ValueError("an entry of the index has an unknown shape")
        if number == 2:
            if isinstance(axis, int) or len(sizes) == _MOST_AXES:
                raise ValueError("an entry of the index has a damaged shape")
            sizes.extend(read_integers(axis, (1,)))
    if any(size < 0 for size in sizes) or math.prod(sizes) > _MOST_MEMORY:
        raise ValueError(f"an entry of the index has the shape {listed(map(str, sizes))}")
    return tuple(sizes)


def _check(name: str, checksum: int, entry: Entry) -> None:
    if mask_crc32c(checksum) != entry.checksum:
        raise CheckpointError("the checksum is wrong: the file is damaged", where=name)
