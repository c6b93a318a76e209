"""The arguments of Adam: defined and checked once, and passed as one structure.

A public function is written with one argument, a dataclass, and `takes` gives it the signature of
that class: `help` and type checkers see every argument. Classes inherit from several of the ones
here; the fields of a base come after those of the bases to its right.
"""

from __future__ import annotations  # `help` shows annotations as they are written

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import chex
import jax.numpy as jnp
import optax

from adamx.base.checks import (
    check_choice,
    check_dtype,
    check_precise_number,
    check_rate,
)
from adamx.base.dtypes import check_not_flushed, is_number
from adamx.base.eight_bit import EightBit, check_moments
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.numerics import CONVENTIONS, ConventionName, Hyperparameters
from adamx.base.random_bits import check_key

__all__ = [
    "AdamArguments",
    "AdamWArguments",
    "Arguments",
    "DirectionArguments",
    "MomentArguments",
    "RateArguments",
    "takes",
]

_P = ParamSpec("_P")
_A = TypeVar("_A")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True, eq=False)
class Arguments:
    """The root of all argument classes; each checks its fields after the bases to its right."""

    def __post_init__(self) -> None:
        """Raise for a value out of range or of the wrong type; NumPy's numbers become Python's."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen


@dataclasses.dataclass(frozen=True, eq=False)
class RateArguments(Arguments):
    """The step size."""

    learning_rate: optax.ScalarOrSchedule | None  # None, as in Optax, for no scaling at all

    def __post_init__(self) -> None:
        """See `Arguments`."""
        super().__post_init__()
        if self.learning_rate is not None:
            self._set("learning_rate", check_rate("learning_rate", self.learning_rate))


@dataclasses.dataclass(frozen=True, eq=False)
class MomentArguments(Arguments):
    """What every form of Adam takes: Optax's arguments in its order, then adamx's by keyword."""

    b1: chex.Numeric = 0.9
    b2: chex.Numeric = 0.999
    eps: chex.Numeric = 1e-8
    eps_root: chex.Numeric = 0.0
    mu_dtype: Any | None = None
    _: dataclasses.KW_ONLY
    nu_dtype: Any | None = None
    amsgrad: bool = False
    convention: ConventionName = "optax"

    def __post_init__(self) -> None:
        """See `Arguments`."""
        super().__post_init__()
        for name in ("b1", "b2"):
            self._set(name, check_precise_number(name, getattr(self, name), below=1))
        for name in ("eps", "eps_root"):
            number = check_precise_number(name, getattr(self, name))
            self._set(name, check_not_flushed(name, number))
        check_dtype("mu_dtype", self.mu_dtype, jnp.inexact, "a floating-point")
        check_dtype("nu_dtype", self.nu_dtype, jnp.floating, "a real floating-point")
        check_choice("convention", self.convention, tuple(CONVENTIONS))

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The values of b1, b2, eps and eps_root."""
        return Hyperparameters(self.b1, self.b2, self.eps, self.eps_root)


@dataclasses.dataclass(frozen=True, eq=False)
class DirectionArguments(MomentArguments):
    """The arguments of `scale_by_adam`."""

    _: dataclasses.KW_ONLY
    nu_key: chex.ArrayDevice | int | None = None
    nesterov: bool = False
    moments: EightBit | Literal["8bit"] | None = None

    def __post_init__(self) -> None:
        """See `Arguments`."""
        super().__post_init__()
        if self.nu_key is not None:
            check_key("nu_key", self.nu_key)
            if self.nu_dtype is None or jnp.dtype(self.nu_dtype) != jnp.bfloat16:
                raise InvalidValue(
                    where="nu_key",
                    expected='nu_dtype="bfloat16" with it',
                    found=repr(self.nu_dtype),
                    remedy=(
                        "set that or omit nu_key: float32 needs no key, and in float16 the squares "
                        "of small gradients underflow, however they are rounded"
                    ),
                )
        self._set("moments", check_moments(self.moments))
        self._check_eight_bit()
        if self.nesterov and self.convention != "optax":
            raise InvalidValue(
                where="nesterov",
                expected='convention="optax" with it',
                found=(
                    f"{self.convention!r}: NAdam in Keras and torch schedules its momentum, and is "
                    "a different algorithm"
                ),
            )

    @property
    def eight_bit(self) -> EightBit | None:
        """`moments` after it was checked."""
        return self.moments if isinstance(self.moments, EightBit) else None

    def _check_eight_bit(self) -> None:
        """Raise for another argument that says how moments are kept."""
        if self.moments is None:
            return
        given = {name: getattr(self, name) for name in ("mu_dtype", "nu_dtype")}
        for name, value in given.items():
            if value is not None:
                raise InvalidValue(
                    where=name,
                    expected="None with moments in 8 bits",
                    found=repr(value),
                    remedy="parameters that they leave out keep float32 moments",
                )
        if is_number(self.b1) and is_number(self.b2) and self.b2 <= self.b1:
            raise InvalidValue(
                where="b2",
                expected=f"a number above b1={self.b1!r} with moments in 8 bits",
                found=repr(self.b2),
                remedy="the second moment must change more slowly than the first: use float32",
            )
        if self.amsgrad:
            raise InvalidValue(
                where="amsgrad",
                expected="False with moments in 8 bits",
                found=True,
                remedy="a maximum of what is rounded at random only rises",
            )


@dataclasses.dataclass(frozen=True, eq=False)
class AdamArguments(DirectionArguments, RateArguments):
    """The arguments of `adam`."""


@dataclasses.dataclass(frozen=True, eq=False)
class DecayArguments(Arguments):
    """Decoupled weight decay, as in `optax.adamw`."""

    weight_decay: optax.ScalarOrSchedule = 1e-4
    mask: Any | Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """See `Arguments`."""
        super().__post_init__()
        self._set("weight_decay", check_rate("weight_decay", self.weight_decay))


@dataclasses.dataclass(frozen=True, eq=False)
class AdamWArguments(DecayArguments, AdamArguments):
    """The arguments of `adamw`."""


class _Shown(str):
    """The text of an annotation, which `help` and `inspect.signature` show without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def takes(kind: Callable[_P, _A]) -> Callable[[Callable[[_A], _R]], Callable[_P, _R]]:
    """Give a function of one structure the signature of that structure's class, `kind`.

    The resulting function raises a TypeError for an unknown argument. If the name is that of
    another framework, the error says what to use instead.
    """
    signature = inspect.signature(kind)
    shown = [p.replace(annotation=_Shown(p.annotation)) for p in signature.parameters.values()]

    def decorate(function: Callable[[_A], _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            _check_names(function.__name__, kwargs, list(signature.parameters))
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise InvalidType(where=f"{function.__name__}()", problem=f"{error}") from None
            return function(kind(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        annotations = {name: p.annotation for name, p in signature.parameters.items()}
        call.__annotations__ = annotations | {"return": returned}
        del call.__wrapped__  # whose signature is the structure
        call.__signature__ = inspect.Signature(shown, return_annotation=returned)  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
        return call

    return decorate


# The names that other frameworks use for an argument.
_RENAMED = {
    "lr": "learning_rate",
    "alpha": "learning_rate",
    "beta1": "b1",
    "beta2": "b2",
    "beta_1": "b1",
    "beta_2": "b2",
    "epsilon": "eps",
    "clip_norm": "clip_global_norm",
    "global_clipnorm": "clip_global_norm",
    "max_grad_norm": "clip_global_norm",
    "use_nesterov": "nesterov",
}

# Arguments of other frameworks, and what replaces them here.
_ELSEWHERE = {
    "lr": "the learning rate is an argument of adamx.adam and adamx.adamw",
    "learning_rate": "it is an argument of adamx.adam and adamx.adamw",
    "betas": "b1 and b2 are two arguments",
    "decay": "as learning_rate, pass adamx.inverse_time_decay(learning_rate, decay)",
    "weight_decay": (
        "for decoupled weight decay use adamx.adamw; for weight decay as in torch.optim.Adam chain "
        "optax.add_decayed_weights before adamx.adam"
    ),
    "mask": "wrap the transformation in optax.masked",
    "clipnorm": (
        "in TensorFlow 1.1 this is the norm of all gradients: chain optax.clip_by_global_norm "
        "before it; to clip each variable by its own norm, as later versions of Keras do, use "
        "adamx.AdamConfig(clip_norm=...)"
    ),
    "global_clipnorm": "chain optax.clip_by_global_norm before it",
    "clipvalue": "chain optax.clip before it",
    "maximize": "chain optax.scale(-1.0) before it",
}


def _check_names(function: str, given: dict[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            new = _RENAMED.get(name)
            hint = f"it is called {new} here" if new in known else _ELSEWHERE.get(name)
            raise InvalidType(
                problem=f"{function}() has no argument {name!r}{f': {hint}' if hint else ''}",
                remedy=f"Its arguments are {', '.join(known)}",
            )
