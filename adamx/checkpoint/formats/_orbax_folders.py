"""Where in a folder of Orbax the trees of arrays are, and what their `_METADATA` say."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._tree_paths import Path as TreePath
from adamx.checkpoint.formats._tree_paths import dotted
from adamx.checkpoint.untrusted.account import Account, parse_json

__all__ = ["Described", "Found", "Item", "find_items", "is_checkpoint", "read_metadata"]

METADATA = "_METADATA"
_STEP_METADATA = "_CHECKPOINT_METADATA"
_STEP = re.compile(r"(?:.*[_-])?0*(\d{1,18})")
_UNFINISHED = "orbax-checkpoint-tmp"
_ARRAYS = {"jax.Array", "np.ndarray", "scalar"}
_PER_ARRAY, _PER_LEVEL = 1_000, 200  # bytes of memory that an entry takes


@dataclasses.dataclass(frozen=True)
class Item:
    """A folder with one tree of arrays.

    Attributes:
      folder: where it is.
      prefix: the keys before those of its tree: its name, where there are several.
    """

    folder: Path
    prefix: TreePath


class Found(NamedTuple):
    """What is in a folder.

    Attributes:
      items: the trees.
      notes: remarks on which of them were taken.
      others: names of items that are no trees of arrays.
    """

    items: list[Item]
    notes: list[str]
    others: list[str]


@dataclasses.dataclass(frozen=True)
class Described:
    """What `_METADATA` says of an array.

    Attributes:
      name: under which its chunks are stored.
      least: a lower bound for each axis, the shape of a shard; None if it is not recorded.
    """

    name: str
    least: tuple[int, ...] | None


def is_checkpoint(folder: Path) -> bool:
    """Whether it is an item's folder, that of a step, or one with steps."""
    return _is_step(folder) or any(
        _STEP.fullmatch(child.name) and _is_step(child) for child in _list_folders(folder)
    )


def find_items(folder: Path) -> Found:
    """The trees in a folder, of its newest step if it has several."""
    if (folder / METADATA).is_file():
        return Found([Item(folder, ())], [], [])
    items = [child for child in _list_folders(folder) if (child / METADATA).is_file()]
    steps = [child for child in _list_folders(folder) if _STEP.fullmatch(child.name)]
    if not (folder / _STEP_METADATA).is_file() and steps and not set(items) - set(steps):
        newest = _find_newest(steps)
        if not _is_step(newest):
            raise CheckpointError(
                where=newest.name,
                expected="a finished step of Orbax, since it is the newest",
                found="no tree of arrays",
                remedy="use the folder of another step",
            )
        try:
            found = find_items(newest)
        except CheckpointError as error:
            raise error.within(newest.name) from error.__cause__
        told = f"step {newest.name} was read, the newest of {len(steps)}"
        return found._replace(notes=[told]) if len(steps) > 1 else found
    if not items:
        raise CheckpointError(
            expected=f"a tree of arrays, which has {METADATA}",
            found=listed(sorted(child.name for child in folder.iterdir())) or "nothing",
        )
    only = len(items) == 1
    found = [Item(item, () if only else (item.name,)) for item in sorted(items)]
    others = [child.name for child in _list_folders(folder) if child not in items]
    return Found(found, [], sorted(others))


def _find_newest(steps: list[Path]) -> Path:
    """The step with the highest number; an error if two have it."""
    numbers = {step: int(match[1]) for step in steps if (match := _STEP.fullmatch(step.name))}
    newest = [step for step in steps if numbers[step] == max(numbers.values())]
    if len(newest) > 1:
        raise CheckpointError(
            expected="one newest step",
            found=listed(sorted(step.name for step in newest)),
            remedy="use the folder of one step",
        )
    return newest[0]


def _is_step(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (METADATA, _STEP_METADATA)) or any(
        (child / METADATA).is_file() for child in _list_folders(folder)
    )


def _list_folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if _UNFINISHED not in p.name and p.is_dir()]


def read_metadata(
    item: Item, account: Account
) -> tuple[Mapping[TreePath, Described], Mapping[str, Any]]:
    """The arrays of an item by path, and all of its `_METADATA`."""
    path = item.folder / METADATA
    if path.stat().st_size > account.size:
        raise ValueError(f"{METADATA} is too large")
    try:
        told = parse_json(path.read_bytes(), account)
        arrays = dict(_list_arrays(told["tree_metadata"], item.prefix, account))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{METADATA} is damaged: {error!r:.200}") from error
    names = [described.name for described in arrays.values()]
    if len(set(names)) != len(names):
        twice = {name for name in names if names.count(name) > 1} if len(names) < 10_000 else names
        raise CheckpointError(
            where=listed(sorted(twice), most=3),
            expected="a unique name for each array",
            found="keys with dots in them that make the same name",
        )
    return arrays, told


def _list_arrays(
    entries: Mapping[str, Any], prefix: TreePath, account: Account
) -> Iterator[tuple[TreePath, Described]]:
    for entry in entries.values():
        keys = [key["key"] for key in entry["key_metadata"]]
        value = entry["value_metadata"]
        if value["value_type"] not in _ARRAYS or not keys:
            continue
        account.spend(_PER_ARRAY + sum(_PER_LEVEL + len(key) for key in keys))
        path = (*prefix, *keys)
        name, least = ".".join(keys), value.get("write_shape")
        # It becomes the path of a file, which must not lead out of the folder.
        if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise CheckpointError(where=dotted(path), expected="a name", found=f"{name!r:.80}")
        if least is not None and not all(type(n) is int for n in least):
            raise CheckpointError(where=dotted(path), expected="a shape", found=f"{least!r:.80}")
        yield path, Described(name, None if least is None else tuple(least))
