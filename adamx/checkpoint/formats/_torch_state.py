"""The state dict of torch's Adam as a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx.base.errors import InvalidType
from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._counts import read_count
from adamx.checkpoint.formats._refusals import OTHER_CONFIG, suggest_config
from adamx.checkpoint.formats._torch_checks import check_real
from adamx.checkpoint.formats._torch_flat import is_flat, unflatten
from adamx.checkpoint.formats._torch_objects import find_model, find_optimizer, list_tensors
from adamx.checkpoint.formats._torch_tensors import describe, read_values, to_array
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.torch_tensors import Tensor
from adamx.config.adam_config import AdamConfig

__all__ = ["KEPT", "KEYS", "list_settings", "read_state"]

# By key of a parameter's state, the field of a checkpoint.
KEYS = {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"}

# Keys of a group that are no hyperparameters.
KEPT = ("params", "param_names", "foreach", "capturable", "differentiable", "fused")


def read_state(
    saved: Any,
    account: Account,
    config: AdamConfig | None,
    *,
    values: bool,
    progress: Progress | None = None,
) -> Checkpoint:
    """The checkpoint in what a file holds: of the one optimizer within.

    Args:
      saved: what was saved.
      account: of the file, to which the values are charged.
      config: hyperparameters instead of the file's, or None.
      values: whether arrays are read and verified, or stay maps of the file.
      progress: called with the number of bytes just read.
    """
    size = account.size
    state_dict = find_optimizer(saved)
    if is_flat(state_dict):
        state_dict = unflatten(state_dict)
    groups, positions = _list_positions(state_dict)
    if "amsgrad" not in groups[0]:  # RAdam's state looks like Adam's
        raise CheckpointError(
            where="param_groups",
            expected="those of Adam or AdamW",
            found=listed(map(str, groups[0])),
        )
    config = config or _read_config(groups)
    state = state_dict["state"]
    moments: dict[int | str, dict[str, np.ndarray]] = {}
    steps: dict[int | str, np.ndarray] = {}
    for position in positions:
        if position in state:
            steps[position], moments[position] = _read_entry(position, state[position], size)
    if unknown := sorted(map(str, state.keys() - set(positions))):
        raise CheckpointError(
            where="state", expected="entries of the groups' params", found=unknown[:10]
        )
    if not moments:
        raise CheckpointError("the optimizer has not taken a step: there is no state to go on with")
    shapes = [moments[p]["mu"].shape if p in moments else None for p in positions]
    model, names = find_model(saved, groups, shapes)
    weights = list_tensors(model or {})
    arrays: dict[tuple[str, Any], np.ndarray] = {("step", p): steps[p] for p in steps}
    arrays |= {("params", name): to_array(name, x, size) for name, x in weights.items()}
    for i, position in enumerate(positions):
        for field, array in moments.get(position, {}).items():
            arrays[field, names[i]] = array
    if values:
        arrays = read_values(arrays, account, progress)
    fields: dict[str, dict[Any, np.ndarray]] = {}
    for (field, name), array in arrays.items():
        fields.setdefault(field, {})[name] = array.view(np.ndarray)
    return Checkpoint(
        framework="torch",
        version=None,
        config=config,
        count=_count_steps(fields["step"]),
        names=tuple(names),
        params=fields.get("params", {}),
        mu=fields["mu"],
        nu=fields["nu"],
        nu_max=fields.get("nu_max", {}),
    )


def _count_steps(steps: Mapping[int | str, np.ndarray]) -> int:
    """The steps done, by those of each parameter."""
    counts = {p: read_count(f"state/{p}/step", step) for p, step in steps.items()}
    if len(set(counts.values())) > 1:
        raise CheckpointError(
            where="step",
            expected="one number of steps",
            found=listed(f"{counts[p]} (parameter {p})" for p in counts),
            remedy="adamx counts them together",
        )
    return next(iter(counts.values()))


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
                found=type(group).__name__,
            )
        positions += group["params"]
    kinds = {type(position) for position in positions}
    if kinds not in ({int}, {str}):
        raise CheckpointError(
            where="param_groups",
            expected="positions or names of parameters in params",
            found=listed(sorted(kind.__name__ for kind in kinds)),
        )
    if len(set(positions)) != len(positions):
        raise CheckpointError(where="param_groups", expected="every parameter once")
    return groups, positions


def _plain(key: str, value: Any) -> Any:
    """A number, a flag or a text, or a pair of such: what can be compared and has a `repr`."""
    if isinstance(value, Tensor) and value.size == 1:
        value = read_values({key: value})[key]
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        return value.item()
    if isinstance(value, list | tuple):
        is_pair = len(value) <= 2 and not any(isinstance(v, list | tuple) for v in value)
        if is_pair:
            return tuple(_plain(key, part) for part in value)
    elif value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidType(where=f"{key:.80}", expected="a number", found=describe(value))


def list_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in KEPT}


def _read_config(groups: Sequence[Mapping[str, Any]]) -> AdamConfig:
    try:
        plain = [
            {k: _plain(str(k), v) for k, v in list_settings(group).items()} for group in groups
        ]
        configs = [AdamConfig.from_torch(group) for group in plain]
    except (TypeError, ValueError) as error:
        raise suggest_config(error).within("param_groups") from error
    for index, other in enumerate(configs):
        if other != configs[0]:
            keys = [k for k in plain[0] if plain[0][k] != plain[index].get(k)]
            raise CheckpointError(
                where="param_groups",
                expected="groups with the same hyperparameters",
                found=f"groups 0 and {index} with other {listed(keys)}; an AdamConfig holds one "
                "set",
                remedy=f"{OTHER_CONFIG}, and treat the groups with optax.partition",
                argument="config",
            )
    return configs[0]


def _read_entry(
    position: int | str, entry: Any, size: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The steps done and the moments of one parameter."""
    where = f"state/{position}"
    if not isinstance(entry, Mapping) or not {"step", "exp_avg", "exp_avg_sq"} <= entry.keys():
        keys = listed(map(str, entry)) if isinstance(entry, Mapping) else describe(entry)
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
