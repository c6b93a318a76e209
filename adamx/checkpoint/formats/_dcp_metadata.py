"""What the `.metadata` of `torch.distributed.checkpoint` says, read as stand-ins."""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._torch_tensors import describe
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.stand_ins import Global, StandIn
from adamx.checkpoint.untrusted.torch_archive import read_pickle
from adamx.checkpoint.untrusted.torch_tensors import is_shape

__all__ = [
    "METADATA",
    "Chunk",
    "Described",
    "Entry",
    "Segment",
    "open_metadata",
    "read_metadata",
]

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint."
_DEEPEST = 32  # keys of a path
_LARGEST = 1 << 62  # elements of a tensor
_ENTRY, _PLACE, _CHUNK = 800, 500, 300  # bytes of memory that they take here

_Shape = tuple[int, ...]
_Path = tuple[str | int, ...]


class Segment(NamedTuple):
    """Where a value is stored: which bytes of which file."""

    file: str
    start: int
    size: int


class Chunk(NamedTuple):
    """A part of a tensor: where it begins, its shape, and its segment."""

    offset: _Shape
    shape: _Shape
    segment: Segment


class Entry(NamedTuple):
    """What is stored under one name.

    Attributes:
      dtype: torch's name for it; None for a value that is no tensor.
      shape: of the whole tensor.
      chunks: its parts that have elements; of another value the only one.
    """

    dtype: Global | None
    shape: _Shape
    chunks: list[Chunk]


class Described(NamedTuple):
    """All that `.metadata` says.

    Attributes:
      entries: by name.
      paths: by name, the keys and positions in the saved object, in its order.
    """

    entries: dict[str, Entry]
    paths: dict[str, _Path]


def read_metadata(folder: Path, account: Account) -> Described:
    """The entries of a checkpoint."""
    with account.lend():
        told = open_metadata(folder, account).attributes
    try:
        places = _read_places(told["storage_data"], account)
        entries: dict[str, Entry] = {}
        for name, described in told["state_dict_metadata"].items():
            account.spend(_ENTRY)
            entries[name] = _read_entry(name, described, places, account)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{METADATA} is damaged: {error!r:.200}") from error
    return Described(entries, _read_paths(told.get("planner_data"), entries))


def open_metadata(folder: Path, account: Account) -> StandIn:
    """The object that was saved, of which nothing but the class is checked."""
    data = (folder / METADATA).read_bytes()
    try:
        account.spend(len(data))
        whole = read_pickle(data, account)
        _read_attributes(whole, "metadata.Metadata")
    except CheckpointError as error:
        if error.expected:
            raise
        raise error.within(METADATA).replace(
            remedy=f"It has {len(data)} bytes. If the tensors are in many small parts, save the "
            "full state dict of the optimizer with torch.save"
        ) from error
    return whole


def _read_attributes(value: Any, kind: str) -> Mapping[str, Any]:
    """The attributes of an object of one of torch's classes."""
    if not isinstance(value, StandIn) or value.name != f"{_MODULE}{kind}":
        raise CheckpointError(
            where=METADATA, expected=f"an object of {_MODULE}{kind}", found=describe(value)
        )
    return value.attributes


def _read_places(
    stored: Any, account: Account
) -> dict[tuple[str, _Shape], tuple[Segment, StandIn]]:
    """Where each chunk is, by its name and where it begins in the tensor."""
    places: dict[tuple[str, _Shape], tuple[Segment, StandIn]] = {}
    for index, place in stored.items():
        account.spend(_PLACE)
        key = _read_attributes(index, "metadata.MetadataIndex")
        told = _read_attributes(place, "filesystem._StorageInfo")
        name, offset = key["fqn"], key.get("offset") or ()
        segment = Segment(told["relative_path"], told["offset"], told["length"])
        if not isinstance(name, str) or not is_shape(offset):
            raise CheckpointError(
                where=METADATA, expected="names and offsets", found=reprlib.repr(key)
            )
        if told.get("transform_descriptors"):
            raise CheckpointError(
                where=name,
                expected="values that are stored as they are",
                found=f"transformed ones: {reprlib.repr(told['transform_descriptors']):.80}",
                remedy="save without extensions of the storage writer",
            )
        _check_segment(name, segment)
        if places.setdefault((name, tuple(offset)), (segment, place)) != (segment, place):
            raise CheckpointError(
                where=name, expected="every part stored once", found=f"two at {tuple(offset)}"
            )
    return places


def _check_segment(name: str, segment: Segment) -> None:
    """Raise unless it names a file of the folder, and bytes in one."""
    file = segment.file
    is_plain = isinstance(file, str) and not {"/", "\\", "\0"} & set(file)
    if not is_plain or file in ("", ".", ".."):
        raise CheckpointError(
            where=name,
            expected="the name of a file in the folder",
            found=f"{reprlib.repr(file):.80}",
        )
    if any(type(n) is not int or n < 0 for n in segment[1:]):
        raise CheckpointError(
            where=name, expected="an offset and a length", found=f"{reprlib.repr(segment[1:]):.80}"
        )


def _read_entry(
    name: Any,
    described: Any,
    places: Mapping[tuple[str, _Shape], tuple[Segment, StandIn]],
    account: Account,
) -> Entry:
    if not isinstance(name, str):
        raise CheckpointError(where=METADATA, expected="names", found=type(name).__name__)
    if isinstance(described, StandIn) and described.name.endswith(".BytesStorageMetadata"):
        if (name, ()) not in places:
            raise _refuse_absent(name, ())
        return Entry(None, (), [Chunk((), (), places[name, ()][0])])
    told = _read_attributes(described, "metadata.TensorStorageMetadata")
    shape, properties = told["size"], told["properties"]
    state = properties.state
    dtype = state["dtype"] if isinstance(state, dict) else state[0]
    if not is_shape(shape) or math.prod(n or 1 for n in shape) > _LARGEST:
        raise CheckpointError(where=name, expected="a shape", found=f"{reprlib.repr(shape):.80}")
    if not isinstance(dtype, Global):
        raise CheckpointError(where=name, expected="a dtype of torch", found=describe(dtype))
    chunks: list[Chunk] = []
    for part in told["chunks"]:
        account.spend(_CHUNK)
        own = _read_attributes(part, "metadata.ChunkStorageMetadata")
        offset, sizes = tuple(own["offsets"]), tuple(own["sizes"])
        ranks = {len(shape), len(offset), len(sizes)}
        if not is_shape(offset) or not is_shape(sizes) or len(ranks) > 1:
            raise CheckpointError(
                where=name,
                expected=f"parts with an offset and sizes in {len(shape)} dimensions",
                found=f"{reprlib.repr(own):.120}",
            )
        if not all(sizes):
            continue
        if (name, offset) not in places:
            raise _refuse_absent(name, offset)
        chunks.append(Chunk(offset, sizes, places[name, offset][0]))
    return Entry(dtype, tuple(shape), chunks)


def _refuse_absent(name: str, offset: _Shape) -> CheckpointError:
    return CheckpointError(
        where=name,
        expected=f"the location of its part at {offset}" if offset else "its location",
        found=f"none in {METADATA}",
    )


def _read_paths(told: Any, entries: Mapping[str, Entry]) -> dict[str, _Path]:
    """Map names to keys in the saved object; a planner without such keys flattened nothing."""
    told = told if isinstance(told, dict) else {}
    paths: dict[str, _Path] = {}
    for name in [*told, *(name for name in entries if name not in told)]:
        if name not in entries:
            continue
        head, dot, rest = name.partition(".")
        path = told.get(name, (head, rest) if dot and not told else (name,))
        if (
            not isinstance(path, tuple)
            or not 0 < len(path) <= _DEEPEST
            or not all(isinstance(key, str) or (type(key) is int and key >= 0) for key in path)
        ):
            raise CheckpointError(
                where=name, expected="its path", found=f"{reprlib.repr(path):.80}"
            )
        paths[name] = path
    return paths
