"""States of JAX programs as `flax.serialization.to_bytes` writes them."""

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.format import FileFormat, Head, Source, register
from adamx.checkpoint.formats._array_trees import Leaf, outline
from adamx.checkpoint.formats._state_trees import read_state
from adamx.checkpoint.formats._tree_paths import Path
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.msgpack_tree import StoredArray, read_tree

__all__ = ["FlaxMsgpack"]


class FlaxMsgpack(FileFormat):
    """A `TrainState`, an optimizer's state, or a dictionary that holds one."""

    name = "flax"
    title = "Flax, to_bytes"
    names = "told"
    suffixes = (".msgpack",)
    writable = False
    instead = (
        "restore the state with Checkpoint.restore, and "
        "write it with flax.serialization.to_bytes(state)"
    )
    holds_config = False
    has_selectors = True

    def matches(self, head: Head) -> bool:
        """Whether a map that is not empty begins with a name."""
        start = head.start
        wide = {0xDE: 3, 0xDF: 5}.get(start[0], 1) if start else 0
        if not start or not (0x81 <= start[0] <= 0x8F or wide > 1):
            return False
        first = start[wide : wide + 2]
        if len(first) < 2 or not (0xA1 <= first[0] <= 0xBF or first[0] == 0xD9):
            return False
        is_short = first[0] != 0xD9
        begin, length = (wide + 1, first[0] & 0x1F) if is_short else (wide + 2, first[1])
        key = start[begin : begin + length]
        return len(key) == length and key.decode(errors="replace").isprintable()

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the arrays that belong to the optimizer, and the weights."""
        del values  # there are no templates
        size = source.path.stat().st_size
        account = Account(size)
        with source.path.open("rb") as file:
            tree = read_tree(file, size, account)
            leaves: dict[Path, Leaf] = {
                path: _Leaf(stored, file, account, source.progress)
                for path, stored in _list_arrays(tree, ())
            }
            return read_state(leaves, source)

    def outline(self, path: pathlib.Path) -> Iterable[str]:
        """The arrays of the tree."""
        size = path.stat().st_size
        with path.open("rb") as file:
            return outline(dict(_list_arrays(read_tree(file, size, Account(size)), ())))


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """An array of the file, read when it is asked for."""

    stored: StoredArray
    file: io.BufferedReader
    account: Account
    progress: Progress | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    def read(self) -> np.ndarray:
        self.account.spend(self.stored.nbytes)
        array = self.stored.read(self.file)
        if self.progress:
            self.progress(array.nbytes)
        return array


def _list_arrays(tree: dict[str, Any], at: Path) -> Iterator[tuple[Path, StoredArray]]:
    """The arrays with their paths; without what is no array, such as Python's numbers."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _list_arrays(value, (*at, key))
        elif isinstance(value, StoredArray):
            yield (*at, key), value


register(FlaxMsgpack())
