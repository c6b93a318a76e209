"""What the tests of stochastic rounding share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import adamx

__all__ = [
    "all_numbers",
    "apply_updates",
    "as_bits",
    "finite",
    "make_step",
    "neighbours",
    "rounded_update",
]


def apply_updates(params, updates):
    if isinstance(params, jax.Array) and params.dtype.itemsize == 1:
        return (params.astype(jnp.float32) + updates).astype(params.dtype)
    with jax.numpy_dtype_promotion("standard"):  # Optax adds float32 to bfloat16
        return optax.apply_updates(params, updates)


def make_step(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    return step


def neighbours(x, dtype):
    """The numbers of `dtype` on both sides of x, or x twice, as NumPy finds them; in float32."""
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):
        nearest = x.astype(dtype)
    largest = np.asarray(jnp.finfo(dtype).max)
    down, up = np.nextafter(nearest, -largest), np.nextafter(nearest, largest)
    wide = nearest.astype(np.float32)
    below = np.where(wide > x, down.astype(np.float32), wide)
    return below, np.where(wide < x, up.astype(np.float32), wide)


def all_numbers(dtype):
    """Every number of `dtype`, NaN and infinities too, of each sign."""
    size = jnp.dtype(dtype).itemsize
    return np.arange(2 ** (8 * size), dtype=f"uint{8 * size}").view(dtype)


def as_bits(x):
    return np.asarray(x).view(f"uint{8 * x.dtype.itemsize}")


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@jax.jit
def rounded_update(key, updates, params):
    tx = adamx.stochastic_round(key)
    return tx.update(updates, tx.init(params), params)[0]
