"""Which dtype Adam is computed in, and which ones moments have."""

from typing import Any, TypeGuard

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.errors import InvalidValue

__all__ = [
    "check_not_flushed",
    "complex_dtype",
    "compute_dtype",
    "dtype_of",
    "first_moment_dtype",
    "is_known",
    "is_number",
    "is_of",
    "number_kind",
    "real_scalar",
    "result_dtype",
    "second_moment_dtype",
    "type_name",
]


def is_number(x: object) -> TypeGuard[float]:
    """Whether `x` is a real number of Python or NumPy, whose value can be read.

    A JAX array is not, even if it is not traced: reading it would wait for the device.
    """
    if isinstance(x, np.ndarray):
        return x.ndim == 0 and x.dtype.kind in "iuf" and not isinstance(x, np.ma.MaskedArray)
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def dtype_of(x: object) -> Any | None:
    """The dtype of an array that JAX takes; None for anything else, a tensor of torch, say."""
    dtype = getattr(x, "dtype", None)
    if isinstance(x, np.ma.MaskedArray) or not isinstance(dtype, np.dtype):
        return dtype if isinstance(x, jax.Array) else None  # keys have a dtype of JAX's own
    return dtype


def result_dtype(x: object) -> Any | None:
    """`dtype_of`; for a Python number, the dtype that JAX gives it."""
    dtype = dtype_of(x)
    is_python = dtype is None and isinstance(x, int | float | complex)
    return jnp.result_type(x) if is_python else dtype


def is_of(x: object, kind: Any) -> bool:
    """Whether `x` is an array that JAX takes, or a number, of this kind of dtype."""
    dtype = result_dtype(x)
    return dtype is not None and jnp.issubdtype(dtype, kind)


def type_name(x: object) -> str:
    """The name of an object's type, with its package unless it is Python's: `torch.Tensor`."""
    package, name = type(x).__module__.partition(".")[0], type(x).__qualname__
    return name if package == "builtins" else f"{package}.{name}"


def number_kind(leaf: object) -> str:
    """The kind of number in a leaf: "real", "complex", or the name of something else."""
    dtype = result_dtype(leaf)
    if dtype is None:
        return type_name(leaf)
    if dtype == jax.dtypes.float0:
        return "float0, the gradient of an integer"
    if not jnp.issubdtype(dtype, jnp.inexact) or not is_known(dtype):
        return str(dtype)
    return "complex" if jnp.issubdtype(dtype, jnp.complexfloating) else "real"


def is_known(dtype: np.dtype) -> bool:
    """Whether JAX has this floating-point or complex dtype: NumPy has wider ones."""
    return dtype.itemsize <= (16 if jnp.issubdtype(dtype, jnp.complexfloating) else 8)


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


def check_not_flushed(
    name: str, value: chex.Numeric, dtype: np.dtype | None = None
) -> chex.Numeric:
    """`value`; raise if it is a number above 0 whose half XLA flushes to 0.

    Args:
      dtype: that of the computation; None for JAX's default.
    """
    if dtype is None:
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
    smallest = 2 * float(jnp.finfo(dtype).tiny)
    if is_number(value) and 0 < value < smallest:
        raise InvalidValue(
            where=name,
            expected=f"0 or a number of at least {smallest:.4g}",
            found=repr(value),
            remedy=f"a smaller number, or half of it, is flushed to 0 in {dtype}",
        )
    return value
