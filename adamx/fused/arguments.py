"""The arguments of a whole step."""

from __future__ import annotations  # see `adamx.base.arguments`

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import chex
import optax

from adamx.base.arguments import AdamArguments, DecayArguments
from adamx.base.checks import check_positive
from adamx.base.errors import AdamxError, InvalidType, InvalidValue
from adamx.base.random_bits import check_key
from adamx.base.residual import check_bits

__all__ = ["FusedAdamArguments", "FusedAdamWArguments", "StepArguments"]


@dataclasses.dataclass(frozen=True, eq=False)
class StepArguments(AdamArguments):
    """What both forms of a whole step take."""

    _: dataclasses.KW_ONLY
    clip_global_norm: chex.Numeric | None = None
    packed: bool = False
    residual_bits: Literal[8, 16] | None = None
    residual_key: chex.ArrayDevice | int | None = None

    def __post_init__(self) -> None:
        """See `Arguments`."""
        try:
            super().__post_init__()
            if self.clip_global_norm is not None:
                limit = check_positive("clip_global_norm", self.clip_global_norm)
                self._set("clip_global_norm", limit)
            if self.packed and self.moments is not None:
                raise InvalidValue(
                    where="packed",
                    expected="False with moments in 8 bits, whose leaves have their own arrays",
                    found=True,
                )
            if self.residual_bits is not None:
                check_bits("residual_bits", self.residual_bits)
            if self.residual_key is not None:
                check_key("residual_key", self.residual_key)
                if self.residual_bits is None:
                    raise InvalidValue(
                        where="residual_key",
                        expected="residual_bits=8 or residual_bits=16 with it",
                        found="residual_bits=None",
                        remedy="set that or omit residual_key",
                    )
        except AdamxError as error:
            raise error.replace(remedy=self._remedy(error)) from None

    def _remedy(self, error: AdamxError) -> str:
        """The remedy for a fused step, to which `optax.inject_hyperparams` does not apply."""
        value = getattr(self, error.where, None)
        if callable(value):
            return (
                "for a schedule, make the number an argument of the function that you jit, and "
                "build the optimizer in it"
            )
        is_array = hasattr(value, "dtype") and isinstance(error, InvalidType)
        return "pass a Python number" if is_array else error.remedy


@dataclasses.dataclass(frozen=True, eq=False)
class FusedAdamArguments(StepArguments):
    """The arguments of `fused_adam`."""

    _: dataclasses.KW_ONLY
    weight_decay: optax.ScalarOrSchedule = 0.0
    decoupled: bool = True
    mask: Any | Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class FusedAdamWArguments(DecayArguments, StepArguments):
    """The arguments of `fused_adamw`."""
