"""Groups of hyperparameters as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from adamx.checkpoint.errors import CheckpointError
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup
from adamx.config.keras_schedules import KerasSchedule

__all__ = ["read_groups", "write_groups"]


def write_groups(groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """Each group's names, hyperparameters and count; an error for what JSON cannot hold."""
    return [
        {
            "names": list(group.names),
            "config": _config_to_json(group.config),
            "count": group.count,
            "scheduled": group.scheduled,
        }
        for group in groups
    ]


def read_groups(described: Mapping[str, Any]) -> tuple[ParameterGroup, ...]:
    """The groups of a description, which in version 1 of the format is that of the only one."""
    return tuple(map(_read_group, described.get("groups", [described])))


def _read_group(described: Mapping[str, Any]) -> ParameterGroup:
    names, count = described["names"], described["count"]
    if not all(isinstance(name, str) for name in names) or type(count) is not int:
        raise CheckpointError("expected strings as names and a whole number as count")
    scheduled = described.get("scheduled", False)
    if not isinstance(scheduled, bool):
        raise CheckpointError(where="scheduled", expected="true or false")
    config = _config_from_json(described["config"])
    return ParameterGroup(names=tuple(names), config=config, count=count, scheduled=scheduled)


def _config_to_json(config: AdamConfig) -> dict[str, Any]:
    """The fields; a schedule of Keras as Keras writes it."""
    fields = config.plain_fields()
    rate = fields["learning_rate"]
    if isinstance(rate, KerasSchedule):
        fields["learning_rate"] = rate.to_config()
    elif callable(rate):
        raise CheckpointError(
            where="learning_rate",
            expected="a number or a schedule of Keras",
            found="a Python function, which a file cannot hold",
            remedy="save with dataclasses.replace(checkpoint.config, learning_rate=...), and set "
            "the function again after loading",
        )
    return fields


def _config_from_json(fields: Mapping[str, Any]) -> AdamConfig:
    known = {field.name for field in dataclasses.fields(AdamConfig)}
    if unknown := sorted(fields.keys() - known):
        raise CheckpointError(
            f"unknown fields {unknown}", where="config", remedy="use a newer adamx"
        )
    rate = fields["learning_rate"]
    if isinstance(rate, Mapping):
        rate = KerasSchedule.from_config(rate)
    return AdamConfig(**{**fields, "learning_rate": rate})
