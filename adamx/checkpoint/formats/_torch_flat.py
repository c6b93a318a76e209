"""The state dict of an optimizer in one level, as `torch.distributed.checkpoint` flattens it.

Its keys are `state.<name>.exp_avg` and `param_groups.<name>.lr`: each parameter has a copy of the
hyperparameters of its group.
"""

from collections.abc import Mapping
from typing import Any

from adamx.checkpoint.formats._torch_tensors import freeze

__all__ = ["flatten", "is_flat", "unflatten"]

_STATE, _GROUPS = "state.", "param_groups."


def is_flat(node: Any) -> bool:
    """Whether it is a flattened state dict of an optimizer."""
    return (
        isinstance(node, dict)
        and all(isinstance(key, str) and key.startswith((_STATE, _GROUPS)) for key in node)
        and any(key.startswith(_GROUPS) for key in node)
    )


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The same in two levels, with groups of parameters that follow one another."""
    state: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        prefix, levels = (_STATE, state) if key.startswith(_STATE) else (_GROUPS, groups)
        name, _, field = key.removeprefix(prefix).rpartition(".")
        levels.setdefault(name, {})[field] = value
    merged: list[dict[str, Any]] = []
    last = None
    for name, group in groups.items():
        settings = freeze(group)
        if merged and settings == last:
            merged[-1]["params"].append(name)
        else:
            merged.append(group | {"params": [name]})
            last = settings
    return {"state": state, "param_groups": merged}


def flatten(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The flat form, which `unflatten` takes."""
    flat = {
        f"{_STATE}{name}.{field}": value
        for name, entry in state_dict["state"].items()
        for field, value in entry.items()
    }
    for group in state_dict["param_groups"]:
        settings = {field: value for field, value in group.items() if field != "params"}
        for name in group["params"]:
            flat |= {f"{_GROUPS}{name}.{field}": value for field, value in settings.items()}
    return flat
