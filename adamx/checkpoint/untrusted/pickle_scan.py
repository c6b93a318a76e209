"""What a pickle of `torch.save` would make, found out without making it.

An unpickler that executes nothing still takes memory for any number that a pickle names, believes
what it says of a storage's size, and hashes whatever is a key, however long that takes. So a pickle
is gone through first, by the opcodes of protocol 2, which torch writes. Tensors, numbers, texts and
containers are looked at; an object of any other class is passed over, and so the unpickler makes a
placeholder of it.
"""

import os
import pickle
import re
from collections.abc import Callable, Sequence
from struct import unpack
from typing import Any, BinaryIO, NamedTuple

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.pickle_names import (
    BYTES,
    COMPLEX,
    CONTAINERS,
    ITEM_SIZES,
    NUMPY_SCALARS,
    OBJECTS,
    REFUSED,
    SETS,
    TENSORS,
)

__all__ = ["check_pickle", "refuse_object"]

# Bytes of memory that things take in Python, about: a container, with a note that it was looked at;
# an entry; what the pickle may refer to again; a tensor, beside its values.
_CONTAINER, _ENTRY, _REMEMBERED, _TENSOR = 180, 40, 100, 4_000
# A class that stands for an unknown one; an entry of the unpickler's table of what it remembers.
_CLASS, _NUMBERED = 2_000, 16


class _Tuple(NamedTuple):
    parts: Sequence[Any]


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    length: int  # in values


class _Made(NamedTuple):
    kind: str


_LIST, _DICT, _SET, _OBJECT = map(_Made, ("list", "dict", "set", "object"))
_SIZE, _UNKNOWN = _Made("a tuple, in effect"), _Made("placeholder")


def check_pickle(file: BinaryIO, account: Account, most: int) -> dict[str, int]:
    """Go through the pickle that begins where `file` stands, to its end.

    Args:
      file: a binary stream that can seek.
      account: of the memory that may be taken.
      most: how many storages there can be.

    Returns:
      The bytes of each storage that it refers to, by its key.

    Raises:
      CheckpointError: it would call or make what no state dict holds, or take too much memory.
    """
    machine = _Machine(file, account, most)
    machine.run()
    return machine.storages


class _Machine:
    """The weights-only unpickler, with a stack of what things are instead of things."""

    def __init__(self, file: BinaryIO, account: Account, most: int) -> None:
        self._file, self._account, self._most = file, account, most
        here = file.tell()
        self._end = file.seek(0, os.SEEK_END)
        file.seek(here)
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._largest = 0
        self._names: set[str] = set()
        self.storages: dict[str, int] = {}

    def run(self) -> None:
        while (opcode := self.read(1)) != pickle.STOP:
            if opcode not in _STEPS:
                raise CheckpointError(
                    f"expected a pickle of protocol 2, as torch.save writes it, found {opcode!r}"
                )
            _STEPS[opcode](self)

    def read(self, count: int) -> bytes:
        if self._file.tell() + count > self._end:
            raise ValueError("the pickle ends too early")
        return self._file.read(count)

    def integer(self, count: int) -> int:
        return int.from_bytes(self.read(count), "little")

    def push(self, value: Any, cost: int = 8) -> None:
        self._account.spend(cost)
        self._stack.append(value)

    def pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("the pickle takes more from its stack than is there")
        return self._stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("the pickle goes back to a mark that is not there")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def mark(self) -> None:
        self._account.spend(_CONTAINER)
        self._marks.append(len(self._stack))

    def put(self, index: int) -> None:
        self._account.spend(_REMEMBERED + _NUMBERED * max(0, index - self._largest))
        self._largest = max(index, self._largest)
        value = self.pop()
        self._memo[index] = value
        self._stack.append(value)

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def text(self) -> None:
        text = self.read(self.integer(4))
        self._account.spend(_ENTRY + len(text) * (1 if text.isascii() else 5))
        self.push(text.decode("utf-8", "surrogatepass"))

    def name(self) -> None:
        module, name = (self._file.readline(200).decode() for _ in range(2))
        if not (module.endswith("\n") and name.endswith("\n")):
            raise ValueError("the pickle names something without end")
        full = f"{module[:-1]} {name[:-1]}"
        self.push(_Global(full), _CONTAINER if full in self._names else _CLASS)
        self._names.add(full)

    def tuple_of(self, values: list[Any]) -> None:
        self.push(_Tuple(values), _CONTAINER + 8 * len(values))

    def append(self, values: list[Any]) -> None:
        self._into((_LIST, _UNKNOWN), 8 * len(values))

    def set_items(self, values: list[Any]) -> None:
        for key in values[::2]:
            is_plain = isinstance(key, str | bytes | int | float | _Global | None)
            if not is_plain and key is not _UNKNOWN and key is not _OBJECT:
                raise CheckpointError("expected texts and numbers as keys, found something else")
        self._into((_DICT, _UNKNOWN), _CONTAINER * len(values))

    def build(self) -> None:
        """Give an object its state: of a placeholder any, which it forgets."""
        state = self.pop()
        if state is not _DICT and not (self._stack and self._stack[-1] is _UNKNOWN):
            raise refuse_object("an object with a state")
        self._into((_DICT, _UNKNOWN), 0)

    def storage(self) -> None:
        """A persistent id, which is all that refers to something outside of the pickle."""
        parts = _parts(self.pop())
        if len(parts) not in (5, 6) or parts[0] != "storage" or not isinstance(parts[1], _Global):
            raise refuse_object("a reference to something else than values")
        _, kind, key, _, count = parts[:5]
        if kind.name not in ITEM_SIZES or not isinstance(key, str) or not _is_size(count):
            raise refuse_object(kind.name)
        nbytes = count * ITEM_SIZES[kind.name]
        if key not in self.storages:
            self._account.spend(nbytes)
            self._account.allow(_TENSOR if len(self.storages) < self._most else 0)
        if self.storages.setdefault(key, nbytes) != nbytes:
            raise ValueError(f"the pickle tells two sizes of the storage {key}")
        if len(parts) == 6 and parts[5] is not None:
            raise refuse_object("a part of a storage")  # which torch has not written since 0.4
        self.push(_Storage(count))

    def new(self) -> None:
        self.pop()
        self._pass_over(_name(self.pop()))

    def call(self) -> None:
        parts = _parts(self.pop())
        name = _name(self.pop())
        if name in TENSORS:
            _check_tensor(parts)
            self.push(_OBJECT)
        elif name in CONTAINERS and all(_is_of_items(name, part) for part in parts):
            self.push(_DICT, _CONTAINER)
        elif name == "torch Size":
            self.push(_SIZE, _CONTAINER)
        elif name in OBJECTS or name in NUMPY_SCALARS:
            self.push(_OBJECT, _CONTAINER)
        elif name in SETS and len(parts) < 2:
            self.push(_OBJECT, 4 * _CONTAINER)
        elif name in COMPLEX and all(isinstance(part, int | float) for part in parts):
            self.push(1j, _ENTRY)
        elif name in BYTES and not parts:
            self.push(b"", _ENTRY)
        elif name == "_codecs encode" and parts[1:] == ["latin1"] and isinstance(parts[0], str):
            self.push(b"", 2 * len(parts[0]) + _ENTRY)
        else:
            self._pass_over(name)

    def _pass_over(self, name: str) -> None:
        """Go on without an object of another class; refuse what was made to do harm."""
        module = name.partition(" ")[0]
        if not name or module in REFUSED or name in (*CONTAINERS, "_codecs encode"):
            raise refuse_object(name or "something without a name")
        self.push(_UNKNOWN, _CONTAINER)

    def _into(self, kinds: tuple[_Made, ...], cost: int) -> None:
        if not self._stack or not any(self._stack[-1] is kind for kind in kinds):
            raise ValueError("the pickle puts something into what is no container")
        self._account.spend(cost)


_STEPS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.PROTO: lambda m: m.integer(1),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.BININT: lambda m: m.push(unpack("<i", m.read(4))[0], _ENTRY),
    pickle.BININT1: lambda m: m.push(m.integer(1)),
    pickle.BININT2: lambda m: m.push(m.integer(2), _ENTRY),
    pickle.LONG1: lambda m: m.push(pickle.decode_long(m.read(m.integer(1))), 2 * _ENTRY),
    pickle.BINFLOAT: lambda m: m.push(unpack(">d", m.read(8))[0], _ENTRY),
    pickle.BINUNICODE: _Machine.text,
    pickle.SHORT_BINSTRING: lambda m: m.push(m.read(m.integer(1)), 2 * _ENTRY),
    pickle.EMPTY_LIST: lambda m: m.push(_LIST, _CONTAINER),
    pickle.EMPTY_DICT: lambda m: m.push(_DICT, _CONTAINER),
    pickle.EMPTY_SET: lambda m: m.push(_SET, 4 * _CONTAINER),
    pickle.EMPTY_TUPLE: lambda m: m.push(_Tuple(())),
    pickle.MARK: _Machine.mark,
    pickle.TUPLE: lambda m: m.tuple_of(m.pop_mark()),
    pickle.TUPLE1: lambda m: m.tuple_of(m.pop_many(1)),
    pickle.TUPLE2: lambda m: m.tuple_of(m.pop_many(2)),
    pickle.TUPLE3: lambda m: m.tuple_of(m.pop_many(3)),
    pickle.APPEND: lambda m: m.append(m.pop_many(1)),
    pickle.APPENDS: lambda m: m.append(m.pop_mark()),
    pickle.SETITEM: lambda m: m.set_items(m.pop_many(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.BINPUT: lambda m: m.put(m.integer(1)),
    pickle.LONG_BINPUT: lambda m: m.put(m.integer(4)),
    pickle.BINGET: lambda m: m.get(m.integer(1)),
    pickle.LONG_BINGET: lambda m: m.get(m.integer(4)),
    pickle.GLOBAL: _Machine.name,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.new,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.storage,
}


def _check_tensor(arguments: Sequence[Any]) -> None:
    """Raise unless all values of a tensor are in its storage."""
    if len(arguments) < 4:
        raise ValueError("a tensor without a shape")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = _parts(shape), _parts(strides)
    if len(shape) != len(strides) or not all(map(_is_size, [offset, *shape, *strides])):
        raise ValueError("a tensor whose shape is none")
    needed = 1 + offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    dtype = arguments[6] if len(arguments) > 6 else None
    if isinstance(dtype, _Global):  # version 3: the storage is of bytes
        bits = re.search(r"\d+", dtype.name)
        needed *= max(int(bits[0]) // 8, 1) if bits else 1
    if all(shape) and needed > storage.length:
        raise CheckpointError(
            f"a tensor of shape {tuple(shape)} claims {needed} values of {storage.length}"
        )


def _name(value: Any) -> str:
    return value.name if isinstance(value, _Global) else ""


def _parts(value: Any) -> Sequence[Any]:
    return value.parts if isinstance(value, _Tuple) else []


def _is_of_items(name: str, part: Any) -> bool:
    """Whether a container may be made of it: its keys were or will be looked at."""
    return part is _DICT or isinstance(part, _Global) or (part is _LIST and "Ordered" in name)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def refuse_object(
    name: str, expected: str = "tensors in plain dictionaries and lists"
) -> CheckpointError:
    """The error for what no state dict holds, and what is therefore not made."""
    return CheckpointError(
        expected=expected,
        found=name,
        remedy="Other objects are not loaded, since loading them may execute code. Save the state "
        "dicts alone: torch.save({'model': model.state_dict(), 'optimizer': "
        "optimizer.state_dict()}, path)",
    )
