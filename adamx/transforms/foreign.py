"""Parts of other frameworks' Adam, for an Optax chain, that Optax does not have."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.checks import check_given
from adamx.base.clipping import clip_array, clip_to_norm, global_norm
from adamx.base.dtypes import real_scalar
from adamx.base.errors import InvalidType
from adamx.base.numerics import bias_correction
from adamx.base.trees import flatten_with_path, is_none, path_name
from adamx.transforms.scaling import mask_part

__all__ = [
    "clip_each_norm",
    "clip_global_norm",
    "clip_values",
    "torch_weight_decay",
    "undo_bias_correction",
]


def clip_each_norm(max_norm: chex.Numeric) -> optax.GradientTransformation:
    """Clip the norm of each array, in float32 or wider."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda g: clip_array(g, max_norm), updates)
    )


def clip_global_norm(max_norm: chex.Numeric) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, in float32 or wider, with the same state."""

    def clip(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        norm = global_norm(jax.tree.leaves(updates))
        return jax.tree.map(lambda g: clip_to_norm(g, norm, max_norm), updates)

    return optax.stateless(clip)


def clip_values(largest: chex.Numeric) -> optax.GradientTransformation:
    """`optax.clip`, in the gradient's dtype, and with an error for complex gradients."""

    def clip(g: chex.ArrayDevice) -> chex.ArrayDevice:
        limit: Any = real_scalar(largest, jnp.result_type(g))
        return jnp.clip(g, -limit, limit)

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        for path, g in flatten_with_path(updates)[0]:
            if jnp.iscomplexobj(g):  # which have no order
                raise InvalidType(
                    where=path_name(path),
                    expected="a real gradient for clipping by value",
                    found=jnp.result_type(g),
                    remedy="clip by norm",
                )
        return jax.tree.map(clip, updates)

    return optax.stateless(update)


def undo_bias_correction(b1: chex.Numeric, b2: chex.Numeric) -> optax.GradientTransformation:
    """Make m / (sqrt(v) + eps) of a direction of `scale_by_adam(convention="keras")`.

    That is sqrt(1 - b2^t) / (1 - b1^t) times as large. The count is Optax's own for schedules.
    """

    def factor(count: jax.typing.ArrayLike) -> chex.ArrayDevice:
        t, dtype = jnp.asarray(optax.safe_increment(count)), np.dtype(np.float32)
        return bias_correction(b1, t, dtype) / jnp.sqrt(bias_correction(b2, t, dtype))

    return optax.scale_by_schedule(factor)


def torch_weight_decay(
    rate: float, decay: float, mask: Any | None = None
) -> optax.GradientTransformation:
    """`optax.add_decayed_weights` with the decay that torch computes.

    torch multiplies parameters by 1 - rate * decay, rounded to float32 unless they are wider: with
    1 - 1e-5 they are off by 1.4e-5 of themselves after 1,000 steps.
    """
    rounded = (1 - float(np.float32(1 - rate * decay))) / rate

    def add(g: chex.ArrayDevice, p: chex.ArrayDevice) -> chex.ArrayDevice | None:
        if g is None:
            return None
        wide = jnp.finfo(jnp.result_type(p)).bits > 32
        return g + (decay if wide else rounded) * p

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        params = check_given(params, "for weight decay")
        return jax.tree.map(add, updates, params, is_leaf=is_none)

    return mask_part(optax.stateless(update), mask)
