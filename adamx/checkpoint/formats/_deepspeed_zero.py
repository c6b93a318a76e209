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
from adamx.checkpoint.formats._deepspeed_state import State, name_groups
from adamx.checkpoint.formats._torch_state import KEYS
from adamx.checkpoint.formats._torch_tensors import describe, freeze, read_values
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.stand_ins import StandIn
from adamx.checkpoint.untrusted.torch_tensors import Tensor

__all__ = ["Zero", "open_zero", "read_zero"]


_THIRD, _OTHERS = "fp32_flat_groups", "single_partition_of_fp32_groups"


class Rank(NamedTuple):
    """What the file of a rank holds.

    Attributes:
      held: of the file, what ZeRO keeps.
      optimizer: in there, the optimizer's state dict.
      key: in there, of the float32 weights.
      slices: where parameters are, if the file tells it.
    """

    held: dict[str, Any]
    optimizer: dict[str, Any]
    key: str
    slices: Sequence[Mapping[str, Any]] | None

    @property
    def is_third(self) -> bool:
        """Whether it is of stage 3."""
        return self.key == _THIRD


class Zero(NamedTuple):
    """The files of all ranks, of one stage and of one step.

    Attributes:
      ranks: what they hold.
      groups: hyperparameters, with the positions of vectors as `params`.
      pieces: of each vector, by name where the elements of a parameter are.
      steps: of each vector; None if the groups have them.
    """

    ranks: list[Rank]
    groups: list[dict[str, Any]]
    pieces: list[Mapping[str, Sequence[Piece]]]
    steps: list[Any]


def open_zero(
    files: Sequence[Mapping[str, Any]], shapes: Sequence[Shapes], account: Account
) -> Zero:
    """The structure of all ranks' files, of stage 1, 2 or 3; no values but steps are read."""
    ranks = [_open_rank(rank, file, len(files)) for rank, file in enumerate(files)]
    is_third = ranks[0].is_third
    if any(one.is_third != is_third for one in ranks):
        raise CheckpointError(expected="files of one stage of ZeRO", found="files of two stages")
    made = Zero(ranks, _choose_groups(ranks), [], [])
    for index, own in enumerate(shapes):
        entries = [_find_entry(rank, index, one) for rank, one in enumerate(ranks)]
        made.steps.append(_choose_step(index, entries, account))
        size = len(entries[0]["exp_avg"])
        if is_third:
            pieces = split_each(own, len(ranks))
            size = sum(-(-math.prod(shape) // len(ranks)) for shape in own.values())
        elif all(one.slices is not None for one in ranks):
            pieces = _read_slices(index, own, ranks)
            check_pieces(own, pieces, size)
        else:
            pieces = split_evenly(own, len(ranks), size)
        made.pieces.append(pieces)
        _check_sizes(index, _list_moments(entries), size)
        if is_third:
            masters = [one.held[one.key][index] for one in ranks]
            _check_sizes(index, {"fp32": masters}, size)
    return made


def read_zero(
    zero: Zero,
    shapes: Sequence[Shapes],
    account: Account,
    progress: Progress | None,
    *,
    values: bool,
) -> State:
    """The optimizer in these files; without values, its arrays tell their shapes and dtypes."""
    made = State({}, name_groups(zero.groups, shapes), {})
    for index, own in enumerate(shapes):
        entries = [one.optimizer["state"][index] for one in zero.ranks]
        fields = _list_moments(entries)
        fields["fp32"] = [one.held[one.key][index] for one in zero.ranks]
        for key, vectors in fields.items():
            # ZeRO-3 does not clear what is behind a parameter's elements.
            arrays = assemble(
                f"group {index}: {key}",
                vectors,
                own,
                zero.pieces[index],
                account,
                progress,
                values=values,
                is_padded_with_zeros=not zero.ranks[0].is_third,
            )
            for name, array in arrays.items():
                if key == "fp32":
                    made.masters[name] = array
                else:
                    made.state.setdefault(name, {})[key] = array
        if zero.steps[index] is not None:
            for name in own:
                made.state[name]["step"] = zero.steps[index]
    return made


def _list_moments(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """By key the vectors of all ranks."""
    return {key: [entry.get(key) for entry in entries] for key in KEYS if key in entries[0]}


def _open_rank(rank: int, file: Mapping[str, Any], ranks: int) -> Rank:
    where = f"rank {rank}: optimizer_state_dict"
    held = file.get("optimizer_state_dict")
    if not isinstance(held, dict):
        raise CheckpointError(where=where, expected="ZeRO's dictionary", found=describe(held))
    counts = held.get("partition_count", ranks)
    for group in held.get("ds_zero_partition_groups") or ():
        counts = [counts, group.get("partition_count", ranks)]
    if any(count != ranks for count in (counts if isinstance(counts, list) else [counts])):
        raise CheckpointError(
            where=where,
            expected=f"partition_count {ranks}, since there are files of {ranks} ranks",
            found=f"{reprlib.repr(counts):.80}",
            remedy="use a folder with the files of all ranks of one save, and no others",
        )
    stage = held.get("zero_stage")
    stage = stage.arguments[0] if isinstance(stage, StandIn) and stage.arguments else stage
    if _THIRD in held:
        key, optimizer, slices = _THIRD, held.get("optimizer_state_dict"), None
    elif _OTHERS in held:
        key, optimizer = _OTHERS, held.get("base_optimizer_state")
        slices = held.get("param_slice_mappings")
    else:
        raise CheckpointError(
            where=where,
            expected="the float32 weights of ZeRO-1, 2 or 3",
            found=f"{listed(map(str, held))}, for stage {reprlib.repr(stage):.40}",
        )
    if isinstance(optimizer, list):
        raise CheckpointError(
            where=f"{where}: base_optimizer_state",
            expected="the state dict of an optimizer",
            found="a list without hyperparameters",
            remedy='save without "elastic_checkpoint" in the DeepSpeed configuration',
        )
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        raise CheckpointError(
            where=where,
            expected="the state dict of an optimizer",
            found=describe(optimizer),
            remedy="if the state is offloaded (NVMe), save it with DeepSpeed first",
        )
    return Rank(held, optimizer, key, slices)


def _choose_groups(told: Sequence[Rank]) -> list[dict[str, Any]]:
    """The groups of hyperparameters, which are the same on all ranks."""
    groups = told[0].optimizer.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(where="param_groups", expected="dictionaries", found=describe(groups))
    for rank, one in enumerate(told):
        if freeze(one.optimizer.get("param_groups")) != freeze(groups):
            raise CheckpointError(
                where=f"rank {rank}: param_groups",
                expected="those of rank 0",
                found="others: the files are from different steps",
            )
    if any(group.get("moe") for group in groups):
        raise CheckpointError(
            where="param_groups",
            expected="parameters that all ranks share",
            found="those of experts (moe)",
        )
    return [{key: x for key, x in group.items() if key != "moe"} for group in groups]


def _find_entry(rank: int, index: int, told: Rank) -> Mapping[str, Any]:
    where = f"rank {rank}: group {index}"
    entry = told.optimizer["state"].get(index)
    if not isinstance(entry, dict) or not {"exp_avg", "exp_avg_sq"} <= entry.keys():
        keys = listed(map(str, entry)) if isinstance(entry, dict) else describe(entry)
        raise CheckpointError(where=where, expected="Adam's exp_avg and exp_avg_sq", found=keys)
    if unknown := sorted(map(str, entry.keys() - KEYS.keys() - {"step"})):
        raise CheckpointError(
            where=where, expected="the state of Adam", found=f"{listed(unknown)} in it"
        )
    masters = told.held[told.key]
    if not isinstance(masters, list | tuple) or len(masters) <= index:
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
                found=f"{reprlib.repr(count):.40}: the files are from different steps",
            )
    return values[0]


def _read_slices(index: int, shapes: Shapes, told: Sequence[Rank]) -> dict[str, list[Piece]]:
    """Where each parameter is, as `param_slice_mappings` says."""
    pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
    for rank, one in enumerate(told):
        where = f"rank {rank}: param_slice_mappings"
        slices = one.slices[index] if one.slices is not None and len(one.slices) > index else None
        if not isinstance(slices, dict):
            raise CheckpointError(where=where, expected="a mapping for each group", found="none")
        for name, address in slices.items():
            told_of = address.attributes if isinstance(address, StandIn) else {}
            start, count = told_of.get("start"), told_of.get("numel")
            if type(start) is not int or type(count) is not int or start < 0 or count < 1:
                raise CheckpointError(
                    where=f"{where}: {reprlib.repr(name):.80}",
                    expected="the start and the number of its elements",
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
                    expected=f"{size} elements, as the shapes and the other ranks imply",
                    found=str(getattr(vector, "shape", describe(vector))),
                )
