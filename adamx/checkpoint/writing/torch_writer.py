"""Archives as `torch.save` writes them, written without torch.

A stand-in is pickled as the object that it stands for: nothing is imported here, and torch gets the
real object when it loads the file.
"""

import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Progress
from adamx.checkpoint.untrusted.stand_ins import FactoryDict, Global, Size, StandIn
from adamx.checkpoint.untrusted.torch_archive import read_storage
from adamx.checkpoint.untrusted.torch_tensors import Storage, Tensor, TensorStandIn

__all__ = ["write_archive", "write_pickle"]

_FOLDER = "archive"
_VERSION = b"3\n"  # of the form of archives
_ALIGNMENT = 64  # bytes, so that values can be mapped
_PADDING = b"FB"  # torch's own kind of extra field for it
_HEADER, _EXTRA, _EXTRA_64 = 30, 4, 20  # bytes, as zip archives have them
_LARGEST = 1 << 30  # bytes of a member without a header for more
_BLOCK = 1 << 22


def write_archive(
    file: Path | IO[bytes],
    value: Any,
    *,
    protocol: int = 2,
    progress: Progress | None = None,
) -> None:
    """Write an object that `torch.load` reads.

    Args:
      file: where it is to be; nothing may be before it there.
      value: what `torch_archive` returns, with tensors of `make_tensor` in it.
      protocol: of the pickle. `torch.load(weights_only=True)` reads 2 alone.
      progress: called with the number of bytes just written.

    Raises:
      CheckpointError: a part of it has no values to write, or a checksum of it is wrong.
    """
    content, storages = _pickle(value, protocol)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, "data.pkl", content, None)
        _write_member(archive, "byteorder", memoryview(sys.byteorder.encode()), None)
        for key, storage in enumerate(storages):
            memory = read_storage(storage)
            _write_member(archive, f"data/{key}", memory.data, progress)
        _write_member(archive, "version", memoryview(_VERSION), None)


def write_pickle(path: Path, value: Any, *, protocol: int) -> None:
    """Write an object without tensors as `pickle.dump` does."""
    content, storages = _pickle(value, protocol)
    assert not storages
    path.write_bytes(content)


def _pickle(value: Any, protocol: int) -> tuple[memoryview, list[Storage]]:
    """A pickle, and the storages that it refers to, in the order of their numbers."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol)
    try:
        pickler.dump(value)
    except RecursionError as error:
        raise CheckpointError("containers are nested too deeply") from error
    return stream.getbuffer(), list(pickler.storages)


def _write_member(
    archive: zipfile.ZipFile, name: str, content: memoryview, progress: Progress | None
) -> None:
    """Add a member that begins at a multiple of the alignment."""
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    is_large = content.nbytes > _LARGEST
    assert archive.fp is not None
    start = archive.fp.tell() + _HEADER + len(info.filename) + _EXTRA
    padding = -(start + (_EXTRA_64 if is_large else 0)) % _ALIGNMENT
    info.extra = _PADDING + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(info, "w", force_zip64=is_large) as member:
        for at in range(0, content.nbytes, _BLOCK):
            block = content[at : at + _BLOCK]
            member.write(block)
            if progress:
                progress(block.nbytes)


_PythonPickler: Any = pickle._Pickler  # type stubs know little of it


class _Pickler(_PythonPickler):
    """Python's pickler as it is written in Python, which knows the stand-ins too."""

    def __init__(self, stream: io.BytesIO, protocol: int) -> None:
        super().__init__(stream, protocol)
        self.storages: dict[Storage, tuple[Any, ...]] = {}

    def persistent_id(self, obj: Any) -> Any:
        """How the pickle refers to a storage."""
        if not isinstance(obj, Storage):
            return None
        if obj.memory is None:
            raise CheckpointError("a tensor of the template has no values to write")
        if obj not in self.storages:
            module = "torch.storage" if obj.kind == "UntypedStorage" else "torch"
            count = obj.nbytes // obj.itemsize
            key = str(len(self.storages))
            self.storages[obj] = ("storage", Global(module, obj.kind), key, "cpu", count)
        return self.storages[obj]

    def save_named(self, obj: Global) -> None:
        """Save what a pickle names by module and name."""
        parent, _, name = obj.qualname.rpartition(".")
        if self.proto >= 4:
            self.save(obj.module)
            self.save(obj.qualname)
            self.write(pickle.STACK_GLOBAL)
        elif parent:
            self.save(Global("__builtin__", "getattr"))
            self.save((Global(obj.module, parent), name))
            self.write(pickle.REDUCE)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.qualname}\n".encode())
        self.memoize(obj)

    def save_stand_in(self, obj: StandIn) -> None:
        """Save the call that makes the object that it stands for, and the object's state."""
        self.save(obj.function)
        self.save(obj.arguments)
        if obj.options is not None:
            self.save(obj.options)
            self.write(pickle.NEWOBJ_EX)
        else:
            self.write(pickle.NEWOBJ if obj.is_new else pickle.REDUCE)
        self.memoize(obj)
        if obj.items:
            self.write(pickle.MARK)
            for item in obj.items:
                self.save(item)
            self.write(pickle.APPENDS)
        self._save_pairs(obj.pairs)
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    def save_tensor(self, obj: Tensor) -> None:
        """Save what makes a tensor."""
        if obj.call is None:
            raise CheckpointError("a part of a tensor is not a tensor of the file")
        self.save(obj.call)

    def save_size(self, obj: Size) -> None:
        """Save a `torch.Size`."""
        self.save(Global("torch", "Size"))
        self.save((tuple(obj),))
        self.write(pickle.REDUCE)
        self.memoize(obj)

    def save_factory_dict(self, obj: FactoryDict) -> None:
        """Save a `collections.defaultdict`."""
        self.save(Global("collections", "defaultdict"))
        self.save(() if obj.factory is None else (obj.factory,))
        self.write(pickle.REDUCE)
        self.memoize(obj)
        self._save_pairs(list(obj.items()))

    def _save_pairs(self, pairs: Any) -> None:
        if not pairs:
            return
        self.write(pickle.MARK)
        for key, value in pairs:
            self.save(key)
            self.save(value)
        self.write(pickle.SETITEMS)

    dispatch = {  # noqa: RUF012 - as in the class above
        **_PythonPickler.dispatch,
        FactoryDict: save_factory_dict,
        Global: save_named,
        Size: save_size,
        StandIn: save_stand_in,
        Tensor: save_tensor,
        TensorStandIn: save_stand_in,
    }
