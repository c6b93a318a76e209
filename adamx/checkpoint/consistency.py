"""Whether the parts of a checkpoint belong together."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.frameworks import FRAMEWORKS, Framework
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup, list_unlike

__all__ = [
    "Held",
    "Naming",
    "check_alike",
    "check_amsgrad",
    "check_groups",
    "check_moments",
    "guess_naming",
    "make_groups",
]

Naming = Literal["file", "inferred", "unknown"]

_Arrays = Mapping[str, np.ndarray]


class Held(Protocol):
    """What a checkpoint holds, for functions in modules that `Checkpoint` imports."""

    @property
    def framework(self) -> Framework:
        """What wrote the file."""
        ...

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        """The groups of variables."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The names of the optimizer's variables."""
        ...

    @property
    def is_named(self) -> bool:
        """Whether they are more than numbers."""
        ...

    @property
    def params(self) -> _Arrays:
        """The weights."""
        ...

    @property
    def mu(self) -> _Arrays:
        """The first moments."""
        ...

    @property
    def nu(self) -> _Arrays:
        """The second moments."""
        ...

    @property
    def nu_max(self) -> _Arrays:
        """AMSGrad's maxima."""
        ...


def guess_naming(names: Sequence[str]) -> Naming:
    """How names are known where the reader does not say; numbers are not names."""
    return "unknown" if all(name.isdecimal() for name in names) else "file"


def make_groups(
    groups: Sequence[ParameterGroup] | None,
    names: Sequence[str] | None,
    config: AdamConfig | None,
    count: int | None,
) -> tuple[ParameterGroup, ...]:
    """The groups of a checkpoint; a single group may be given by its parts.

    Raises:
      CheckpointError: neither groups nor all parts of one; or parts beside several groups.
    """
    parts: dict[str, Any] = {"config": config, "count": count}
    if names is not None:
        parts["names"] = tuple(names)
    parts = {field: value for field, value in parts.items() if value is not None}
    if not parts and groups:
        return tuple(groups)
    if groups is not None and len(groups) == 1:
        return (dataclasses.replace(groups[0], **parts),)
    if groups or len(parts) < 3:
        raise CheckpointError(
            where=listed(parts) or "groups",
            expected="either groups, or names, config and count of a single group",
            found=f"{len(groups or ())} groups and {listed(parts) or 'nothing else'}",
            remedy="pass groups= to dataclasses.replace, with every group" if groups else "",
        )
    return (ParameterGroup(**parts),)


def check_amsgrad(is_held: bool, config: AdamConfig) -> None:
    """Raise unless a given configuration has AMSGrad where a file has its maxima."""
    if is_held != config.amsgrad:
        raise CheckpointError(
            f"the file has {is_held}, config= has {config.amsgrad}",
            where="amsgrad",
            argument="config",
        )


def check_alike(field: str, groups: Sequence[ParameterGroup]) -> None:
    """Raise if groups differ in their count, or in a field of their config."""
    unlike = [name for name in list_unlike(groups) if (name == "count") == (field == "count")]
    if unlike:
        raise CheckpointError(
            where=field,
            expected="one for all variables",
            found=f"{len(groups)} groups that differ in {listed(unlike)}",
            remedy="use checkpoint.groups, or checkpoint.restore, which gives each group its own",
        )


def check_groups(framework: Framework, groups: Sequence[ParameterGroup]) -> None:
    """Raise for a count below 0, and for maxima of another kind than the framework's."""
    for group in groups:
        theirs, ours = FRAMEWORKS[framework].convention, group.config.convention
        if group.config.amsgrad and ours == "optax" != theirs:
            raise CheckpointError(
                where="config",
                expected=f"the convention of {framework} with AMSGrad",
                found="'optax', whose maxima are of the bias-corrected second moment",
                argument="config",
            )
        if group.count < 0:
            raise CheckpointError(where="count", expected="at least 0", found=group.count)


def check_moments(
    names: Sequence[str],
    params: _Arrays,
    mu: _Arrays,
    others: Mapping[str, _Arrays],
    amsgrad: Mapping[str, bool],
) -> None:
    """Raise unless each variable has its moments, of one shape with each other and its weight.

    Args:
      names: of the variables; one without moments is frozen.
      params: the weights by name.
      mu: the first moments by name.
      others: `nu` and `nu_max`, each by name.
      amsgrad: by name, whether the variable must have maxima.
    """
    known = set(names)
    if len(known) != len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise CheckpointError(where=listed(twice), expected="every name once")
    problems = [f"{name}: moments without a variable" for name in mu if name not in known]
    for field, arrays in others.items():
        wanted = {n: a for n, a in mu.items() if field == "nu" or amsgrad.get(n)}
        problems += [f"{field}/{n}: missing for mu/{n}" for n in wanted if n not in arrays]
        problems += [
            f"{field}/{name}: not expected with amsgrad=False"
            if name in mu
            else f"{field}/{name}: there is no mu/{name}"
            for name in arrays
            if name not in wanted
        ]
        problems += [
            f"{field}/{n}: expected shape {a.shape} as mu/{n}, found {arrays[n].shape}"
            for n, a in wanted.items()
            if n in arrays and arrays[n].shape != a.shape
        ]
    problems += [
        f"{n}: expected moments of shape {params[n].shape} as the weight, found {a.shape}"
        for n, a in mu.items()
        if n in params and params[n].shape != a.shape
    ]
    if problems:
        raise CheckpointError("\n  ".join(["the moments do not fit together:", *problems]))
