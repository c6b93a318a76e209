"""What all of DeepSpeed's forms of an optimizer have in common: shapes, groups, a state."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._deepspeed_flat import Shapes
from adamx.checkpoint.formats._torch_tensors import describe
from adamx.checkpoint.untrusted.torch_tensors import is_shape

__all__ = ["State", "name_groups", "read_shapes", "replace_groups"]


class State(NamedTuple):
    """An optimizer, with arrays of the parameters' shapes.

    Attributes:
      state: by name of a parameter.
      groups: with names as `params`.
      masters: the weights that the optimizer updates.
    """

    state: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]
    masters: dict[str, np.ndarray]


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


def replace_groups(groups: Sequence[dict[str, Any]], new: Sequence[Mapping[str, Any]]) -> None:
    """Put hyperparameters into the groups of a file, for the keys that they have there."""
    for group, settings in zip(groups, new, strict=True):
        group |= {key: settings[key] for key in group.keys() & settings.keys() - {"params"}}
