"""DeepSpeed's ZeRO: the optimizer's state in flat vectors, a part of each in a file of a rank."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._deepspeed_flat import (
    Piece,
    Shapes,
    assemble,
    check_pieces,
    split_each,
    split_evenly,
)
from adamx.checkpoint.formats._torch_state import KEYS
from adamx.checkpoint.formats._torch_tensors import describe, freeze, read_values
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.stand_ins import StandIn
from adamx.checkpoint.untrusted.torch_tensors import Tensor, is_shape

__all__ = ["State", "name_groups", "read_shapes", "read_zero"]


class State(NamedTuple):
    """An optimizer, with arrays of the parameters' shapes.

    Attributes:
      state: by name of a parameter.
      groups: with names as `params`.
      masters: the weights that the optimizer moves.
    """

    state: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]
    masters: dict[str, np.ndarray]


class _Rank(NamedTuple):
    """What the file of a rank holds: the optimizer's state dict, its weights, and the slices."""

    optimizer: Mapping[str, Any]
    masters: Sequence[Any]
    slices: Sequence[Mapping[str, Any]] | None
    is_third: bool


def read_shapes(model: Mapping[str, Any]) -> list[Shapes]:
    """The parameters' shapes by name, of each flat vector, in its order."""
    told = model.get("param_shapes")
    told = [told] if isinstance(told, dict) else told  # of older versions
    if not isinstance(told, list) or not all(isinstance(group, dict) for group in told):
        raise CheckpointError(
            where="param_shapes",
            expected="the shapes of the parameters by name",
            found=describe(told),
        )
    shapes: list[Shapes] = []
    for group in told:
        for name, shape in group.items():
            if not isinstance(name, str) or not is_shape(shape):
                raise CheckpointError(
                    where=f"param_shapes: {reprlib.repr(name):.80}",
                    expected="a shape",
                    found=describe(shape),
                )
        shapes.append({name: tuple(shape) for name, shape in group.items()})
    names = [name for group in shapes for name in group]
    if len(set(names)) != len(names) or not names:
        raise CheckpointError(where="param_shapes", expected="every parameter once")
    return shapes


def read_zero(
    files: Sequence[Mapping[str, Any]],
    shapes: Sequence[Shapes],
    account: Account,
    progress: Progress | None,
) -> State:
    """The optimizer in the files of all ranks; of stage 1, 2 or 3."""
    told = [_read_rank(rank, file, len(files)) for rank, file in enumerate(files)]
    is_third = told[0].is_third
    if any(one.is_third != is_third for one in told):
        raise CheckpointError(expected="files of one stage of ZeRO", found="two")
    groups = _choose_groups(told)
    made = State({}, name_groups(groups, shapes), {})
    for index, own in enumerate(shapes):
        entries = [_read_entry(rank, index, one) for rank, one in enumerate(told)]
        step = _choose_step(index, entries, account)
        size = len(entries[0]["exp_avg"])
        if is_third:
            pieces = split_each(own, len(told))
            size = sum(-(-math.prod(shape) // len(told)) for shape in own.values())
        elif all(one.slices is not None for one in told):
            pieces = _read_slices(index, own, told)
            check_pieces(own, pieces, size)
        else:
            pieces = split_evenly(own, len(told), size)
        fields: dict[str, Any] = {
            key: [entry.get(key) for entry in entries] for key in KEYS if key in entries[0]
        }
        _check_sizes(index, fields, size)
        fields["fp32"] = [one.masters[index] for one in told]
        if is_third:
            _check_sizes(index, {"fp32": fields["fp32"]}, size)
        for key, vectors in fields.items():
            where = f"group {index}: {key}"
            # ZeRO-3 does not clear what is behind a parameter's elements.
            arrays = assemble(
                where,
                vectors,
                own,
                pieces,
                account,
                progress,
                is_padded_with_zeros=not is_third,
            )
            for name, array in arrays.items():
                if key == "fp32":
                    made.masters[name] = array
                else:
                    made.state.setdefault(name, {})[key] = array
        if step is not None:
            for name in own:
                made.state[name]["step"] = step
    return made


def name_groups(
    groups: Sequence[Mapping[str, Any]], shapes: Sequence[Shapes]
) -> list[dict[str, Any]]:
    """The groups with the names of their parameters in place of the vectors' positions."""
    positions = [position for group in groups for position in group.get("params") or ()]
    if positions != list(range(len(shapes))):
        raise CheckpointError(
            where="param_groups",
            expected=f"the {len(shapes)} vectors of param_shapes, in order",
            found=listed(map(str, positions)) or "none",
        )
    return [
        {**group, "params": [name for position in group["params"] for name in shapes[position]]}
        for group in groups
    ]


def _read_rank(rank: int, file: Mapping[str, Any], ranks: int) -> _Rank:
    where = f"rank {rank}: optimizer_state_dict"
    held = file.get("optimizer_state_dict")
    if not isinstance(held, dict):
        raise CheckpointError(where=where, expected="that of ZeRO", found=describe(held))
    counts = held.get("partition_count", ranks)
    for group in held.get("ds_zero_partition_groups") or ():
        counts = [counts, group.get("partition_count", ranks)]
    if any(count != ranks for count in (counts if isinstance(counts, list) else [counts])):
        raise CheckpointError(
            where=where,
            expected=f"partition_count {ranks}, since there are files of {ranks} ranks",
            found=f"{reprlib.repr(counts):.80}",
            remedy="give a folder with the files of all ranks of one save, and of no other",
        )
    stage = held.get("zero_stage")
    stage = stage.arguments[0] if isinstance(stage, StandIn) and stage.arguments else stage
    if "fp32_flat_groups" in held:
        optimizer, slices = held.get("optimizer_state_dict"), None
        masters = held["fp32_flat_groups"]
    elif "single_partition_of_fp32_groups" in held:
        optimizer, slices = held.get("base_optimizer_state"), held.get("param_slice_mappings")
        masters = held["single_partition_of_fp32_groups"]
    else:
        raise CheckpointError(
            where=where,
            expected="the float32 weights of ZeRO-1, 2 or 3",
            found=f"{listed(map(str, held))} of stage {reprlib.repr(stage):.40}",
        )
    if isinstance(optimizer, list):
        raise CheckpointError(
            where=f"{where}: base_optimizer_state",
            expected="the state dict of an optimizer",
            found="a list without hyperparameters",
            remedy='save without "elastic_checkpoint" in the configuration of DeepSpeed',
        )
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        raise CheckpointError(
            where=where,
            expected="the state dict of an optimizer",
            found=describe(optimizer),
            remedy="with the state on other devices (NVMe), save it with DeepSpeed first",
        )
    return _Rank(optimizer, masters, slices, "fp32_flat_groups" in held)


def _choose_groups(told: Sequence[_Rank]) -> list[dict[str, Any]]:
    """The groups of hyperparameters, which are the same on all ranks."""
    groups = told[0].optimizer.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(where="param_groups", expected="dictionaries", found=describe(groups))
    for rank, one in enumerate(told):
        if freeze(one.optimizer.get("param_groups")) != freeze(groups):
            raise CheckpointError(
                where=f"rank {rank}: param_groups",
                expected="those of rank 0",
                found="others: the files are not of one step",
            )
    for group in groups:
        if group.pop("moe", None):
            raise CheckpointError(
                where="param_groups",
                expected="parameters that all ranks share",
                found="those of experts (moe)",
            )
    return groups


def _read_entry(rank: int, index: int, told: _Rank) -> Mapping[str, Any]:
    where = f"rank {rank}: group {index}"
    entry = told.optimizer["state"].get(index)
    if not isinstance(entry, dict) or not {"exp_avg", "exp_avg_sq"} <= entry.keys():
        keys = listed(map(str, entry)) if isinstance(entry, dict) else describe(entry)
        raise CheckpointError(where=where, expected="Adam's exp_avg and exp_avg_sq", found=keys)
    if unknown := sorted(map(str, entry.keys() - KEYS.keys() - {"step"})):
        raise CheckpointError(
            where=where, expected="the state of Adam", found=f"{listed(unknown)} in it"
        )
    if not isinstance(told.masters, list | tuple) or len(told.masters) <= index:
        raise CheckpointError(where=where, expected="its float32 weights", found="none")
    if not isinstance(entry["exp_avg"], Tensor) or entry["exp_avg"].ndim != 1:
        raise CheckpointError(where=where, expected="a vector", found=describe(entry["exp_avg"]))
    return entry


def _choose_step(index: int, entries: Sequence[Mapping[str, Any]], account: Account) -> Any:
    """The steps done, which are the same on all ranks; None if the groups have them."""
    steps = [entry.get("step") for entry in entries]
    tensors = {rank: step for rank, step in enumerate(steps) if isinstance(step, Tensor)}
    for rank, step in tensors.items():
        if step.size != 1:
            raise CheckpointError(
                where=f"rank {rank}: group {index}: step",
                expected="one number",
                found=f"shape {step.shape}",
            )
    values = {**dict(enumerate(steps)), **read_values(tensors, account)}
    counts = [np.asarray(v).item() if isinstance(v, np.ndarray) else v for v in values.values()]
    for rank, count in enumerate(counts):
        if count != counts[0]:
            raise CheckpointError(
                where=f"rank {rank}: group {index}: step",
                expected=f"{reprlib.repr(counts[0]):.40}, as on rank 0",
                found=f"{reprlib.repr(count):.40}: the files are not of one step",
            )
    return values[0]


def _read_slices(index: int, shapes: Shapes, told: Sequence[_Rank]) -> dict[str, list[Piece]]:
    """Where each parameter is, as `param_slice_mappings` says."""
    pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
    for rank, one in enumerate(told):
        where = f"rank {rank}: param_slice_mappings"
        slices = one.slices[index] if one.slices is not None and len(one.slices) > index else None
        if not isinstance(slices, dict):
            raise CheckpointError(where=where, expected="that of each group", found="none")
        for name, address in slices.items():
            told_of = address.attributes if isinstance(address, StandIn) else {}
            start, count = told_of.get("start"), told_of.get("numel")
            if type(start) is not int or type(count) is not int or start < 0 or count < 1:
                raise CheckpointError(
                    where=f"{where}: {reprlib.repr(name):.80}",
                    expected="where its elements are",
                    found=f"{reprlib.repr(start):.20}, {reprlib.repr(count):.20}",
                )
            if name not in pieces:
                raise CheckpointError(
                    where=where,
                    expected=f"a parameter of group {index}",
                    found=f"{reprlib.repr(name):.80}",
                )
            pieces[name].append(Piece(rank, start, count))
    return pieces


def _check_sizes(index: int, fields: Mapping[str, Sequence[Any]], size: int) -> None:
    """Raise unless all vectors have this many elements."""
    for key, vectors in fields.items():
        for rank, vector in enumerate(vectors):
            if getattr(vector, "shape", None) != (size,):
                raise CheckpointError(
                    where=f"rank {rank}: group {index}: {key}",
                    expected=f"{size} elements, by the shapes and the other ranks",
                    found=str(getattr(vector, "shape", describe(vector))),
                )
