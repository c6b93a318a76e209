"""Which dtype Adam is computed in, and which ones moments have."""

from typing import Any, TypeGuard

import chex
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "complex_dtype",
    "compute_dtype",
    "first_moment_dtype",
    "is_number",
    "number_kind",
    "real_scalar",
    "second_moment_dtype",
]


def is_number(x: object) -> TypeGuard[float]:
    """Whether `x` is a real number of Python or NumPy, whose value can be looked at.

    An array of JAX is not, even when it is not traced: looking would wait for the device.
    """
    if isinstance(x, np.ndarray):
        return x.ndim == 0 and x.dtype.kind in "iuf"
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def number_kind(leaf: object) -> str:
    """The kind of number in a leaf: "real", "complex", or the name of something else."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None and isinstance(leaf, int | float | complex):
        dtype = jnp.result_type(leaf)
    if dtype is None:
        return type(leaf).__name__
    if dtype == jax.dtypes.float0:
        return "float0, the gradient of an integer"
    if jnp.issubdtype(dtype, jnp.floating):
        return "real"
    return "complex" if jnp.issubdtype(dtype, jnp.complexfloating) else str(dtype)


def compute_dtype(*dtypes: np.dtype) -> np.dtype:
    """The real dtype in which to compute with `dtypes`: the widest precision, at least float32."""
    parts = [jnp.finfo(dtype).dtype for dtype in dtypes]
    return max([jnp.dtype(jnp.float32), *parts], key=lambda dtype: dtype.itemsize)


def complex_dtype(real: np.dtype) -> np.dtype:
    """The complex dtype of a real dtype's precision, or the next wider one that exists."""
    return np.promote_types(compute_dtype(real), np.complex64)


def first_moment_dtype(param: chex.ArrayTree, mu_dtype: Any | None) -> np.dtype:
    """The dtype of a parameter's first moment: complex if the parameter is."""
    dtype = jnp.result_type(param)
    if mu_dtype is None:
        return dtype
    real = jnp.finfo(jax.dtypes.canonicalize_dtype(mu_dtype)).dtype
    return complex_dtype(real) if jnp.issubdtype(dtype, jnp.complexfloating) else real


def second_moment_dtype(param: chex.ArrayTree, nu_dtype: Any | None) -> np.dtype:
    """The dtype of a parameter's second moment: real."""
    if nu_dtype is None:
        return compute_dtype(jnp.result_type(param))
    return jax.dtypes.canonicalize_dtype(nu_dtype)


def real_scalar(x: chex.Numeric, dtype: np.dtype) -> chex.Numeric:
    """A hyperparameter beside real arrays of `dtype`: a Python number, or a scalar of that dtype.

    It may come as a complex array: `optax.inject_hyperparams` makes one for complex parameters.
    """
    return float(x) if is_number(x) else jnp.real(x).astype(dtype)
