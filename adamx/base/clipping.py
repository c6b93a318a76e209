"""Clipping gradients by their norm, in float32 or wider: in 16 bits squares overflow.

Optax and torch divide by the norm and multiply by the limit; TensorFlow, which clips each array by
itself, multiplies by the quotient of both. The two differ in the last bit, so a run continues with
the form of its framework.
"""

from collections.abc import Sequence

import chex
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.dtypes import complex_dtype, compute_dtype, real_scalar
from adamx.base.numerics import by_parts

__all__ = ["clip_array", "clip_to_norm", "global_norm"]


def global_norm(grads: Sequence[chex.ArrayDevice]) -> chex.ArrayDevice:
    """The norm of all arrays together, a real scalar of float32 or wider."""
    return optax.tree.norm([_widen(g) for g in grads])


def clip_to_norm(
    g: chex.ArrayDevice, norm: chex.ArrayDevice, max_norm: chex.Numeric
) -> chex.ArrayDevice:
    """The gradient g, scaled by max_norm / norm if the norm of all gradients is not below max_norm.

    Computed in float32 or wider, and returned in the dtype of g.
    """
    x = _widen(g)
    real = jnp.finfo(x.dtype).dtype
    norm, limit = norm.astype(real), real_scalar(max_norm, real)
    scaled = by_parts(jnp.multiply, by_parts(jnp.divide, x, norm), limit)
    return jnp.where(norm < limit, x, scaled).astype(g.dtype)


def clip_array(g: chex.ArrayDevice, max_norm: chex.Numeric) -> chex.ArrayDevice:
    """The gradient g, scaled so that its norm is at most max_norm; dtypes as in `clip_to_norm`."""
    x = _widen(g)
    norm = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x))))
    limit = real_scalar(max_norm, norm.dtype)
    return (x * (limit / jnp.maximum(norm, limit)).astype(x.dtype)).astype(g.dtype)


def _widen(g: chex.ArrayDevice) -> chex.ArrayDevice:
    real: np.dtype = compute_dtype(g.dtype)
    return g.astype(complex_dtype(real) if jnp.iscomplexobj(g) else real)
