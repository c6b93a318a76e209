"""Folders of Orbax: one tree of arrays, a step of a CheckpointManager, or all of its steps."""

import pathlib
from collections.abc import Iterable

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.format import FileFormat, Head, Source, register
from adamx.checkpoint.formats._array_trees import Leaf, outline
from adamx.checkpoint.formats._folders import measure
from adamx.checkpoint.formats._orbax_arrays import Array, Store
from adamx.checkpoint.formats._orbax_folders import (
    Found,
    find_items,
    is_checkpoint,
    read_metadata,
)
from adamx.checkpoint.formats._state_trees import read_state
from adamx.checkpoint.formats._tree_paths import Path
from adamx.checkpoint.untrusted.account import Account, Progress

__all__ = ["Orbax"]


class Orbax(FileFormat):
    """What StandardCheckpointer, PyTreeCheckpointer and CheckpointManager write."""

    name = "orbax"
    title = "Orbax"
    names = "told"
    extra = "orbax"
    writable = False
    instead = (
        "restore the state with Checkpoint.restore, and "
        "save it with orbax.checkpoint.StandardCheckpointer"
    )
    holds_config = False
    has_selectors = True

    def matches(self, head: Head) -> bool:
        """Whether a folder has the metadata of Orbax, or a folder in it has."""
        return bool(head.entries) and head.path.is_dir() and head.examine(is_checkpoint)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the arrays that belong to the optimizer, and the weights."""
        del values  # there are no templates
        found = find_items(source.path)
        account = Account(sum(measure(item.folder) for item in found.items))
        leaves = _list_arrays(found, account, source.progress)
        return read_state(leaves, source, found.notes, found.others, account)

    def outline(self, path: pathlib.Path) -> Iterable[str]:
        """The arrays of the tree."""
        found = find_items(path)
        account = Account(sum(measure(item.folder) for item in found.items))
        return outline(_list_arrays(found, account, None))


def _list_arrays(found: Found, account: Account, progress: Progress | None) -> dict[Path, Leaf]:
    leaves: dict[Path, Leaf] = {}
    for item in found.items:
        arrays, told = read_metadata(item, account)
        store = Store(item, told, account, progress, found.notes)
        leaves |= {path: Array(store, described) for path, described in arrays.items()}
    return leaves


register(Orbax())
