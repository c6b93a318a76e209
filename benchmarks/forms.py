"""Adam whose moments, and whose parameters, are stored in various forms."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

import adamx
from benchmarks.contenders import Optimizer, flashoptim, from_optax

__all__ = ["FLOAT32", "FORMS", "READ_NARROW", "Form"]


@dataclasses.dataclass(frozen=True)
class Form:
    """One form in which Adam is stored.

    Attributes:
      make: the optimizer, of a learning rate and of a key from which it rounds at random. It gets
        gradients in float32.
      params: the dtype of the parameters between steps.
      read: the dtype whose numbers the loss gets, and its gradients have.
    """

    make: Callable[[Any, jax.Array], Optimizer]
    params: str = "float32"
    read: str = "float32"


def _adam(rate: Any, **options: Any) -> Optimizer:
    return from_optax(adamx.adam(rate, **options))


def _eight_bit(key: jax.Array) -> adamx.EightBit:
    return adamx.EightBit(min_size=0, key=key)


def _narrow(rate: Any, key: jax.Array, end: optax.GradientTransformation) -> Optimizer:
    """Moments in 8 bits, and parameters in bfloat16, which the end of the chain rounds."""
    return from_optax(optax.chain(adamx.adam(rate, moments=_eight_bit(key)), end))


_LOW = "bfloat16"

# FLOAT32 is what the others are compared with; READ_NARROW computes the loss from a bfloat16 copy
# of its parameters, as those forms do that keep parameters in bfloat16.
FLOAT32, READ_NARROW = "float32", "float32, read in bfloat16"
FORMS = {
    FLOAT32: Form(lambda rate, _: _adam(rate)),
    "8 bits": Form(lambda rate, key: _adam(rate, moments=_eight_bit(key))),
    "bfloat16, to nearest": Form(lambda rate, _: _adam(rate, mu_dtype=_LOW, nu_dtype=_LOW)),
    "bfloat16, v at random": Form(
        lambda rate, key: _adam(rate, mu_dtype=_LOW, nu_dtype=_LOW, nu_key=key)
    ),
    "flashoptim-jax": Form(
        lambda rate, _: flashoptim(rate, master_weight_bits=None, weight_decay=0.0)
    ),
    READ_NARROW: Form(lambda rate, _: _adam(rate), read=_LOW),
    "8 bits + residual": Form(
        lambda rate, key: _narrow(rate, key, adamx.residual_params(8, key=key)), _LOW, _LOW
    ),
    "8 bits, weights at random": Form(
        lambda rate, key: _narrow(rate, key, adamx.stochastic_round(key)), _LOW, _LOW
    ),
    "flashoptim-jax + residual": Form(
        lambda rate, _: flashoptim(rate, master_weight_bits=24, weight_decay=0.0), _LOW, _LOW
    ),
}
