"""What `torch.save` wrote, read without torch: archives, the older form, and bare pickles.

Tensors are NumPy arrays that are mapped from the file: nothing is read until their values are used.
`read_tensors` copies them into memory, and verifies them.
"""

import mmap
import os
import sys
import weakref
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.pickle_machine import Machine
from adamx.checkpoint.untrusted.pickle_makers import BUILDERS, MAKERS
from adamx.checkpoint.untrusted.pickle_names import refuse_object
from adamx.checkpoint.untrusted.stand_ins import Global
from adamx.checkpoint.untrusted.torch_makers import TENSOR_MAKERS
from adamx.checkpoint.untrusted.torch_tensors import STORAGES, Source, Storage, Tensor
from adamx.checkpoint.untrusted.zip_reader import Member, list_members, read_member

__all__ = [
    "LEGACY_SIGNATURE",
    "Region",
    "Saved",
    "open_archive",
    "open_legacy",
    "read_archive",
    "read_pickle",
    "read_storage",
    "read_tensors",
]

# The magic number with which torch.save began before it wrote archives, pickled.
LEGACY_SIGNATURE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAKERS = MAKERS | TENSOR_MAKERS
_SCRIPT = "constants.pkl"  # a member that archives of TorchScript have
_PER_MEMBER, _PER_STORAGE = 600, 4_000  # bytes of memory, beside the values
_BLOCK, _LARGE = 1 << 20, 1 << 20
_THREADS = 4
# Of files that hold many archives; there may not be a map for each.
_MAPS: weakref.WeakValueDictionary[tuple[Path, tuple[int, ...]], mmap.mmap] = (
    weakref.WeakValueDictionary()
)


class Saved(NamedTuple):
    """What was saved, and the protocol of its pickle."""

    value: Any
    protocol: int


def read_archive(
    path: Path, start: int = 0, size: int | None = None, *, account: Account | None = None
) -> Any:
    """The object in an archive of `torch.save`.

    Args:
      path: the file.
      start: where the archive begins in it.
      size: of the archive; None for the rest of the file.
      account: of the memory that may be taken; None for one of the archive's size.

    Returns:
      Tensors as read-only maps of the file (`Tensor`), whose checksums are not verified; plain
      values; and for objects of other classes a `StandIn`.

    Raises:
      CheckpointError, ValueError: it is damaged, or would call or make what no state dict holds.
    """
    return open_archive(path, start, size, account=account).value


def open_archive(
    path: Path, start: int = 0, size: int | None = None, *, account: Account | None = None
) -> Saved:
    """As `read_archive`, with the protocol."""
    size = path.stat().st_size - start if size is None else size
    account = account or Account(size)
    pickles: list[Member] = []
    members: dict[str, Member] = {}
    for member in list_members(path, start=start, size=size):
        folder, _, last = member.name.rpartition("/")
        if last.lower() == _SCRIPT:
            raise refuse_object("a program of TorchScript")
        if last.lower() == "data.pkl":
            pickles.append(member)
        elif folder.endswith("/data") or last == "byteorder":
            account.spend(_PER_MEMBER)
            if member.name in members:
                raise CheckpointError(f"the archive has two members called {member.name}")
            members[member.name] = member
    account.allow(len(members) * _PER_MEMBER)
    if len(pickles) != 1:
        raise CheckpointError(f"expected one data.pkl in the archive, found {len(pickles)}")
    prefix = pickles[0].name[: -len("data.pkl")]
    order = "little"
    if (told := members.get(f"{prefix}byteorder")) is not None:
        order = read_member(path, told).decode()
    if order not in ("little", "big"):
        raise ValueError(f"unknown byte order {order!r:.20}")
    account.spend(pickles[0].size)
    saved = read_member(path, pickles[0])
    region = Region(path, order != sys.byteorder)

    def find(key: str, nbytes: int) -> Source:
        member = members.get(f"{prefix}data/{key}")
        if member is None:
            raise CheckpointError("the values of 1 tensors are not in the archive")
        if nbytes > member.size:
            raise CheckpointError(f"{member.name}: expected {nbytes} bytes, found {member.size}")
        return region.locate(member.name, member.start, member.size, member.checksum)

    return _run(saved, account, _Storages(region, find, len(members)))


def open_legacy(path: Path, account: Account) -> Saved:
    """What torch saved before it wrote archives: five pickles, and then the values."""
    size = path.stat().st_size
    region = Region(path, sys.byteorder != "little")
    machine = Machine(region.data, Account(size), _MAKERS, BUILDERS, storages := _Storages())
    magic, version, system = machine.run(), machine.run(), machine.run()
    if type(magic) is not int or version != 1001 or not isinstance(system, dict):
        raise CheckpointError("expected a file written by torch.save, found something else")
    if system.get("little_endian") is not True:
        raise CheckpointError("expected little-endian numbers, found others")
    begin = machine.at
    machine.run()
    keys = machine.run()
    if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys):
        raise ValueError("the list of tensors is damaged")
    places: dict[str, int] = {}
    at = machine.at
    for key in keys:
        storage = storages.known.get(key) if isinstance(key, str) else None
        if storage is None or at + 8 + storage.nbytes > size:
            raise CheckpointError("its tensors claim more bytes than the file has")
        if int.from_bytes(region.data[at : at + 8], "little") * storage.itemsize != storage.nbytes:
            raise ValueError(f"the file gives two sizes for the storage {key}")
        places[key] = at + 8
        at += 8 + storage.nbytes
    del machine

    def find(key: str, nbytes: int) -> Source:
        if key not in places:
            raise CheckpointError("its tensors claim more bytes than the file has")
        return region.locate(f"storage {key}", places[key], nbytes, 0)

    return _run(region.data, account, _Storages(region, find, len(keys)), begin)


def read_pickle(data: bytes, account: Account) -> Any:
    """The object in a pickle, which may refer to nothing outside of it.

    Raises:
      CheckpointError, ValueError: as `read_archive`.
    """
    return Machine(data, account, _MAKERS, BUILDERS).run()


def _run(data: Any, account: Account, storages: "_Storages", at: int = 0) -> Saved:
    machine = Machine(data, account, _MAKERS, BUILDERS, storages)
    machine.at = at
    return Saved(machine.run(), machine.protocol)


class Region:
    """The map of a file, and the positions of storages in it."""

    def __init__(self, path: Path, is_swapped: bool) -> None:
        self._path, self._is_swapped = path, is_swapped
        with path.open("rb") as file:
            self._stamp = _stamp(file.fileno())
            found = _MAPS.get((path, self._stamp))
            self.data = found or mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _MAPS[path, self._stamp] = self.data

    def locate(self, name: str, start: int, size: int, checksum: int) -> Source:
        """Where some bytes of the file are."""
        return Source(self._path, self._stamp, name, start, size, checksum, self._is_swapped)

    def map(self, source: Source, nbytes: int) -> np.ndarray:
        """Its first bytes, which are not read yet."""
        return np.frombuffer(self.data, np.uint8, nbytes, source.start)


class _Storages:
    """Makes storages of the persistent ids of a pickle; without a region, of their sizes alone."""

    def __init__(
        self,
        region: Region | None = None,
        find: Callable[[str, int], Source] | None = None,
        most: int = 0,
    ) -> None:
        self._region, self._find, self._most = region, find, most
        self.known: dict[str, Storage] = {}

    def __call__(self, machine: Machine, parts: Any) -> Storage:
        if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage":
            raise refuse_object("a reference to something other than values")
        _, kind, key, _, count = parts[:5]
        name = kind.qualname if isinstance(kind, Global) else ""
        if name not in STORAGES or kind.module not in ("torch", "torch.storage"):
            raise refuse_object(kind.name if isinstance(kind, Global) else "values of no kind")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise refuse_object(f"{kind.module} {name}")
        if len(parts) == 6 and parts[5] is not None:
            raise refuse_object("a part of a storage")  # which torch has not written since 0.4
        nbytes = count * STORAGES[name][0]
        if key not in self.known:
            machine.spend(_PER_STORAGE // 8)
            machine.allow(_PER_STORAGE if len(self.known) < self._most else 0)
            self.known[key] = self._make(machine, name, key, nbytes)
        storage = self.known[key]
        if storage.nbytes != nbytes:
            raise ValueError(f"the pickle gives two sizes for the storage {key}")
        return storage

    def _make(self, machine: Machine, kind: str, key: str, nbytes: int) -> Storage:
        if self._region is None or self._find is None:
            return Storage(kind, key, nbytes)
        source = self._find(key, nbytes)
        storage = Storage(kind, key, nbytes, None, source)
        if source.is_swapped and storage.itemsize > 1:
            machine.spend(nbytes)  # there is no array of bfloat16 with the other byte order
            storage.memory = read_storage(storage)
            storage.memory.flags.writeable = False
        elif not source.is_swapped or storage.dtype is not None:
            storage.memory = self._region.map(source, nbytes)
        return storage


def read_tensors(
    tensors: Sequence[Tensor], account: Account | None = None, progress: Progress | None = None
) -> list[np.ndarray]:
    """Copies of tensors in memory, after verifying their checksums.

    Args:
      tensors: from `read_archive` or `open_legacy`. Those that share values will share them.
      account: what the values are charged to.
      progress: called with the number of bytes just read.

    Raises:
      CheckpointError: a checksum is wrong, or the file was changed since.
    """
    storages = {id(tensor.storage): tensor.storage for tensor in tensors}
    wanted = [storage for storage in storages.values() if storage is not None]
    if account is not None:
        account.spend(sum(storage.nbytes for storage in wanted))
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        read: dict[int, np.ndarray] = {}
        for storage, memory in zip(wanted, pool.map(read_storage, wanted), strict=True):
            read[id(storage)] = memory
            if progress:
                progress(memory.nbytes)
    return [_put_upon(tensor, read) for tensor in tensors]


def _put_upon(tensor: Tensor, read: dict[int, np.ndarray]) -> np.ndarray:
    """The tensor as an array, with its values in the memory that was read."""
    storage = tensor.storage
    if storage is None or storage.memory is None or not tensor.size:
        return np.array(tensor, subok=False)
    offset = tensor.ctypes.data - storage.memory.ctypes.data
    return np.ndarray(tensor.shape, tensor.dtype, read[id(storage)], offset, tensor.strides)


def read_storage(storage: Storage) -> np.ndarray:
    """The bytes of a storage, in the machine's byte order, whose checksum is right."""
    source = storage.source
    if source is None:
        assert storage.memory is not None
        return storage.memory
    memory = _allocate(storage.nbytes)
    with source.path.open("rb") as file:
        if _stamp(file.fileno()) != source.stamp:
            raise CheckpointError("the file was changed while it was read", where=source.name)
        file.seek(source.start)
        checksum, view = 0, memory.data
        for at in range(0, storage.nbytes, _BLOCK):
            block = view[at : at + _BLOCK]
            if file.readinto(block) != len(block):
                raise ValueError(f"{source.name} ends too early")
            checksum = zlib.crc32(block, checksum) if source.checksum else 0
        left = source.size - storage.nbytes
        while source.checksum and left and (rest := file.read(min(left, _BLOCK))):
            checksum = zlib.crc32(rest, checksum)
            left -= len(rest)
    if checksum != source.checksum:
        raise ValueError(f"{source.name}: the checksum is wrong")
    if source.is_swapped and storage.itemsize > 1:
        width = storage.itemsize // (2 if "Complex" in storage.kind else 1)
        memory[: storage.nbytes // width * width].view(f"u{width}").byteswap(inplace=True)
    return memory


def _allocate(nbytes: int) -> np.ndarray:
    """Memory in pages of ordinary size: getting large pages may take longer than reading."""
    if nbytes < _LARGE or sys.platform == "win32":
        return np.empty(nbytes, np.uint8)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8)


def _stamp(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
