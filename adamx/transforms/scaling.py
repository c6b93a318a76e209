"""Optax's multiplications by a learning rate and a weight decay, but without type promotion.

Optax multiplies an update by the number as it is given: a float32 array turns bfloat16 updates into
float32. Here a number takes the precision of what it multiplies.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from adamx.base.checks import check_given, check_scheduled, resolve_mask
from adamx.base.dtypes import is_number, real_scalar
from adamx.base.numerics import by_parts
from adamx.base.rounded import check_not_rounded
from adamx.base.trees import is_none

__all__ = ["add_weight_decay", "mask_part", "scale_by_learning_rate"]


def scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule | None,
) -> optax.GradientTransformation:
    """`optax.scale_by_learning_rate`, with its state."""
    if learning_rate is None or is_number(learning_rate):
        return optax.scale_by_learning_rate(learning_rate)
    if callable(learning_rate):
        return optax.scale_by_learning_rate(
            lambda count: check_scheduled("learning_rate", learning_rate(count))
        )
    rate = learning_rate
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda g: _multiply(jnp.asarray(g), -rate), updates)
    )


def add_weight_decay(
    weight_decay: optax.ScalarOrSchedule, mask: Any | None = None
) -> optax.GradientTransformation:
    """`optax.add_decayed_weights`, with its state."""
    theirs = optax.add_decayed_weights(weight_decay)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        params = check_given(params, "for weight decay")
        check_not_rounded(updates)
        decay: Any = weight_decay
        if callable(decay):
            decay = check_scheduled("weight_decay", decay(state.count))
            state = state._replace(count=optax.safe_increment(state.count))

        def add(g: Any, p: Any) -> Any:
            return None if g is None else g + _multiply(jnp.asarray(p), decay)

        return jax.tree.map(add, updates, params, is_leaf=is_none), state

    return mask_part(optax.GradientTransformation(theirs.init, update), mask)


def mask_part(tx: optax.GradientTransformation, mask: Any | None) -> optax.GradientTransformation:
    """`optax.masked`, with errors of adamx; or the transformation itself without a mask."""
    return tx if mask is None else optax.masked(tx, lambda tree: resolve_mask(mask, tree))


def _multiply(x: chex.ArrayDevice, number: chex.Numeric) -> chex.ArrayDevice:
    """The product in the dtype of x."""
    return by_parts(jnp.multiply, x, real_scalar(number, jnp.finfo(x.dtype).dtype))
