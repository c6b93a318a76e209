"""The state dict of an Adam for torch as a checkpoint."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import Naming
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import Source
from adamx.checkpoint.formats._counts import read_count
from adamx.checkpoint.formats._torch_checks import check_real
from adamx.checkpoint.formats._torch_flat import is_flat, unflatten
from adamx.checkpoint.formats._torch_names import match_shapes
from adamx.checkpoint.formats._torch_objects import (
    choose_model,
    choose_optimizer,
    list_others,
    list_tensors,
)
from adamx.checkpoint.formats._torch_optimizers import Kind, find_kind, is_scheduled, read_config
from adamx.checkpoint.formats._torch_quantised import dequantise_entry
from adamx.checkpoint.formats._torch_tensors import describe, is_inexact, read_values, to_array
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_tensors import Tensor
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup

__all__ = ["KEYS", "Found", "find_state", "read_state"]

# By key of a parameter's state, the field of a checkpoint.
KEYS = {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"}

_Groups = Sequence[Mapping[str, Any]]
_Shape = tuple[int, ...]


class Found(NamedTuple):
    """The optimizer in what was saved, and the names of its parameters.

    Attributes:
      held: the dictionary in the file, which may be flat.
      state_dict: the same with `state` and `param_groups`.
      positions: what each parameter is called in `state`, in the order of the groups.
      names: of the parameters, in this order.
      naming: how the names are known.
      model: the weights' dictionary, or None.
      keys: of optimizer and weights in the file, with what is there.
    """

    held: dict[str, Any]
    state_dict: dict[str, Any]
    positions: list[int | str]
    names: list[str]
    naming: Naming
    model: dict[str, Any] | None
    keys: dict[str, Any]


def find_state(saved: Any, source: Source, *, in_order: bool = True) -> Found:
    """Find the optimizer and its model.

    Args:
      saved: what was saved.
      source: has the keys of the optimizer and of the weights, where the user gave them.
      in_order: whether weights are in the order of the model.
    """
    key, held = choose_optimizer(saved, source.optimizer)
    state_dict = unflatten(held) if is_flat(held) else held
    groups, positions = _list_positions(state_dict)
    state = state_dict["state"]
    shapes = [
        [_find_shape(state[p]) if p in state else None for p in group["params"]] for group in groups
    ]
    given = _list_given_names(groups, positions)
    matched: dict[int, list[list[str]] | None] = {}

    def fits(model: dict[str, Any]) -> bool:
        held = {name: tuple(x.shape) for name, x in _drop_tied(list_tensors(model)).items()}
        if given is not None:
            flat = [shape for group in shapes for shape in group]
            return all(
                name in held and shape in (None, held[name])
                for name, shape in zip(given, flat, strict=True)
            )
        own = {name: s for name, s in held.items() if is_inexact(model[name])}
        matched[id(model)] = match_shapes(shapes, own, in_order=in_order)
        return matched[id(model)] is not None

    found = choose_model(saved, source.weights, fits)
    model = None if found is None else found[1]
    names, naming = [str(index) for index in range(len(positions))], "unknown"
    if given is not None:
        names, naming = given, "file"
    elif model is not None:
        fits(model)
        if (chosen := matched[id(model)]) is not None:
            names, naming = [name for group in chosen for name in group], "inferred"
    keys = {key: held} | ({} if found is None else {found[0]: found[1]})
    return Found(held, state_dict, positions, names, naming, model, keys)


def read_state(
    saved: Any,
    account: Account,
    source: Source,
    *,
    values: bool,
    in_order: bool = True,
) -> Checkpoint:
    """The checkpoint in what a file holds: of one optimizer within.

    Args:
      saved: what was saved.
      account: of the file, to which the values are charged.
      source: has what the user gave.
      values: whether arrays are read and verified, or stay maps of the file.
      in_order: whether weights are in the order of the model.
    """
    found = find_state(saved, source, in_order=in_order)
    state, size, names = found.state_dict["state"], account.size, found.names
    groups: _Groups = found.state_dict["param_groups"]
    kind = find_kind(groups, state)
    configs = [_choose_config(source, kind, group, values) for group in groups]
    if unknown := sorted(map(str, state.keys() - set(found.positions))):
        raise CheckpointError(
            where="state", expected="entries of the groups' params", found=unknown[:10]
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
        raise CheckpointError("the optimizer has not taken a step: there is no state to go on with")
    arrays |= {("step", name): step for name, step in steps.items()}
    if values:
        arrays = read_values(arrays, account, source.progress)
    fields: dict[str, dict[Any, np.ndarray]] = {}
    for (field, name), array in arrays.items():
        fields.setdefault(field, {})[name] = array.view(np.ndarray)
    counts = {name: read_count(f"{name}: step", step) for name, step in fields["step"].items()}
    rates = [str(group["initial_lr"]) for group in groups if is_scheduled(group)]
    if rates:
        texts = listed(dict.fromkeys(rates))
        notes[f"a scheduler set the learning rate: that of this step counts, not {texts}"] = None
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
        not_read=list_others(saved, found.keys),
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

    Parts are of parameters that follow one another, so that the optimizer's order is kept.
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


def _list_positions(
    state_dict: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[int | str]]:
    """The parameter groups, and what their parameters are called in order.

    An optimizer counts them. `torch.distributed` calls them by their names.
    """
    groups = list(state_dict["param_groups"])
    positions: list[int | str] = []
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise CheckpointError(
                where="param_groups",
                expected="dictionaries with params",
                found=describe(group),
            )
        positions += group["params"]
    kinds = {type(position) for position in positions}
    if kinds not in ({int}, {str}):
        raise CheckpointError(
            where="param_groups",
            expected="positions or names of parameters in params",
            found=listed(sorted(kind.__name__ for kind in kinds)) or "none",
        )
    if len(set(positions)) != len(positions):
        raise CheckpointError(where="param_groups", expected="every parameter once")
    return groups, positions


def _list_given_names(groups: _Groups, positions: Sequence[int | str]) -> list[str] | None:
    """The names that the file tells: the keys of its state, or `param_names` in the groups."""
    given = list(positions)
    if not isinstance(given[0], str):
        given = [name for group in groups for name in group.get("param_names") or ()]
    names = [name for name in given if isinstance(name, str)]
    is_complete = len(names) == len(given) == len(positions)
    return names if is_complete and len(set(names)) == len(names) else None


def _drop_tied(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors without those that are another one under a second name, as `parameters()` has."""
    kept, seen = {}, set()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.size:
            place = (tensor.ctypes.data, tensor.shape, tensor.strides)
            if place in seen:
                continue
            seen.add(place)
        kept[name] = tensor
    return kept


def _find_shape(entry: Any) -> _Shape | None:
    """The shape of a parameter, by its moments."""
    if isinstance(entry, Mapping):
        entry = {**entry, **(entry.get("__bnb_optimizer_quant_state__") or {})}
        for key in ("exp_avg", "state1"):
            if (shape := getattr(entry.get(key), "shape", None)) is not None:
                return tuple(shape)
    return None


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
