"""The state dict of an Adam for torch as a checkpoint."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import Source
from adamx.checkpoint.formats._counts import read_count
from adamx.checkpoint.formats._torch_objects import list_tensors
from adamx.checkpoint.formats._torch_optimizers import (
    Kind,
    find_kind,
    is_scheduled,
    note_scheduled,
    read_config,
)
from adamx.checkpoint.formats._torch_quantised import dequantise_entry
from adamx.checkpoint.formats._torch_search import Found
from adamx.checkpoint.formats._torch_tensors import check_real, describe, read_values, to_array
from adamx.checkpoint.untrusted.account import Account
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup

__all__ = ["KEYS", "read_state"]

# By key of a parameter's state, the field of a checkpoint.
KEYS = {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"}

_Groups = Sequence[Mapping[str, Any]]


def read_state(found: Found, account: Account, source: Source, *, values: bool) -> Checkpoint:
    """The checkpoint of an optimizer that was found in a file.

    Args:
      found: the optimizer and its model.
      account: of the file, to which the values are charged.
      source: has what the user gave.
      values: whether arrays are read and verified, or stay maps of the file.
    """
    state, size, names = found.state_dict["state"], account.size, found.names
    groups: _Groups = found.state_dict["param_groups"]
    kind = find_kind(groups, state, found.library)
    configs = [_choose_config(source, kind, group, values) for group in groups]
    if unknown := sorted(map(str, state.keys() - set(found.positions))):
        raise CheckpointError(
            where="state", expected="only entries of the groups' params", found=unknown[:10]
        )
    weights = list_tensors(found.model or {})
    arrays = {("params", name): to_array(name, x, size) for name, x in weights.items()}
    group_of = [index for index, group in enumerate(groups) for _ in group["params"]]
    notes = {kind.note: None} if kind.note else {}
    steps: dict[str, np.ndarray] = {}
    is_quantised = False
    for position, name, index in zip(found.positions, names, group_of, strict=True):
        if position not in state:
            continue
        where = f"state/{position}"
        entry, changed = dequantise_entry(where, _check_entry(where, state[position]), account)
        if changed:
            is_quantised = True
            notes[f"moments of {kind.name} were dequantised from 8 bits"] = None
        entry = {"step": groups[index].get("step"), **entry}  # Apex has it in the group
        steps[name], moments = _read_entry(where, entry, size)
        arrays |= {(field, name): array for field, array in moments.items()}
    if not steps:
        raise CheckpointError("the optimizer has done no step: there is no state to continue from")
    arrays |= {("step", name): step for name, step in steps.items()}
    if values:
        arrays = read_values(arrays, account, source.progress)
    fields: dict[str, dict[Any, np.ndarray]] = {}
    for (field, name), array in arrays.items():
        fields.setdefault(field, {})[name] = array.view(np.ndarray)
    counts = {name: read_count(f"{name}: step", step) for name, step in fields["step"].items()}
    notes |= dict.fromkeys(note_scheduled(groups))
    return Checkpoint(
        framework="torch",
        version=None,
        groups=_split_by_count(names, group_of, groups, configs, counts),
        naming=dict.fromkeys(names, found.naming),
        params=fields.get("params", {}),
        mu=fields["mu"],
        nu=fields["nu"],
        nu_max=fields.get("nu_max", {}),
        quantised=is_quantised,
        not_read=found.others,
        notes=list(notes),
    )


def _choose_config(
    source: Source, kind: Kind, group: Mapping[str, Any], values: bool
) -> AdamConfig:
    """The hyperparameters of a group, or those that the caller gave for ones that are unknown."""
    if values and source.config is not None:
        return source.config
    try:
        return read_config(kind, group)
    except CheckpointError:
        if source.config is None:
            raise
        return source.config


def _split_by_count(
    names: Sequence[str],
    group_of: Sequence[int],
    groups: _Groups,
    configs: Sequence[Any],
    counts: Mapping[str, int],
) -> list[ParameterGroup]:
    """The groups, each divided where its parameters are at different steps.

    Each part has parameters that follow one another, so that the optimizer's order is kept.
    """
    divided = []
    for index, (group, config) in enumerate(zip(groups, configs, strict=True)):
        own = [name for name, of in zip(names, group_of, strict=True) if of == index]
        usual = next((counts[name] for name in own if name in counts), max(counts.values()))
        for count, part in itertools.groupby(
            own, lambda name, usual=usual: counts.get(name, usual)
        ):
            divided.append(
                ParameterGroup(
                    names=tuple(part), config=config, count=count, scheduled=is_scheduled(group)
                )
            )
    return divided


def _check_entry(where: str, entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise CheckpointError(
            where=where, expected="Adam's step, exp_avg and exp_avg_sq", found=describe(entry)
        )
    return entry


def _read_entry(
    where: str, entry: Mapping[str, Any], size: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The steps done and the moments of one parameter."""
    if not {"exp_avg", "exp_avg_sq"} <= entry.keys() or entry["step"] is None:
        keys = listed(str(key) for key in entry if entry[key] is not None)
        raise CheckpointError(
            where=where, expected="Adam's step, exp_avg and exp_avg_sq", found=keys
        )
    if unknown := sorted(map(str, entry.keys() - KEYS.keys() - {"step"})):
        raise CheckpointError(
            where=where, expected="the state of Adam", found=f"{listed(unknown)} in it"
        )
    step = entry["step"]
    if not isinstance(step, int | float | np.generic):
        step = to_array(f"{where}/step", step, size)
    moments = {
        field: to_array(f"{where}/{key}", entry[key], size)
        for key, field in KEYS.items()
        if key in entry
    }
    for field, array in moments.items():
        check_real(f"{where}/{field}", array)
    return np.asanyarray(step), moments
