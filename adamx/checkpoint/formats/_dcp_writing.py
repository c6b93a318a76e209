"""A folder of `torch.distributed.checkpoint` with other values, made from one of the same model.

Each rank's file keeps its parts of the tensors. Since the lengths of values change, they move
within the files, and `.metadata` is updated.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from adamx.checkpoint.format import Target
from adamx.checkpoint.formats._dcp_metadata import (
    METADATA,
    Described,
    Entry,
    Segment,
    open_metadata,
)
from adamx.checkpoint.formats._dcp_segments import Store
from adamx.checkpoint.formats._dcp_tree import find_value
from adamx.checkpoint.formats._folders import copy_folder, measure
from adamx.checkpoint.formats._torch_template import refuse_template
from adamx.checkpoint.formats._torch_tensors import describe, is_tensor
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.stand_ins import StandIn
from adamx.checkpoint.untrusted.torch_tensors import find_dtype, make_tensor
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE
from adamx.checkpoint.writing.torch_writer import write_archive, write_pickle

__all__ = ["check_room", "list_values", "write_folder"]

_PROTOCOL = 4  # of the pickle that torch writes
_BLOCK = 1 << 22  # bytes


class _Place(NamedTuple):
    """The segment of a file with a part of a value; `told` is what `.metadata` has for it."""

    start: int
    length: int
    name: str
    offset: tuple[int, ...]
    told: StandIn


def list_values(saved: Any, described: Described) -> dict[str, Any]:
    """The value of each name in a tree that `build_tree` has made."""
    values: dict[str, Any] = {}
    for name, path in described.paths.items():
        try:
            values[name] = find_value(saved, path)
        except (IndexError, KeyError, TypeError, ValueError):
            raise refuse_template("a state that has this too", "one without", name=name) from None
    return values


def check_room(state: Mapping[Any, Mapping[str, Any]], values: Mapping[str, Any]) -> None:
    """Raise unless all of an optimizer's state is among the values that have a name."""
    there = {id(value) for value in values.values()}
    for parameter, entry in state.items():
        for key in (key for key, value in entry.items() if id(value) not in there):
            raise refuse_template(f"{key} of {parameter}", "an optimizer without it")


def write_folder(
    target: Target,
    folder: Path,
    store: Store,
    entries: Mapping[str, Entry],
    values: Mapping[str, Any],
) -> list[str]:
    """Write a copy of a folder.

    Args:
      target: the copy, which is empty, and may be within the folder.
      folder: what is copied.
      store: finds what is in it.
      entries: what that is, by name.
      values: what is to be there instead, by name; tensors are whole.

    Returns:
      The names of other files and folders, which were copied.
    """
    whole = open_metadata(folder, Account(measure(folder)))
    files: dict[str, list[_Place]] = {}
    for index, told in whole.attributes["storage_data"].items():
        key, place = index.attributes, told.attributes
        own = files.setdefault(place["relative_path"], [])
        offset = tuple(key.get("offset") or ())
        own.append(_Place(place["offset"], place["length"], key["fqn"], offset, told))
    for file, places in files.items():
        for place in places:
            store.find(place.name, Segment(file, place.start, place.length))
    beside = copy_folder(folder, target.path, (METADATA, *files))
    for file, places in files.items():
        with (folder / file).open("rb") as old, (target.path / file).open("wb") as new:
            for place in sorted(places, key=lambda place: place.start):
                start = new.tell()
                old.seek(place.start)
                if (part := _find_part(place, entries, values)) is not None:
                    _write_part(old, new, place, part)
                else:
                    _copy(old, new, place.length)
                length = new.tell() - start
                place.told.state = place.told.attributes | {"offset": start, "length": length}
                if target.progress:
                    target.progress(length)
    write_pickle(target.path / METADATA, whole, protocol=_PROTOCOL)
    return beside


def _find_part(place: _Place, entries: Mapping[str, Entry], values: Mapping[str, Any]) -> Any:
    """The new value of a segment; None to keep the old one."""
    if place.name not in values:
        return None
    entry, value = entries[place.name], values[place.name]
    if entry.dtype is None:
        return value
    shapes = {chunk.offset: chunk.shape for chunk in entry.chunks}
    if place.offset not in shapes:  # a part without elements
        return None
    array = _convert(place.name, value, entry)
    region = zip(place.offset, shapes[place.offset], strict=True)
    return make_tensor(array[tuple(slice(start, start + count) for start, count in region)])


def _convert(name: str, value: Any, entry: Entry) -> np.ndarray:
    """A tensor or a number in the shape and the dtype that `.metadata` tells."""
    dtype = find_dtype(entry.dtype.qualname) if entry.dtype else None
    array = np.asarray(value)
    if dtype is None or array.size != math.prod(entry.shape):
        raise refuse_template(
            f"an array of shape {array.shape}",
            f"shape {entry.shape} and dtype {describe(entry.dtype)}",
            "use a template of the same model and optimizer",
            name,
        )
    return array.astype(dtype, copy=False).reshape(entry.shape)


def _write_part(old: IO[bytes], new: IO[bytes], place: _Place, part: Any) -> None:
    if is_tensor(part) and old.read(len(SIGNATURE)) != SIGNATURE:
        raise refuse_template(
            "tensors stored as by torch.save",
            "safetensors after other values, which torch cannot load either",
            "use a template in the usual format of torch.distributed.checkpoint",
            place.name,
        )
    stream = io.BytesIO()
    write_archive(stream, part)
    new.write(stream.getbuffer())


def _copy(old: IO[bytes], new: IO[bytes], length: int) -> None:
    while block := old.read(min(length, _BLOCK)):
        length -= len(block)
        new.write(block)
