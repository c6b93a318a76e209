"""What a machine that runs pickles works with: its data, its stack, and what it remembers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.stand_ins import Global, StandIn

__all__ = ["CONTAINER", "ENTRY", "Stack"]

CONTAINER, ENTRY = 180, 40
"""Bytes of memory that things take in Python, about: a container; an entry."""

# Bytes: an object that the pickle may refer to again; a class; an entry of the table of such
# objects, which other readers have.
_REMEMBERED, _CLASS, _NUMBERED = 100, 400, 16
# Integers below this have hashes of their own. The number of other keys, and of parts of a key, is
# limited, since hashing them may take forever.
_LARGE, _ODD_KEYS, _KEY_PARTS, _KEY_DEPTH = 1 << 60, 5_000, 64, 8
_PLAIN = frozenset([str, bytes, float, bool, type(None), Global, StandIn])


class Stack:
    """The stack of a machine. All that is put on it is charged to an account.

    Attributes:
      at: where in the data the next opcode is.
      protocol: the highest that the pickles name, at least 2.
    """

    def __init__(self, data: Any, account: Account) -> None:
        self.data, self._view, self._account = data, memoryview(data), account
        self.at, self.protocol = 0, 2
        self._globals: dict[str, Global] = {}
        self._odd_keys = 0
        self.begin()

    def begin(self) -> None:
        """Forget all that a pickle put there."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._largest = 0

    def spend(self, count: int) -> None:
        """Charge bytes of memory."""
        self._account.spend(count)

    def allow(self, count: int) -> None:
        """Grant more of them."""
        self._account.allow(count)

    def check_key(self, key: Any) -> None:
        """Raise unless it can be hashed quickly."""
        if type(key) in _PLAIN or (type(key) is int and -_LARGE < key < _LARGE):
            return
        if type(key).__hash__ is object.__hash__:
            return
        self._odd_keys += 1
        if self._odd_keys > _ODD_KEYS or _measure_key(key, _KEY_DEPTH) > _KEY_PARTS:
            raise CheckpointError("expected strings and numbers as keys, found something else")

    # The stack.

    def push(self, value: Any, cost: int = 8) -> None:
        """Put a value on the stack."""
        self._account.spend(cost)
        self._stack.append(value)

    def pop(self) -> Any:
        """Take off a value."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("the pickle takes more from its stack than it holds")
        return self._stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        """Take off several; in the order in which they were put."""
        return [self.pop() for _ in range(count)][::-1]

    def drop(self) -> None:
        """Take off a value, or a mark that has nothing above it."""
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self.pop()

    def pop_mark(self) -> list[Any]:
        """Take off a mark and what is above it."""
        if not self._marks:
            raise ValueError("the pickle goes back to a mark that is not there")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def mark(self) -> None:
        """Put on a mark."""
        self._account.spend(CONTAINER)
        self._marks.append(len(self._stack))

    def put(self, index: int) -> None:
        """Remember the value on top under a number."""
        self._account.spend(_REMEMBERED + _NUMBERED * max(0, index - self._largest))
        self._largest = max(index, self._largest)
        value = self.pop()
        self._stack.append(value)
        self._memo[index] = value
        if isinstance(value, StandIn):
            value.place = index

    def get(self, index: int) -> None:
        """Put on what is remembered under a number."""
        if index not in self._memo:
            raise ValueError(f"the pickle refers to entry {index} of its memo, which is not set")
        self.push(self._memo[index])

    # The data.

    def take(self, count: int) -> bytes:
        """The next bytes of the data."""
        start, self.at = self.at, self.at + count
        if count < 0 or self.at > len(self.data):
            raise ValueError("the pickle ends too early")
        return self.data[start : self.at]

    def integer(self, count: int) -> int:
        """The next bytes as a whole number."""
        return int.from_bytes(self.take(count), "little")

    def text(self, count: int) -> None:
        """Put on the text in the next bytes."""
        end = self.at + count
        if end > len(self.data):
            raise ValueError("the pickle ends too early")
        part = self._view[self.at : end]
        largest = int(np.frombuffer(part, np.uint8).max()) if count else 0
        # One to four bytes of memory for each letter, and what is taken on the way to it.
        width = 1 if largest < 0x80 else 2 if largest < 0xC4 else 3 if largest < 0xF0 else 6
        self._account.spend(2 * ENTRY + width * count)
        self.at = end
        self.push(str(part, "utf-8", "surrogatepass"))

    def binary(self, count: int, kind: Callable[[bytes], Any] = bytes) -> None:
        """Put on the next bytes."""
        self._account.spend(ENTRY + min(count, len(self.data)))
        self.push(kind(self.take(count)))

    def old_text(self) -> None:
        """A text of Python 2."""
        text = self.take(self.integer(1))
        try:
            self.push(text.decode(), 2 * ENTRY + 5 * len(text))
        except UnicodeDecodeError:
            self.push(text, 2 * ENTRY)

    def whole_number(self, count: int) -> None:
        """Put on the number in the next bytes."""
        self._account.spend(2 * ENTRY + 2 * min(count, len(self.data)))
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def named(self) -> None:
        """Put on what two lines of text name."""
        names: list[str] = []
        for _ in range(2):
            end = self.data.find(b"\n", self.at, self.at + 200)
            if end < 0:
                raise ValueError("the pickle has a name that does not end")
            names.append(self.take(end - self.at).decode())
            self.at += 1
        self._name(*names)

    def named_by_texts(self) -> None:
        """Put on what two texts on the stack name."""
        module, name = self.pop_many(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle has a name that is not a string")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        full = f"{module} {name}"
        if full not in self._globals:
            self._account.spend(_CLASS + 6 * len(full))
            self._globals[full] = Global(module, name)
        self.push(self._globals[full])


def _measure_key(key: Any, deepest: int) -> int:
    """How many parts are hashed for a key; a large number if that is unknown."""
    if isinstance(key, int):
        return 1 + key.bit_length() // 1024
    if isinstance(key, complex | np.number | np.bool_) or type(key) in _PLAIN:
        return 1
    if type(key).__hash__ is object.__hash__:
        return 1
    if not isinstance(key, tuple | frozenset) or not deepest or len(key) > _KEY_PARTS:
        return 1 + _KEY_PARTS
    parts = 1
    for part in key:
        parts += _measure_key(part, deepest - 1)
        if parts > _KEY_PARTS:
            break
    return parts
