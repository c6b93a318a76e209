"""Optimizers that `torch.distributed.checkpoint` saved as safetensors, which hold tensors alone."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.formats._dcp_metadata import Chunk, Entry, Segment
from adamx.checkpoint.formats._dcp_segments import Store
from adamx.checkpoint.untrusted.account import Account, Progress, parse_json
from adamx.checkpoint.untrusted.safetensors_file import HEADER_START, read_safetensors
from adamx.checkpoint.untrusted.stand_ins import Global
from adamx.checkpoint.untrusted.torch_tensors import Tensor
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE

__all__ = ["has_state", "read_shards"]

_SUFFIX = ".safetensors"
_SHARDING = "DCP_SHARDING_INFO"
# The keys of a state dict, joined by dots: those of the optimizer, the parameter, the field.
_STATE = re.compile(r"(?:(.+?)\.)?state\.(.+)\.([^.]+)")
_MOMENT = b'.exp_avg"'
_LARGEST = 1 << 62  # entries of a tensor
_LONGEST = 100_000_000  # bytes of a header that is looked at

_Part = tuple[tuple[int, ...], Tensor]


def has_state(folder: Path) -> bool:
    """Whether a folder has safetensors with moments of an Adam, or with archives before them."""
    return any(map(_holds_state, _list_files(folder)))


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{_SUFFIX}") if path.is_file())


def _holds_state(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(HEADER_START)
        if start.startswith(SIGNATURE):
            return True
        return _MOMENT in file.read(min(int.from_bytes(start, "little"), _LONGEST))


class _Shards(Store):
    """Tensors in the files of all ranks, by name in parts."""

    def __init__(
        self,
        folder: Path,
        account: Account,
        progress: Progress | None,
        parts: Mapping[str, Sequence[_Part]],
    ) -> None:
        super().__init__(folder, account, progress)
        self._parts = {(name, at): tensor for name, own in parts.items() for at, tensor in own}

    def _read_part(self, name: str, chunk: Chunk, dtype: np.dtype[Any]) -> Tensor:
        part = self._parts[name, chunk.offset]
        if part.dtype != dtype:
            raise CheckpointError(where=name, expected=f"parts of {dtype}", found=part.dtype)
        return part


def read_shards(folder: Path, account: Account, progress: Progress | None) -> dict[str, Any]:
    """What was saved, by keys: state dicts of optimizers, those of their models, and other names.

    An optimizer has one group, without hyperparameters but for the keys by which Adam is known.
    """
    parts = _list_parts(folder, account)
    store = _Shards(folder, account, progress, parts)
    weights: dict[str, Entry] = {}
    optimizers: dict[str, dict[str, dict[str, Any]]] = {}
    places = {name: match for name in parts if (match := _STATE.fullmatch(name))}
    # A module of a model may be called state, too.
    adams = {match[1] for match in places.values() if match[3] == "exp_avg"}
    for name, own in parts.items():
        entry = _describe(name, own)
        if name in places and places[name][1] in adams:
            key, parameter, field = places[name].groups(default="optimizer")
            state = optimizers.setdefault(key, {}).setdefault(parameter, {})
            state[field] = store.read_tensor(name, entry)
        else:
            weights[name] = entry
    tree: dict[str, Any] = {}
    for key, state in optimizers.items():
        group = {"params": list(state), "amsgrad": False, "maximize": False}
        tree[key] = {"state": state, "param_groups": [group]}
    models = {start for state in optimizers.values() for start in _find_models(weights, state)}
    for start in sorted(models):
        key = start.removesuffix(".") or "weights"
        tree[f"{key}.weights" if key in tree else key] = {
            name.removeprefix(start): store.read_tensor(name, entry)
            for name, entry in weights.items()
            if name.startswith(start)
        }
    return tree | {name: None for name in weights if not name.startswith(tuple(models))}


def _list_parts(folder: Path, account: Account) -> dict[str, list[_Part]]:
    """Map each tensor's name to its parts, with their offsets in it."""
    parts: dict[str, list[_Part]] = {}
    for path in _list_files(folder):
        with name_file(Path(path.name), "safetensors file"):
            with path.open("rb") as file:
                if file.read(len(SIGNATURE)) == SIGNATURE:
                    raise CheckpointError(
                        expected="only tensors, as in safetensors",
                        found="other values before them, such as the optimizer's groups: torch "
                        "cannot load the file either",
                        remedy="save again in the usual format of torch.distributed.checkpoint",
                    )
            held = read_safetensors(path, account)
            told = parse_json(held.metadata.get(_SHARDING, "{}").encode(), account)
            for name, tensor in held.arrays.items():
                parts.setdefault(name, []).append((_find_offset(told, name, tensor), tensor))
    return parts


def _find_offset(told: Any, name: str, tensor: Tensor) -> tuple[int, ...]:
    own = told.get(name, {}) if isinstance(told, Mapping) else None
    offset = own.get("saved_offsets", [0] * tensor.ndim) if isinstance(own, Mapping) else None
    numbers: list[Any] = offset if isinstance(offset, list) else [None]
    if all(type(n) is int and 0 <= n < _LARGEST for n in numbers) and len(numbers) == tensor.ndim:
        return tuple(numbers)
    raise CheckpointError(
        where=f"{_SHARDING}: {name}",
        expected=f"saved_offsets of {tensor.ndim} dimensions",
        found=f"{offset!r:.80}",
    )


def _describe(name: str, parts: Sequence[_Part]) -> Entry:
    if len({tensor.ndim for _, tensor in parts}) > 1:
        raise CheckpointError(where=name, expected="parts with the same number of dimensions")
    chunks = [Chunk(at, tensor.shape, Segment("", 0, tensor.nbytes)) for at, tensor in parts]
    ends = [map(sum, zip(chunk.offset, chunk.shape, strict=True)) for chunk in chunks]
    shape = tuple(map(max, zip(*ends, strict=True)))
    return Entry(Global("torch", parts[0][1].dtype.name), shape, chunks)


def _find_models(weights: Mapping[str, Entry], parameters: Iterable[str]) -> Iterator[str]:
    """The prefix of all names of an optimizer's parameters, for each model that has them."""
    first, *others = parameters
    for name in weights:
        start = name.removesuffix(first)
        ends = name.endswith(first) and start[-1:] in ("", ".")
        if ends and all(f"{start}{other}" in weights for other in others):
            yield start
