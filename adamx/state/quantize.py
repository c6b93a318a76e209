"""Change how the moments of a state are kept: as float32 arrays, or in 8 bits."""

from typing import Any, Literal

import jax
import optax

from adamx.base.adam_state import AdamState, AmsgradState
from adamx.base.dtypes import compute_dtype
from adamx.base.eight_bit import (
    EightBit,
    check_moments,
    decode_moments,
    encode_moments,
    is_eight_bit,
)
from adamx.base.errors import InvalidValue

__all__ = ["dequantize_moments", "quantize_moments"]


def quantize_moments(
    state: optax.OptState, moments: EightBit | Literal["8bit"] = "8bit"
) -> optax.OptState:
    """A copy of `state` whose Adam states keep their moments in 8 bits.

    Args:
      state: any Optax state with an Adam state in it; not changed. May be traced.
      moments: which moments, and how; see `EightBit`. The same as for the transformation that
        continues with the result.

    Returns:
      The new state. Moments are rounded at random, once: 8 bits hold less than float32. Those that
      are in 8 bits already stay as they are.

    Raises:
      ValueError: no Adam state, or one with AMSGrad's maximum, which has no 8-bit form.
      TypeError: `moments` is something else.

    Example:
      >>> import adamx, jax.numpy as jnp
      >>> state = adamx.adam(1e-3).init({"w": jnp.ones((64, 64))})
      >>> state = adamx.quantize_moments(state)
      >>> state[0].mu["w"].codes.dtype.name
      'int8'
    """
    how = check_moments(moments) or EightBit()

    def quantize(node: Any) -> Any:
        if not isinstance(node, AdamState | AmsgradState):
            return node
        if isinstance(node, AmsgradState):
            raise InvalidValue(
                where="state",
                expected="an Adam state without AMSGrad, whose maximum has no 8-bit form",
                found=type(node).__name__,
            )
        mu, nu = encode_moments(how, node.count, node.mu, node.nu)
        return node._replace(mu=mu, nu=jax.tree.map(_widen, nu, is_leaf=is_eight_bit))

    def is_adam(node: Any) -> bool:
        return isinstance(node, AdamState | AmsgradState)

    if not any(map(is_adam, jax.tree.leaves(state, is_leaf=is_adam))):
        raise InvalidValue(
            where="state",
            expected="an optimizer state that holds an AdamState",
            found=f"none in {type(state).__name__}",
            remedy="unpack a packed state first; of Flax NNX pass optimizer.opt_state",
        )
    return jax.tree.map(quantize, state, is_leaf=is_adam)


def dequantize_moments(state: optax.OptState) -> optax.OptState:
    """A copy of `state` with float32 arrays in place of moments in 8 bits.

    The numbers are those that the next step would read, unless the square of one is outside of
    float32's range. A transformation without `moments=` continues from them.

    Args:
      state: any Optax state; not changed. May be traced.

    Returns:
      The new state. If it has no moments in 8 bits, an equal one.
    """
    return decode_moments(state)


def _widen(nu: Any) -> Any:
    """A second moment that stays an array: float32 at least, as `init` makes it."""
    return nu if is_eight_bit(nu) else nu.astype(compute_dtype(nu.dtype))
