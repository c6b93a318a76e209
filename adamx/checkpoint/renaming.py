"""Rename an optimizer's variables, for example to their names in the training environment."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from adamx.base.errors import InvalidType
from adamx.base.trees import listed
from adamx.checkpoint.consistency import Held
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.names import unwrap_names

__all__ = ["rename_fields"]


def rename_fields(old: Held, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a checkpoint that change with the names of its variables.

    Args:
      old: the checkpoint.
      names: the new ones, in the order of the old ones.

    Raises:
      CheckpointError: they do not fit the variables, or the weights.
    """
    given = _check_names(names, len(old.names))
    if old.params:
        given = _find_weights(given, list(old.params))
    new = dict(zip(old.names, given, strict=True))
    if wrong := [
        f"{name}: expected shape {old.params[name].shape}, found {old.mu[before].shape}"
        for before, name in new.items()
        if before in old.mu and name in old.params
        if old.params[name].shape != old.mu[before].shape
    ]:
        raise CheckpointError(
            f"the variables do not have the shapes of these weights: {listed(wrong)}",
            where="names",
            remedy="pass the names in the order of the optimizer's parameters, group by group",
            argument="names",
        )
    groups = [
        dataclasses.replace(group, names=tuple(new[name] for name in group.names))
        for group in old.groups
    ]
    moments = {"mu": old.mu, "nu": old.nu, "nu_max": old.nu_max}
    renamed = {
        field: {new[name]: array for name, array in arrays.items()}
        for field, arrays in moments.items()
    }
    return {"groups": groups, "naming": dict.fromkeys(given, "file"), **renamed}


def _check_names(names: object, count: int) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidType(where="names", expected="a list of names", found=type(names).__name__)
    given = list(names)
    for name in given:
        if not isinstance(name, str) or not name:
            raise InvalidType(
                where="names", expected="names such as 'hidden.weight'", found=repr(name)[:80]
            )
    if twice := [name for name, times in Counter(given).items() if times > 1]:
        raise CheckpointError(
            where="names",
            expected="every name once",
            found=f"{listed(twice)} twice",
            argument="names",
        )
    if len(given) != count:
        raise CheckpointError(
            where="names",
            expected=f"{count} names, one for each variable of the optimizer",
            found=len(given),
            remedy="list its parameters group by group, including the frozen ones",
            argument="names",
        )
    return given


def _find_weights(given: Sequence[str], weights: Sequence[str]) -> list[str]:
    """The names as those of the weights are spelled."""
    known = set(weights)
    bare = dict(zip(unwrap_names(weights), weights, strict=True))
    if len(bare) < len(weights):  # names that differ only in what wrappers added
        bare = {}
    found = [
        name if name in known else bare.get(plain)
        for name, plain in zip(given, unwrap_names(given), strict=True)
    ]
    if unknown := [name for name, its in zip(given, found, strict=True) if its is None]:
        raise CheckpointError(
            where="names",
            expected=f"names of the weights in the file, which are {listed(weights, most=1000)}",
            found=listed(unknown),
            remedy="if the optimizer does not train these weights, leave them out: "
            "dataclasses.replace(checkpoint, params={}).rename(names)",
            argument="names",
        )
    return [name for name in found if name is not None]
