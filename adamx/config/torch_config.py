"""A parameter group of torch.optim.Adam or AdamW, as the fields of `AdamConfig` and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.trees import listed

__all__ = ["IGNORED", "fields_from_torch", "torch_from_fields"]

_CLIP_ELSEWHERE = (
    "with torch the training script clips: set this to None before saving, and clip there with "
    "torch.nn.utils.clip_grad_norm_ or clip_grad_value_"
)

# Keys of a parameter group that do not change what is computed.
IGNORED = {"params", "param_names", "foreach", "capturable", "differentiable", "fused"}


def fields_from_torch(param_group: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of `AdamConfig` for a parameter group; see `AdamConfig.from_torch`.

    Returns:
      The fields, and by field the key that it was read from.
    """
    if not isinstance(param_group, Mapping):
        found = type(param_group).__name__
        raise InvalidType(where="param_group", expected="a mapping", found=found)
    if "param_groups" in param_group:
        raise InvalidValue(
            where="param_groups",
            expected="one parameter group",
            found="a state dict",
            remedy="pass its param_groups[0], and make one configuration for each of the others",
        )
    group = {k: v for k, v in param_group.items() if k not in IGNORED}
    betas = group.pop("betas", (0.9, 0.999))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise InvalidType(where="betas", expected="two numbers", found=repr(betas))
    fields = {
        "learning_rate": _item(group.pop("lr", 1e-3)),
        "b1": _item(betas[0]),
        "b2": _item(betas[1]),
        "eps": _item(group.pop("eps", 1e-8)),
        "weight_decay": _item(group.pop("weight_decay", 0.0)),
        "decoupled": group.pop("decoupled_weight_decay", None),
        "amsgrad": group.pop("amsgrad", False),
        "maximize": group.pop("maximize", False),
        "convention": "torch",
    }
    if group:
        remedy = (
            "initial_lr comes from a learning-rate scheduler: remove it, and set the schedule with "
            "dataclasses.replace(config, learning_rate=...)"
        )
        raise InvalidValue(
            "unknown key of a parameter group",
            where=listed(sorted(group)),
            remedy=remedy if "initial_lr" in group else "",
        )
    if fields["decoupled"] is None:
        if fields["weight_decay"]:
            raise InvalidValue(
                where="decoupled_weight_decay",
                expected="it together with weight_decay",
                found="weight_decay alone",
                remedy="set it to True for torch.optim.AdamW, to False for Adam",
            )
        fields["decoupled"] = False
    return fields, {"learning_rate": "lr", "b1": "betas[0]", "b2": "betas[1]"}


def torch_from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group for the fields of an `AdamConfig`; see `AdamConfig.to_torch`.

    Raises:
      InvalidValue: torch cannot express a field, which is the error's `where`.
    """
    f = fields
    refused = {
        "convention": f["convention"] == "keras",
        "amsgrad": f["amsgrad"] and f["convention"] == "optax",
        "learning_rate": callable(f["learning_rate"]),
        "eps_root": f["eps_root"] != 0,
        "decay": f["decay"] != 0,
        "nesterov": f["nesterov"],
        "bias_correction": not f["bias_correction"],
        **{k: f[k] is not None for k in ("clip_norm", "clip_global_norm", "clip_value")},
    }
    for name, is_refused in refused.items():
        if is_refused:
            is_clipping = name.startswith("clip")
            raise InvalidValue(
                f"torch.optim cannot express {name}={f[name]!r}",
                where=name,
                remedy=_CLIP_ELSEWHERE if is_clipping else "",
            )

    def held(number: float) -> float:
        """The number that the framework computes with, which torch takes as a double."""
        return float(np.float32(number)) if f["float32"] else number

    return {
        "lr": held(f["learning_rate"]),
        "betas": (held(f["b1"]), held(f["b2"])),
        "eps": f["eps"],
        "weight_decay": f["weight_decay"],
        "amsgrad": f["amsgrad"],
        "maximize": f["maximize"],
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": f["decoupled"],
    }


def _item(x: Any) -> Any:
    """A number, out of the tensor in which torch may hold it."""
    return x.item() if hasattr(x, "item") else x
