"""What a machine for pickles makes by itself: Python's values, and NumPy's numbers and arrays."""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.pickle_machine import Builder, Machine, Maker
from adamx.checkpoint.untrusted.pickle_names import refuse_object
from adamx.checkpoint.untrusted.pickle_stack import CONTAINER, ENTRY
from adamx.checkpoint.untrusted.stand_ins import FactoryDict, Global, StandIn

__all__ = ["BUILDERS", "MAKERS"]

# Kinds of number and text, without those that are made of other kinds or refer to Python objects.
_CODE = re.compile(r"[biufcSU]\d{1,9}|[?]")
_ML_DTYPES = frozenset(
    name for name in dir(ml_dtypes) if isinstance(getattr(ml_dtypes, name), type)
)
_MOST_DIMENSIONS, _LARGEST_DIMENSION = 32, 1 << 40  # NumPy's own limits are at least these
_LATIN = ("latin1", "latin-1")


def _refuse(function: Global) -> CheckpointError:
    return refuse_object(f"{function.module} {function.qualname}")


def _encode(machine: Machine, function: Global, parts: tuple[Any, ...]) -> bytes:
    """Bytes, as protocol 2 encodes them."""
    if len(parts) != 2 or not isinstance(parts[0], str) or parts[1] not in _LATIN:
        raise _refuse(function)
    machine.spend(len(parts[0]) + ENTRY)
    return parts[0].encode("latin1")


def _make_bytes(machine: Machine, function: Global, parts: tuple[Any, ...]) -> bytes:
    del machine
    if parts:
        raise _refuse(function)
    return b""


def _make_bytearray(machine: Machine, function: Global, parts: tuple[Any, ...]) -> bytearray:
    if len(parts) == 1 and isinstance(parts[0], bytes):
        machine.spend(len(parts[0]))
        return bytearray(parts[0])
    return bytearray(_encode(machine, function, parts) if parts else b"")


def _make_complex(machine: Machine, function: Global, parts: tuple[Any, ...]) -> complex:
    del machine
    if not all(isinstance(part, int | float) for part in parts):
        raise _refuse(function)
    return complex(*parts)


def _make_set(kind: Callable[[Any], Any]) -> Maker:
    def make(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
        items = parts[0] if parts else []
        if len(parts) > 1 or not isinstance(items, list | tuple):
            raise _refuse(function)
        machine.spend((4 + len(items)) * CONTAINER)
        for item in items:
            machine.check_key(item)
        return kind(items)

    return make


def _make_ordered(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    """As torch's state dicts are; Python 2 gave them their items in a list of pairs."""
    items = parts[0] if parts else []
    if len(parts) > 1 or not isinstance(items, list | dict):
        raise _refuse(function)
    machine.spend((1 + len(items)) * CONTAINER)
    for pair in items if isinstance(items, list) else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("an ordered dictionary of items that are not pairs")
        machine.check_key(pair[0])
    return OrderedDict(items)


def _make_counter(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    items = parts[0] if parts else {}
    if len(parts) > 1 or not isinstance(items, dict):
        raise _refuse(function)
    machine.spend((1 + len(items)) * CONTAINER)
    return Counter(items)


def _make_factory_dict(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    del machine
    factory = parts[0] if parts else None
    if len(parts) > 1 or not isinstance(factory, Global | StandIn | None):
        raise _refuse(function)
    return FactoryDict(factory)


def _make_scalar(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    """The NumPy number with these bytes; of other kinds, such as texts and dates, a stand-in."""
    del machine
    dtype, data = parts if len(parts) == 2 else (None, None)
    if not isinstance(dtype, np.dtype) or dtype.kind in "SU" or not isinstance(data, bytes):
        return StandIn(function, parts)
    if len(data) != dtype.itemsize:
        raise CheckpointError(
            f"a NumPy number of dtype {dtype} takes {dtype.itemsize} bytes, found {len(data)}"
        )
    return np.frombuffer(data, dtype)[0]


def _build_dtype(machine: Machine, stand_in: StandIn, state: Any) -> np.dtype[Any] | None:
    """The dtype of numbers and texts; the state has the byte order."""
    del machine
    parts = stand_in.arguments
    code = parts[0] if isinstance(parts, tuple) and parts else None
    if not isinstance(state, tuple) or len(state) < 2:
        raise ValueError("a NumPy dtype without its state")
    if isinstance(code, Global) and code.module == "ml_dtypes" and code.qualname in _ML_DTYPES:
        return np.dtype(getattr(ml_dtypes, code.qualname))
    if not isinstance(code, str) or not _CODE.fullmatch(code) or any(state[2:5]):
        return None
    if state[1] not in ("<", ">", "|", "="):
        raise CheckpointError(f"a NumPy dtype has no byte order {state[1]!r:.20}")
    try:
        return np.dtype(code).newbyteorder(state[1])
    except TypeError:  # such as f3
        return None


def _make_array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray | None:
    """The array with these bytes; None if it is of other things than numbers and texts."""
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes | bytearray):
        return None
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS or order not in ("C", "F"):
        return None
    if not all(type(n) is int and 0 <= n < _LARGEST_DIMENSION for n in shape):
        return None
    if not dtype.itemsize or not math.prod(shape):
        return None
    if math.prod(shape) * dtype.itemsize != len(data):
        raise CheckpointError(
            f"a NumPy array of shape {shape} and dtype {dtype} takes "
            f"{math.prod(shape) * dtype.itemsize} bytes, found {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _build_array(machine: Machine, stand_in: StandIn, state: Any) -> np.ndarray | None:
    del machine
    parts = stand_in.arguments
    kind = parts[0] if isinstance(parts, tuple) and parts else None
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        return None
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, is_transposed, data = state
    return _make_array(data, dtype, shape, "F" if is_transposed is True else "C")


def _make_array_of_buffer(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    del machine
    array = _make_array(*parts) if len(parts) == 4 else None
    return StandIn(function, parts) if array is None else array


MAKERS: dict[str, Maker] = {
    "_codecs.encode": _encode,
    "collections.Counter": _make_counter,
    "collections.OrderedDict": _make_ordered,
    "collections.defaultdict": _make_factory_dict,
}
"""By the name of a function, what is called in its stead."""

BUILDERS: dict[str, Builder] = {"numpy.dtype": _build_dtype}
"""By the name of a stand-in, what takes its place once it gets its state."""

for _module in ("__builtin__", "builtins"):
    MAKERS[f"{_module}.bytes"] = _make_bytes
    MAKERS[f"{_module}.bytearray"] = _make_bytearray
    MAKERS[f"{_module}.complex"] = _make_complex
    MAKERS[f"{_module}.set"] = _make_set(set)
    MAKERS[f"{_module}.frozenset"] = _make_set(frozenset)
for _module in ("numpy.core", "numpy._core"):
    MAKERS[f"{_module}.multiarray.scalar"] = _make_scalar
    MAKERS[f"{_module}.numeric._frombuffer"] = _make_array_of_buffer
    BUILDERS[f"{_module}.multiarray._reconstruct"] = _build_array
