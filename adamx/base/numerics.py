"""The mathematics of Adam on one array: moments, bias correction, direction.

The letters are those of Kingma & Ba 2015 (https://arxiv.org/abs/1412.6980): g is the gradient, m
and v are its first and second moment, t is the step counted from 1, b the decay rate of a moment.
Nothing here knows of trees or of optimizer state.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "CONVENTIONS",
    "BiasCorrection",
    "Coefficients",
    "Convention",
    "Decay",
    "Hyperparameters",
    "bias_correction",
    "by_parts",
    "coefficients",
    "complex_dtype",
    "compute_dtype",
    "first_moment_dtype",
    "is_number",
    "moving_average",
    "real_scalar",
    "safe_sqrt",
    "second_moment_dtype",
    "step",
]

Convention = Literal["optax", "torch", "keras"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)


class Hyperparameters(NamedTuple):
    """The numbers that every step shares, as they were given; they may be traced."""

    b1: chex.Numeric
    b2: chex.Numeric
    eps: chex.Numeric
    eps_root: chex.Numeric


class Decay(NamedTuple):
    """The weights of a moving average; the difference is taken in b's own precision."""

    b: chex.Numeric
    rest: chex.Numeric  # 1 - b


class BiasCorrection(NamedTuple):
    """The factors by which the moments, which start at zero, fall short after t steps."""

    m: chex.ArrayDevice  # 1 - b1^t
    m_next: chex.ArrayDevice  # 1 - b1^(t+1), for Nesterov's look ahead
    v: chex.ArrayDevice  # 1 - b2^t


class Coefficients(NamedTuple):
    """The numbers of one step: Python's, or scalars of the dtype in which it is computed."""

    b1: Decay
    b2: Decay
    eps: chex.Numeric
    eps_root: chex.Numeric
    correction: BiasCorrection


def is_number(x: object) -> TypeGuard[float]:
    """Whether `x` is a real number of Python or NumPy, whose value can be looked at.

    An array of JAX is not, even when it is not traced: looking would wait for the device.
    """
    if isinstance(x, np.ndarray):
        return x.ndim == 0 and x.dtype.kind in "iuf"
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


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


def by_parts(
    op: Callable[..., chex.ArrayDevice], x: chex.ArrayDevice, real: chex.Numeric
) -> chex.ArrayDevice:
    """`op(x, real)`, for a complex x on each of its parts.

    So nothing is promoted, and an infinite part does not turn the other one into NaN.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(op(x.real, real), op(x.imag, real))
    return op(x, real)


def _square(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """|x|^2, real."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def _decay(b: chex.Numeric, dtype: np.dtype) -> Decay:
    if is_number(b):
        return Decay(float(b), 1 - float(b))
    b = jnp.real(b)
    return Decay(b.astype(dtype), (1 - b).astype(dtype))


def moving_average(mean: chex.ArrayDevice, x: chex.ArrayDevice, decay: Decay) -> chex.ArrayDevice:
    """One step of an exponential moving average, b * mean + (1 - b) * x; in the dtype of both.

    Computed as `mean + (1 - b) * (x - mean)`, whose two weights add up to one. Rounded to float32
    each for itself, b and 1 - b do not: with b = 0.999 the second moment is then off by 1.3e-5.
    For b below one half it starts from x instead, so that b = 0 gives x and loses nothing.
    """
    if jnp.iscomplexobj(mean):
        parts = ((mean.real, x.real), (mean.imag, x.imag))
        return jax.lax.complex(*(moving_average(*part, decay) for part in parts))
    b, rest = decay
    difference = x - mean
    from_mean, from_x = mean + rest * difference, x - b * difference
    if isinstance(b, float):
        return from_mean if b >= 0.5 else from_x
    return jnp.where(b >= 0.5, from_mean, from_x)


def _one_minus_power(b: chex.Numeric, t: chex.ArrayDevice, dtype: np.dtype) -> chex.ArrayDevice:
    """1 - b^t as -expm1(t log b), which does not cancel where b^t is close to 1."""
    if is_number(b):
        log_b = float(np.log(np.float64(b))) if b > 0 else -np.inf
        return -jnp.expm1(t.astype(dtype) * log_b)
    b = jnp.real(b)
    wide = dtype if jnp.issubdtype(b.dtype, jnp.integer) else compute_dtype(dtype, b.dtype)
    log_b = jnp.log(b.astype(wide))
    return -jnp.expm1(t.astype(wide) * log_b).astype(dtype)


def bias_correction(
    t: chex.ArrayDevice, t_next: chex.ArrayDevice, hyper: Hyperparameters, dtype: np.dtype
) -> BiasCorrection:
    """The bias corrections in `dtype` at step t and the one after it (integers, any shape)."""
    return BiasCorrection(
        m=_one_minus_power(hyper.b1, t, dtype),
        m_next=_one_minus_power(hyper.b1, t_next, dtype),
        v=_one_minus_power(hyper.b2, t, dtype),
    )


def coefficients(
    t: chex.ArrayDevice, t_next: chex.ArrayDevice, hyper: Hyperparameters, dtype: np.dtype
) -> Coefficients:
    """The coefficients in `dtype`, a real one, of step t, which t_next follows."""
    return Coefficients(
        b1=_decay(hyper.b1, dtype),
        b2=_decay(hyper.b2, dtype),
        eps=real_scalar(hyper.eps, dtype),
        eps_root=real_scalar(hyper.eps_root, dtype),
        correction=bias_correction(t, t_next, hyper, dtype),
    )


@jax.custom_jvp
def safe_sqrt(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """The square root of x >= 0, with derivative 0 instead of infinity where x is 0.

    Adam multiplies this derivative by m, which is 0 where v is: 0 is right, and 0 times infinity
    would be NaN.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(
    primals: tuple[chex.ArrayDevice], tangents: tuple[chex.ArrayDevice]
) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    # The root of a number that is not 0, so that derivatives of this rule are finite, too.
    zero = primals[0] == 0
    root = jnp.sqrt(jnp.where(zero, 1, primals[0]))
    return jnp.where(zero, 0, root), jnp.where(zero, 0, tangents[0] / (2 * root))


def step(
    g: chex.ArrayDevice,
    moments: tuple[chex.ArrayDevice, ...],
    c: Coefficients,
    convention: Convention,
    nesterov: bool = False,
) -> tuple[chex.ArrayDevice, tuple[chex.ArrayDevice, ...]]:
    """One step of Adam on one array.

    Args:
      g: the gradient, real or complex, of any shape.
      moments: (m, v), or (m, v, v_max) with AMSGrad (Reddi et al. 2018,
        https://arxiv.org/abs/1904.09237). All of the shape of g; m of its dtype, the others of the
        dtype of its real part.
      c: in v's dtype, see `coefficients`.
      convention, nesterov: see `adamx.scale_by_adam`.

    Returns:
      The direction, which the optimizer follows backwards, like g; and the new moments.
    """
    m, v, *v_max = moments
    amsgrad = bool(v_max)

    m = moving_average(m, g, c.b1)
    # A v that has overflowed stays infinite, and its steps 0: its average would be inf - inf.
    v = jnp.where(jnp.isinf(v), v, moving_average(v, _square(g), c.b2))
    largest = v
    if amsgrad:
        candidate = v / c.correction.v if convention == "optax" else v
        largest = jnp.maximum(v_max[0], candidate)

    if convention == "keras":  # Kingma & Ba, end of section 2: eps beside an uncorrected v
        m_hat = by_parts(jnp.multiply, m, jnp.sqrt(c.correction.v) / c.correction.m)
        v_hat = largest
    else:
        m_hat = _ahead(g, m, c) if nesterov else by_parts(jnp.divide, m, c.correction.m)
        already_corrected = amsgrad and convention == "optax"
        v_hat = largest if already_corrected else largest / c.correction.v

    direction = by_parts(jnp.divide, m_hat, safe_sqrt(v_hat + c.eps_root) + c.eps)
    return direction, (m, v, largest) if amsgrad else (m, v)


def _ahead(g: chex.ArrayDevice, m: chex.ArrayDevice, c: Coefficients) -> chex.ArrayDevice:
    # Dozat 2016, https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ, algorithm 2
    ahead = by_parts(jnp.divide, m, c.correction.m_next)
    return moving_average(ahead, by_parts(jnp.divide, g, c.correction.m), c.b1)
