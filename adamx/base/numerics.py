"""The mathematics of Adam on one array: moments, bias correction, direction.

The letters are those of Kingma & Ba 2015 (https://arxiv.org/abs/1412.6980): g is the gradient, m
and v are its first and second moment, t is the step counted from 1, b the decay rate of a moment.
Nothing here knows of trees or of optimizer state.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.dtypes import check_not_flushed, compute_dtype, is_number, real_scalar

__all__ = [
    "CONVENTIONS",
    "Convention",
    "ConventionName",
    "Hyperparameters",
    "Scalars",
    "bias_correction",
    "by_parts",
    "moving_average",
    "safe_sqrt",
    "scalars",
    "step",
]


class Convention(NamedTuple):
    """What makes one framework's Adam different from another's."""

    eps_beside_corrected: bool  # eps is added to the root of v / (1 - b2^t), not of v
    maximum_of_corrected: bool  # AMSGrad keeps the maximum of v / (1 - b2^t), not of v


ConventionName = Literal["optax", "torch", "keras"]
CONVENTIONS: dict[str, Convention] = {
    "optax": Convention(eps_beside_corrected=True, maximum_of_corrected=True),
    "torch": Convention(eps_beside_corrected=True, maximum_of_corrected=False),
    "keras": Convention(eps_beside_corrected=False, maximum_of_corrected=False),
}


class Hyperparameters(NamedTuple):
    """The numbers that every step shares, as they were given; they may be traced."""

    b1: chex.Numeric
    b2: chex.Numeric
    eps: chex.Numeric
    eps_root: chex.Numeric


class Scalars(NamedTuple):
    """The numbers of one step: Python's, or scalars of the dtype in which it is computed.

    The compiled kernel reads them in this order, and calls them the same (`native/leaf.h`).
    """

    b1: chex.Numeric
    one_minus_b1: chex.Numeric  # computed in b1's own precision
    b2: chex.Numeric
    one_minus_b2: chex.Numeric
    eps: chex.Numeric
    eps_root: chex.Numeric
    m_correction: chex.ArrayDevice  # 1 - b1^t, for moments that start at zero
    v_correction: chex.ArrayDevice  # 1 - b2^t
    # Only a whole step needs these; a direction does not.
    rate: chex.Numeric  # what the direction is multiplied by: minus the learning rate
    weight_decay: chex.Numeric
    max_norm: chex.Numeric  # the largest global norm of the gradients


def by_parts(
    op: Callable[..., chex.ArrayDevice], x: chex.ArrayDevice, real: chex.Numeric
) -> chex.ArrayDevice:
    """`op(x, real)`, applied to each part of a complex x.

    This promotes nothing, and an infinite part does not turn the other one into NaN.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(op(x.real, real), op(x.imag, real))
    return op(x, real)


def _square(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """|x|^2, real."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def _weights(b: chex.Numeric, dtype: np.dtype) -> tuple[chex.Numeric, chex.Numeric]:
    """The moment decay rate b and 1 - b, which is computed in b's own precision."""
    if is_number(b):
        return float(b), 1 - float(b)
    b = jnp.real(b)
    return b.astype(dtype), (1 - b).astype(dtype)


def moving_average(
    mean: chex.ArrayDevice, x: chex.ArrayDevice, b: chex.Numeric, one_minus_b: chex.Numeric
) -> chex.ArrayDevice:
    """One step of an exponential moving average, b * mean + (1 - b) * x; in the dtype of both.

    Computed as `mean + (1 - b) * (x - mean)`, whose two weights add up to one. b and 1 - b do not
    if each is rounded to float32: with b = 0.999 the second moment is then off by 1.3e-5.
    For b below one half it starts from x instead, so that b = 0 gives x exactly.
    """
    if jnp.iscomplexobj(mean):
        parts = ((mean.real, x.real), (mean.imag, x.imag))
        return jax.lax.complex(*(moving_average(*part, b, one_minus_b) for part in parts))
    half = 0.5 * x - 0.5 * mean  # exact, and finite where x - mean would overflow
    return _select(b, lambda: mean + 2 * one_minus_b * half, lambda: x - 2 * b * half)


def _mean_square(
    v: chex.ArrayDevice, g: chex.ArrayDevice, b: chex.Numeric, one_minus_b: chex.Numeric
) -> chex.ArrayDevice:
    """`moving_average` of |g|^2. What has overflowed stays infinite, and does not turn into NaN."""
    square = _square(g)
    difference = square - v

    def from_square() -> chex.ArrayDevice:
        # The comparison with the difference is for its sharding, where axes are explicit.
        is_all = jnp.isinf(square) | (difference == jnp.inf) | (b == 0)
        return square - jnp.where(is_all, jnp.zeros_like(difference), b * difference)

    return _select(b, lambda: jnp.where(jnp.isinf(v), v, v + one_minus_b * difference), from_square)


def _select(
    b: chex.Numeric,
    from_mean: Callable[[], chex.ArrayDevice],
    from_x: Callable[[], chex.ArrayDevice],
) -> chex.ArrayDevice:
    """The average, computed from the operand with the larger weight."""
    if isinstance(b, float):
        return from_mean() if b >= 0.5 else from_x()
    return jnp.where(b >= 0.5, from_mean(), from_x())


def bias_correction(b: chex.Numeric, t: chex.ArrayDevice, dtype: np.dtype) -> chex.ArrayDevice:
    """1 - b^t in `dtype` for integers t of any shape.

    Computed as -expm1(t log b), which does not cancel where b^t is close to 1.
    """
    if is_number(b):
        log_b = float(np.log(np.float64(b))) if b > 0 else -np.inf
        return -jnp.expm1(t.astype(dtype) * log_b)
    b = jnp.real(b)
    wide = dtype if jnp.issubdtype(b.dtype, jnp.integer) else compute_dtype(dtype, b.dtype)
    log_b = jnp.log(b.astype(wide))
    return -jnp.expm1(t.astype(wide) * log_b).astype(dtype)


def scalars(
    t: chex.ArrayDevice,
    hyper: Hyperparameters,
    dtype: np.dtype,
    *,
    rate: chex.Numeric = 1.0,
    weight_decay: chex.Numeric = 0.0,
    max_norm: chex.Numeric = 0.0,
) -> Scalars:
    """The numbers of step t in `dtype`, a real one."""
    return Scalars(
        *_weights(hyper.b1, dtype),
        *_weights(hyper.b2, dtype),
        eps=real_scalar(check_not_flushed("eps", hyper.eps, dtype), dtype),
        eps_root=real_scalar(check_not_flushed("eps_root", hyper.eps_root, dtype), dtype),
        m_correction=bias_correction(hyper.b1, t, dtype),
        v_correction=bias_correction(hyper.b2, t, dtype),
        rate=real_scalar(rate, dtype),
        weight_decay=real_scalar(weight_decay, dtype),
        max_norm=real_scalar(max_norm, dtype),
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
    s: Scalars,
    convention: Convention,
    m_correction_next: chex.ArrayDevice | None = None,
) -> tuple[chex.ArrayDevice, tuple[chex.ArrayDevice, ...]]:
    """One step of Adam on one array.

    Args:
      g: the gradient, real or complex, of any shape.
      moments: (m, v), or (m, v, v_max) with AMSGrad (Reddi et al. 2018,
        https://arxiv.org/abs/1904.09237). All of the shape of g; m of its dtype, the others of the
        dtype of its real part.
      s: in v's dtype, see `scalars`.
      convention: one of `CONVENTIONS`; see `adamx.scale_by_adam`.
      m_correction_next: 1 - b1^(t+1), for Nesterov's momentum, which looks a step ahead; None for
        Adam's own.

    Returns:
      The direction, with the shape and dtype of g, against which the optimizer moves; and the new
      moments.
    """
    m, v, *v_max = moments
    amsgrad = bool(v_max)

    m = moving_average(m, g, s.b1, s.one_minus_b1)
    v = _mean_square(v, g, s.b2, s.one_minus_b2)
    largest = v
    if amsgrad:
        candidate = v / s.v_correction if convention.maximum_of_corrected else v
        largest = jnp.maximum(v_max[0], candidate)

    # Numerator and denominator are halved: m_hat may just overflow, where v is infinite.
    if not convention.eps_beside_corrected:  # Kingma & Ba, end of section 2
        half_m = by_parts(jnp.multiply, m, 0.5 * jnp.sqrt(s.v_correction) / s.m_correction)
        v_hat = largest
    else:
        if m_correction_next is None:
            half_m = by_parts(jnp.divide, m, 2 * s.m_correction)
        else:
            half_m = _look_ahead(g, m, s, m_correction_next)
        already_corrected = amsgrad and convention.maximum_of_corrected
        v_hat = largest if already_corrected else largest / s.v_correction

    denominator = 0.5 * (safe_sqrt(v_hat + s.eps_root) + s.eps)
    direction = by_parts(jnp.divide, half_m, denominator)
    return direction, (m, v, largest) if amsgrad else (m, v)


def _look_ahead(
    g: chex.ArrayDevice, m: chex.ArrayDevice, s: Scalars, m_correction_next: chex.ArrayDevice
) -> chex.ArrayDevice:
    """Half of b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)."""
    # Dozat 2016, https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ, algorithm 2
    ahead = by_parts(jnp.multiply, m, 0.5 * s.b1 / m_correction_next)
    return ahead + by_parts(jnp.multiply, g, 0.5 * s.one_minus_b1 / s.m_correction)
