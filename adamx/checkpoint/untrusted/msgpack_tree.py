"""The tree in an untrusted MessagePack file of Flax, whose arrays stay in the file.

It is not read by the package `msgpack`, which makes every object of a file before a limit can be
checked. Here each node is charged first, and the numbers of an array are read on demand.
"""

import io
import math
from collections.abc import Callable
from struct import calcsize, unpack
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account

__all__ = ["StoredArray", "read_tree"]

Tree = dict[str, Any]  # of trees, StoredArray and, for what is neither, None

_DEEPEST = 64  # nodes within each other
_LONGEST = 4096  # bytes of a key
_MOST_AXES = 32
_PER_NODE = 700  # bytes of memory that a node takes, and a level of its path
_PER_LEVEL = 24
_ARRAY, _SCALAR = 1, 3  # Flax's extension types; 2 is a complex number of Python

# By first byte, what follows a header and the bytes that its size takes.
_SIZED = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_CHUNKED = "__msgpack_chunked_array__"  # beside `shape` and `chunks`, of an array over 1 GiB


class StoredArray(NamedTuple):
    """An array whose numbers are in the file.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      pieces: where its numbers are: starts and lengths in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its numbers."""
        return sum(length for _, length in self.pieces)

    def read(self, file: io.BufferedReader) -> np.ndarray:
        """Read the numbers; their memory is the caller's to charge."""
        data = bytearray(self.nbytes)
        view, at = memoryview(data), 0
        for start, length in self.pieces:
            file.seek(start)
            if file.readinto(view[at : at + length]) != length:
                raise ValueError("the file ends within an array")
            at += length
        return np.ndarray(self.shape, self.dtype, data)


def read_tree(file: io.BufferedReader, size: int, account: Account) -> Tree:
    """The tree in a file of `size` bytes."""
    reader = _Reader(file, size, account)
    tree = reader.read_value(0)
    if reader.left:
        raise CheckpointError(expected="the end of the file", found=f"{reader.left} bytes more")
    if not isinstance(tree, dict):
        raise CheckpointError(expected="a map of names at the top", found="another value")
    return tree


class _Reader:
    """Reads values one after another.

    Attributes:
      left: bytes up to the end of the file, or of the extension that is being read.
    """

    def __init__(self, file: io.BufferedReader, size: int, account: Account) -> None:
        self.file, self.left, self.account = file, size, account

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.claim(count)
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError("the file ends too early")
        return data

    def pass_over(self, count: int) -> None:
        """Leave out the next bytes."""
        self.claim(count)
        self.file.seek(count, io.SEEK_CUR)

    def claim(self, count: int) -> None:
        """Raise if fewer than `count` bytes are left."""
        if count > self.left:
            raise ValueError(f"the file claims {count} more bytes, but has {self.left}")
        self.left -= count

    def read_header(self) -> tuple[str, Any]:
        """The kind of the next value, and its size; of a number and a constant its value."""
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "number", first if first < 0x80 else first - 0x100
        if first < 0xC0:
            kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
            return kind, first & (0x1F if kind == "text" else 0x0F)
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << (first - 0xD4)
        if first in _SIZED:
            kind, width = _SIZED[first]
            return kind, int.from_bytes(self.take(width), "big")
        if first in _NUMBERS:
            code = _NUMBERS[first]
            return "number", unpack(code, self.take(calcsize(code)))[0]
        if first in _CONSTANTS:
            return "constant", _CONSTANTS[first]
        raise ValueError(f"no value begins with {first:#x}")

    def read_value(self, depth: int) -> Any:
        """The next value: a tree, an array, a number, or None for anything else."""
        self.account.spend(_PER_NODE + _PER_LEVEL * depth)
        if depth > _DEEPEST:
            raise CheckpointError(f"its nodes are nested more than {_DEEPEST} deep")
        kind, size = self.read_header()
        if kind == "map":
            return self.read_map(size, depth)
        if kind == "list":
            return {str(i): self.read_value(depth + 1) for i in self.count(size, 1)}
        if kind == "extension":
            return self.read_extension(size)
        if kind in ("bytes", "text"):
            self.pass_over(size)
            return None
        return size

    def count(self, size: int, width: int) -> range:
        """The indices of `size` values of at least `width` bytes each, if so much is left."""
        if size * width > self.left:
            raise ValueError(f"the file claims {size} values in {self.left} bytes")
        return range(size)

    def read_map(self, size: int, depth: int) -> Any:
        """The next values by their keys; of a divided array, the array."""
        tree: Tree = {}
        for _ in self.count(size, 2):
            kind, length = self.read_header()
            if kind != "text" or length > _LONGEST:
                raise CheckpointError(expected="names as keys", found=f"a {kind}")
            self.account.spend(4 * length)
            key = self.take(length).decode()
            if key in tree:
                raise CheckpointError(f"two values are called {key!r}")
            tree[key] = self.read_value(depth + 1)
        return _join(tree) if _CHUNKED in tree else tree

    def read_extension(self, size: int) -> Any:
        """An array of Flax; None for another extension."""
        kind = self.take(1)[0]
        if kind not in (_ARRAY, _SCALAR):
            self.pass_over(size)
            return None
        if size > self.left:
            raise ValueError(f"the file claims an array of {size} bytes in {self.left}")
        outer, self.left = self.left - size, size
        array = self.read_array()
        if self.left:
            raise ValueError(f"{self.left} bytes follow an array")
        self.left = outer
        return array

    def read_array(self) -> StoredArray:
        """The shape, the dtype's name, and where the numbers are."""
        self.expect("list", lambda count: count == 3)
        axes = self.expect("list", lambda count: count <= _MOST_AXES)
        shape = tuple(self.expect("number", _is_axis) for _ in range(axes))
        dtype = _name_dtype(self.take(self.expect("text", lambda count: count <= 32)).decode())
        length = self.expect("bytes", lambda count: count == math.prod(shape) * dtype.itemsize)
        start = self.file.tell()
        self.pass_over(length)
        return StoredArray(shape, dtype, ((start, length),))

    def expect(self, kind: str, is_right: Callable[[Any], bool]) -> Any:
        """The size or value of the next header."""
        found, value = self.read_header()
        if found != kind or not is_right(value):
            raise ValueError(f"an array's description has {found} of {value!r:.30}")
        return value


def _is_axis(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _name_dtype(name: str) -> np.dtype:
    """The dtype of numbers with this name, ml_dtypes' too."""
    if name.isalnum() or name.startswith("float8_"):
        found = getattr(jnp, "bool_" if name == "bool" else name, None)
        dtype = np.dtype(found) if hasattr(found, "dtype") else None
        if dtype is not None and dtype.name == name:
            return dtype
    raise CheckpointError(expected="an array of numbers", found=f"dtype {name!r}")


def _join(tree: Tree) -> StoredArray:
    """The array that Flax has divided into flat ones."""
    axes, parts = _list_values(tree.get("shape")), _list_values(tree.get("chunks"))
    arrays = [part for part in parts if isinstance(part, StoredArray)]
    shape = tuple(axis for axis in axes if _is_axis(axis))
    is_whole = len(arrays) == len(parts) > 0 and len(shape) == len(axes) <= _MOST_AXES
    is_alike = len({array.dtype for array in arrays}) == 1
    if is_whole and is_alike and sum(math.prod(x.shape) for x in arrays) == math.prod(shape):
        pieces = tuple(piece for array in arrays for piece in array.pieces)
        return StoredArray(shape, arrays[0].dtype, pieces)
    raise ValueError("the chunks of an array do not add up to it")


def _list_values(tree: Any) -> list[Any]:
    """The values of what Flax makes of a tuple: a map with its indices as keys."""
    return [tree.get(str(i)) for i in range(len(tree))] if isinstance(tree, dict) else []
