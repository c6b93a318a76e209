"""What `torch.load` unpickles with: it makes tensors and plain values, and calls nothing else.

Beside state dicts people save what their program has: its arguments, paths, a scheduler. For an
object of any class that is not known here there is a placeholder, which keeps nothing of it. No
class is imported, and no function of the file's choice is called. `check_pickle` has gone through
the same pickle before, so that what is called here has arguments that are no trap.

This module is given to `torch.load` as its `pickle_module`, hence the names.
"""

import codecs
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, Self

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.pickle_names import NUMPY_SCALARS, TORCH_OBJECTS

__all__ = ["Placeholder", "Unpickler", "load"]

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_PLAIN = str | bytes | int | float | complex | None  # what takes no time to hash


class Placeholder:
    """Stands for an object of a class that is not known, or for the class; a subclass for each."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Forget the state; and below, the items of a list or a dictionary."""

    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...

    def __reduce_ex__(self, protocol: object) -> Any:
        raise pickle.PicklingError(f"{type(self).__name__} was not read")


class Unpickler(pickle.Unpickler):
    """Knows the functions and classes of state dicts; makes a placeholder of any other."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._placeholders: dict[str, type[Placeholder]] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What a name in the pickle means here."""
        import torch
        import torch._utils

        full = f"{module_name} {global_name}"
        if full in _MAKERS:
            return _MAKERS[full]
        if full in TORCH_OBJECTS:
            modules = {"torch": torch, "torch._utils": torch._utils, "torch.storage": torch.storage}
            return vars(modules.get(module_name, torch.serialization))[global_name]
        # Not by getattr, which imports some of torch's modules.
        value = vars(torch).get(global_name) if module_name == "torch" else None
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return value
        if full not in self._placeholders:
            self._placeholders[full] = _make_placeholder(f"{module_name}.{global_name}")
        return self._placeholders[full]


def load(file: BinaryIO, **options: Any) -> Any:
    """The object in the pickle that begins where `file` stands."""
    return Unpickler(file, **options).load()


def _make_placeholder(name: str) -> type[Placeholder]:
    # Of this module, where nothing has the name: an attempt to pickle it fails and imports nothing.
    return type(name, (Placeholder,), {"__slots__": (), "__module__": __name__})


class _Dtype:
    """The dtype of a NumPy number, as its pickle tells it."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.byte_order = state[1]


def _make_scalar(dtype: object = None, data: object = None, *_: object) -> Any:
    """The NumPy number with these bytes; of other kinds, such as texts and dates, a placeholder."""
    if not isinstance(dtype, _Dtype) or dtype.code not in _NUMBERS or not isinstance(data, bytes):
        return _make_placeholder("numpy.generic")()
    number = np.dtype(dtype.code)
    if len(data) != number.itemsize or dtype.byte_order not in ("<", ">", "|", "="):
        raise CheckpointError(
            f"a NumPy number of dtype {number} takes {number.itemsize} bytes, found {len(data)}"
        )
    return np.frombuffer(data, number.newbyteorder(dtype.byte_order))[0]


def _make_set(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    """A set of texts and numbers; a placeholder for one of what may take forever to hash."""

    def make(items: object = (), *_: object) -> Any:
        if isinstance(items, list | tuple) and all(isinstance(item, _PLAIN) for item in items):
            return kind(items)
        return _make_placeholder(kind.__name__)()

    return make


def _make_ordered(items: Any = (), *_: object) -> OrderedDict[Any, Any]:
    """As torch's state dicts are; Python 2 gave them their items in a list of pairs."""
    for pair in items if isinstance(items, list) else ():
        if not (isinstance(pair, list | tuple) and pair and isinstance(pair[0], _PLAIN)):
            raise CheckpointError("expected texts and numbers as keys, found something else")
    return OrderedDict(items)


def _make_dict(*_: object) -> dict[Any, Any]:
    return {}


_MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs encode": codecs.encode,
    "collections Counter": Counter,
    "collections OrderedDict": _make_ordered,
    "collections defaultdict": _make_dict,
    "numpy dtype": _Dtype,
    **dict.fromkeys(NUMPY_SCALARS, _make_scalar),
}
for _module in ("__builtin__", "builtins"):
    _MAKERS[f"{_module} bytes"] = bytes
    _MAKERS[f"{_module} complex"] = complex
    _MAKERS[f"{_module} set"] = _make_set(set)
    _MAKERS[f"{_module} frozenset"] = _make_set(frozenset)
