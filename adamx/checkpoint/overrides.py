"""Hyperparameters that a caller gives for a file that has its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx.base.checks import check_choice
from adamx.base.errors import AdamxError, InvalidType
from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import check_amsgrad
from adamx.checkpoint.errors import CheckpointError, convert_error
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup

__all__ = ["Override", "check_override", "list_contradictions", "override"]

Override = AdamConfig | Mapping[str, Any]
"""All hyperparameters; or some fields of `AdamConfig` by name, to keep the others of the file."""

_FIELDS = tuple(field.name for field in dataclasses.fields(AdamConfig))


def check_override(config: Any) -> None:
    """Raise unless it is an `AdamConfig`, or a mapping of its fields."""
    if isinstance(config, Mapping):
        for name in config:
            check_choice("config", name, _FIELDS)
    elif config is not None and not isinstance(config, AdamConfig):
        expected = "an AdamConfig, or a mapping of some of its fields"
        raise InvalidType(where="config", expected=expected, found=type(config).__name__)


def override(checkpoint: Checkpoint, config: Override) -> Checkpoint:
    """The checkpoint with these hyperparameters in all of its groups.

    Raises:
      CheckpointError: AMSGrad's maxima in the file are of the other kind, or missing.
    """
    groups = []
    for group in checkpoint.groups:
        try:
            new = (
                config
                if isinstance(config, AdamConfig)
                else dataclasses.replace(group.config, **config)
            )
        except AdamxError as error:
            raise convert_error(error, argument="config").within("config") from error
        _check_maxima(group.config, new)
        scheduled = group.scheduled and new.learning_rate == group.config.learning_rate
        groups.append(dataclasses.replace(group, config=new, scheduled=scheduled))
    return dataclasses.replace(checkpoint, groups=tuple(groups))


def _check_maxima(old: AdamConfig, new: AdamConfig) -> None:
    check_amsgrad(old.amsgrad, new)
    conventions = {old.convention, new.convention}
    if old.amsgrad and len(conventions) > 1 and "optax" in conventions:
        raise CheckpointError(
            f"AMSGrad's maxima in {old.convention} are not those in {new.convention}, since only "
            "Optax corrects the bias first",
            where="convention",
            argument="config",
        )


def list_contradictions(groups: Sequence[ParameterGroup], config: AdamConfig) -> list[str]:
    """What a complete configuration changes in that of a file: a text for each field."""
    texts = []
    idle = config.idle_fields().intersection(*(group.config.idle_fields() for group in groups))
    idle.add("float32")  # rounds what is the same in float32
    for name in (name for name in _FIELDS if name not in idle):
        given = getattr(config, name)
        own = [getattr(group.config, name) for group in groups]
        unlike = [value for value in own if not _is_same(value, given)]
        if unlike:
            texts.append(f"{name} {listed(dict.fromkeys(map(repr, unlike)))}, given {given!r}")
    return texts


def _is_same(a: Any, b: Any) -> bool:
    """Whether they are equal, or the same in float32, in which some frameworks keep numbers."""
    if isinstance(a, float) and isinstance(b, float):
        with np.errstate(over="ignore"):
            return np.float32(a) == np.float32(b)
    return a is b or bool(a == b)
