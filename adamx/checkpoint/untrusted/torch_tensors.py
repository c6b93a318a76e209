"""torch's tensors as NumPy arrays: what a pickle says of them, and where their values are."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.stand_ins import Global, StandIn

__all__ = [
    "STORAGES",
    "Source",
    "Storage",
    "Tensor",
    "TensorStandIn",
    "find_dtype",
    "is_shape",
    "make_tensor",
]

STORAGES: dict[str, tuple[int, str | None]] = {
    "DoubleStorage": (8, "float64"),
    "FloatStorage": (4, "float32"),
    "HalfStorage": (2, "float16"),
    "BFloat16Storage": (2, "bfloat16"),
    "LongStorage": (8, "int64"),
    "IntStorage": (4, "int32"),
    "ShortStorage": (2, "int16"),
    "CharStorage": (1, "int8"),
    "ByteStorage": (1, "uint8"),
    "BoolStorage": (1, "bool"),
    "ComplexFloatStorage": (8, "complex64"),
    "ComplexDoubleStorage": (16, "complex128"),
    "QInt8Storage": (1, None),
    "QUInt8Storage": (1, None),
    "QInt32Storage": (4, None),
    "QUInt4x2Storage": (1, None),
    "QUInt2x4Storage": (1, None),
    "UntypedStorage": (1, None),
}
"""By the kind of a storage, the bytes of a value, and its dtype; None where a tensor tells it."""

_NUMPY = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64"
_DTYPES = {name: np.dtype(name) for name in (*_NUMPY.split(), "complex128")}
_DTYPES |= {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", *(n for n in dir(ml_dtypes) if n.startswith("float8_")))
}


def find_dtype(name: str | None) -> np.dtype[Any] | None:
    """NumPy's dtype for torch's, such as "bfloat16"; or None."""
    return _DTYPES.get(name or "")


class Source(NamedTuple):
    """Where the bytes of a storage are.

    Attributes:
      path: of the file.
      stamp: which file it was, of what size and age.
      name: of the member in an archive; for errors.
      start: of the first byte in the file.
      size: how many bytes the checksum covers.
      checksum: CRC-32, or 0 if there is none.
      is_swapped: whether values have the other byte order.
    """

    path: Path
    stamp: tuple[int, ...]
    name: str
    start: int
    size: int
    checksum: int
    is_swapped: bool


class Storage:
    """A block of values, which several tensors may share.

    Attributes:
      kind: such as "FloatStorage".
      key: what the file calls it.
      itemsize: bytes of a value.
      dtype: of the values, or None where each tensor tells it.
      memory: the bytes; None while nothing is known but their number.
      nbytes: how many.
      source: where they come from, or None.
    """

    __slots__ = ("dtype", "itemsize", "key", "kind", "memory", "nbytes", "source")

    def __init__(
        self,
        kind: str,
        key: str,
        nbytes: int,
        memory: np.ndarray | None = None,
        source: Source | None = None,
    ) -> None:
        self.kind, self.key, self.nbytes = kind, key, nbytes
        self.itemsize, name = STORAGES[kind]
        self.dtype = find_dtype(name)
        self.memory, self.source = memory, source


class Tensor(np.ndarray):
    """The values of a tensor, mapped from the file: they are read-only and not verified.

    `torch_archive.read_tensors` makes verified copies.

    Attributes:
      call: what made the tensor, as a stand-in; None for a part of one.
      storage: its storage.
    """

    __slots__ = ("call", "storage")

    call: StandIn | None
    storage: Storage | None

    # As in torch, a tensor is hashed by its identity, whatever its values are.
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __array_finalize__(self, other: object) -> None:
        """Forget where a part comes from."""
        self.call = self.storage = None


class TensorStandIn(StandIn):
    """Stands for a tensor without values of its own in the file, or that NumPy cannot hold.

    Attributes:
      problem: what kind of tensor it is.
      shape: of it, if that is known.
      dtype: NumPy's for it, or None.
    """

    __slots__ = ("dtype", "problem", "shape")

    def __init__(
        self,
        function: Global,
        arguments: tuple[Any, ...],
        problem: str,
        shape: Any = (),
        dtype: Any = None,
    ) -> None:
        super().__init__(function, arguments)
        self.problem = problem
        self.shape = shape if is_shape(shape) else ()
        self.dtype = find_dtype(dtype.qualname) if isinstance(dtype, Global) else None


def make_tensor(array: np.ndarray) -> Tensor:
    """A contiguous tensor with the values of an array, to be written.

    Raises:
      CheckpointError: torch has no such dtype.
    """
    names = [name for name, dtype in _DTYPES.items() if dtype == array.dtype]
    if not names:
        raise CheckpointError(
            expected="a dtype of torch",
            found=array.dtype,
            remedy="convert it",
            argument="checkpoint",
        )
    array = np.asarray(array, order="C")
    kinds = [kind for kind, (_, name) in STORAGES.items() if name == names[0]]
    kind = kinds[0] if kinds else "UntypedStorage"
    storage = Storage(kind, "", array.nbytes, array.reshape(-1).view(np.uint8))
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    parts: tuple[Any, ...] = (storage, 0, array.shape, strides, False, OrderedDict())
    function = "_rebuild_tensor_v2"
    if not kinds:
        function, parts = "_rebuild_tensor_v3", (*parts, Global("torch", names[0]))
    tensor = array.view(Tensor)
    tensor.call, tensor.storage = StandIn(Global("torch._utils", function), parts), storage
    return tensor


def is_shape(value: Any) -> bool:
    """Whether it is a tuple of sizes."""
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)
