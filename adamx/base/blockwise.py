r"""Both moments of a leaf in 8 bits each: codes, and a scale for each group of them.

A group is `group` consecutive elements along the last axis; r is the root of a second moment v.

===========  =====================================================================================
code of v    k in 0..254: r = s (k/254)^2, where s is the scale of the group. 0 for v = 0 alone
code of m    q in -127..127: m/r = c p(|q|/127) with the sign of q, p(y) = (y + y^2)/2
scales       bfloat16: s at least the largest r of the group, c at least its largest |m|/r
255, -128    v and m that are infinite or NaN
===========  =====================================================================================

Between two levels a number is rounded at random, so that its mean is kept: r and m/r. What matters
is the ratio of the moments, so it is what is stored: a level that r misses moves m by as much, and
the size of a direction is no larger than without rounding (`docs/explanation/memory.md` proves it).
The scale s stays as it is for as long as it fits: while it does, an r that hardly changes is hardly
rounded.

A step is computed in units of each group: a power of two near its largest number. So the squares
of gradients neither overflow nor underflow.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.errors import InvalidValue
from adamx.base.numerics import Convention, Scalars, step
from adamx.base.random_bits import hashed_bits

__all__ = ["EightBitMoment", "decode", "encode", "group_size", "step_codes", "zeros"]

_LEVELS_V = 254
_LEVELS_M = 127
_NOT_FINITE_V = 255
_NAN_M = -128
_FITS_FROM = 0.7  # of a scale: below, a group that has shrunk would waste levels
_LOWEST = _LEVELS_V**-2.0  # the level of code 1
_SMALLEST = 2.0**-125  # of a scale; XLA flushes what is below 2**-126 to 0
_SMALLEST_EPS = 2.0**-100  # in units: its half and its products are not flushed either
_NEGLIGIBLE = 2.0**-60  # in units: the square of a smaller number is flushed to 0


class EightBitMoment(NamedTuple):
    """One moment of a leaf in 8 bits.

    Attributes:
      codes: int8 for the first moment, uint8 for the second one; in the shape of the parameter.
      scales: bfloat16; the shape of the parameter, but one for each group along the last axis.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    codes: Any
    scales: Any


class _Split(NamedTuple):
    """The moments of a leaf with an axis for the groups: [..., groups, elements]."""

    m: chex.ArrayDevice  # codes, in float32
    v: chex.ArrayDevice
    m_scale: chex.ArrayDevice  # [..., groups, 1], in float32
    v_scale: chex.ArrayDevice


def group_size(coded: EightBitMoment) -> int:
    """How many elements share a scale: the power of two that fits the shapes."""
    size, groups = coded.codes.shape[-1], coded.scales.shape[-1]
    group = 1
    while -(-size // group) > groups:
        group *= 2
    return group


def zeros(param: Any, group: int) -> tuple[EightBitMoment, EightBitMoment]:
    """Both moments of a parameter before the first step."""

    def make(dtype: Any) -> EightBitMoment:
        # Of the parameter, as in a step, for their sharding where axes are explicit.
        scales = _largest(_split(jnp.zeros_like(param, dtype=jnp.float32), group))
        return EightBitMoment(jnp.zeros_like(param, dtype=dtype), _narrow(scales))

    return make(jnp.int8), make(jnp.uint8)


def decode(mu: EightBitMoment, nu: EightBitMoment) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The moments m and v, in float32 and in the shape of the parameter."""
    coded = _split_moments(mu, nu)
    m, r = _decode(coded, jnp.ones_like(coded.v_scale))
    return _join(m, nu.codes.shape), _join(jnp.square(r), nu.codes.shape)


def encode(
    m: chex.ArrayDevice, v: chex.ArrayDevice, group: int, key: chex.ArrayDevice
) -> tuple[EightBitMoment, EightBitMoment]:
    """Two moments, of the shape of the parameter, as codes.

    Args:
      m, v: of any real dtype.
      group: how many elements share a scale, a power of two.
      key: uint32[2], another one for each leaf and step.
    """
    root = _split(jnp.sqrt(v.astype(jnp.float32)), group)
    none = jnp.zeros((*root.shape[:-1], 1), jnp.float32)
    bits = _split(hashed_bits(key, v.shape, jax.typeof(v).sharding), group)
    return _encode(_split(m.astype(jnp.float32), group), root, none, none + 1, bits, v.shape)


def step_codes(
    g: chex.ArrayDevice,
    mu: EightBitMoment,
    nu: EightBitMoment,
    s: Scalars,
    convention: Convention,
    m_correction_next: chex.ArrayDevice | None,
    key: chex.ArrayDevice,
) -> tuple[chex.ArrayDevice, EightBitMoment, EightBitMoment]:
    """One step of Adam on a leaf whose moments are coded: the direction and the next moments.

    Args:
      g: the gradient, computed in float32.
      mu, nu: the moments.
      s, convention, m_correction_next: see `numerics.step`.
      key: uint32[2], another one for each leaf and step.
    """
    group, shape = group_size(nu), g.shape
    if shape[-1] % group and jax.sharding.get_abstract_mesh().manual_axes:
        raise InvalidValue(
            where="shard_map",
            expected=f"parts of whole groups of {group} along the last axis, for moments in 8 bits",
            found=f"{shape[-1]} elements",
        )
    g = g.astype(jnp.float32)
    coded, x = _split_moments(mu, nu), _split(g, group)
    largest = jnp.maximum(_largest(x), coded.v_scale)
    unit = _unit(largest)
    m, r = _decode(coded, unit)
    narrow: list[Any] = [a if isinstance(a, float) else jnp.asarray(a, jnp.float32) for a in s]
    s = Scalars(*narrow)
    # A number so small beside the largest has no root to be divided by, and its step is 0.
    x, m = (jnp.where(jnp.abs(a) < _NEGLIGIBLE, 0, a) for a in (x * unit, m))
    smallest = jnp.where(s.eps > 0, _SMALLEST_EPS, 0.0).astype(jnp.float32)
    in_units = s._replace(
        eps=jnp.maximum(s.eps * unit, smallest), eps_root=s.eps_root * unit * unit
    )
    direction, (m, v) = step(x, (m, jnp.square(r)), in_units, convention, m_correction_next)
    bits = _split(hashed_bits(key, shape, jax.typeof(g).sharding), group)
    moments = _encode(m, jnp.sqrt(v), coded.v_scale * unit, unit, bits, shape)
    return _join(direction, shape), *moments


def _unit(largest: chex.ArrayDevice) -> chex.ArrayDevice:
    """A power of two by which numbers of this size become numbers of about 1."""
    exponent = jax.lax.bitcast_convert_type(largest, jnp.uint32) >> 23
    exponent = jnp.clip(254 - exponent.astype(jnp.int32), 1, 253)
    unit = jax.lax.bitcast_convert_type(exponent.astype(jnp.uint32) << 23, jnp.float32)
    return jnp.where(largest == 0, 1, unit)


def _decode(coded: _Split, unit: chex.ArrayDevice) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The first moment and the root of the second one, in units."""
    scale = coded.v_scale * unit
    r = jnp.square(coded.v * (1 / _LEVELS_V)) * scale
    size = jnp.abs(coded.m)
    ratio = jnp.copysign(size * (_LEVELS_M + size) * (0.5 / _LEVELS_M**2), coded.m)
    m = ratio * coded.m_scale * jnp.maximum(r, scale * _LOWEST)
    is_lost = coded.v == _NOT_FINITE_V
    sign = jnp.where(coded.m == 0, 0, jnp.copysign(jnp.inf, coded.m))
    m = jnp.where(is_lost, jnp.where(coded.m == _NAN_M, jnp.nan, sign), m)
    return m, jnp.where(is_lost, jnp.where(coded.m == _NAN_M, jnp.nan, jnp.inf), r)


def _encode(
    m: chex.ArrayDevice,
    r: chex.ArrayDevice,
    scale: chex.ArrayDevice,
    unit: chex.ArrayDevice,
    bits: chex.ArrayDevice,
    shape: tuple[int, ...],
) -> tuple[EightBitMoment, EightBitMoment]:
    """The codes of m and of r, the root of v; all in units, `scale` the present one of r."""
    is_lost = ~(jnp.isfinite(r) & jnp.isfinite(m))
    largest = _largest(jnp.where(is_lost, 0, r))
    fits = (largest <= scale) & (largest >= _FITS_FROM * scale)
    scale = jnp.where(fits, scale, _round_up(largest))
    scale = jnp.where(scale < _SMALLEST * unit, 0, scale)  # what the state cannot hold
    x = r * _reciprocal(scale)
    k = jnp.clip(jnp.floor(jnp.sqrt(x) * _LEVELS_V), 1, _LEVELS_V - 1)
    above = (x * _LEVELS_V**2 - k * k) / (2 * k + 1)
    k = k + (_uniform(bits >> 16) < above).astype(jnp.float32)
    v_codes = jnp.where(is_lost, _NOT_FINITE_V, jnp.where((r == 0) | (scale == 0), 0, k))

    # Below the lowest level, which r is then read as, m itself is kept. If the scale is 0, so is m.
    denominator = jnp.maximum(r, scale * _LOWEST)
    is_zero = is_lost | (scale == 0)
    ratio = jnp.where(is_zero, 0, m / jnp.where(denominator == 0, 1, denominator))
    m_scale = _round_up(_largest(ratio))
    a = jnp.abs(ratio) * _reciprocal(m_scale)
    q = jnp.floor((jnp.sqrt(1 + 8 * a) - 1) * (_LEVELS_M / 2))
    q = jnp.clip(q, 0, _LEVELS_M - 1)
    above = (2 * _LEVELS_M**2 * a - q * (_LEVELS_M + q)) / (2 * q + _LEVELS_M + 1)
    q = q + (_uniform(bits & 0xFFFF) < above).astype(jnp.float32)
    lost = jnp.where(jnp.isinf(m), jnp.copysign(float(_LEVELS_M), m), 0)
    lost = jnp.where(jnp.isnan(m) | jnp.isnan(r), _NAN_M, lost)
    m_codes = jnp.where(is_lost, lost, jnp.copysign(q, ratio))
    mu = EightBitMoment(_join(m_codes, shape).astype(jnp.int8), _narrow(m_scale))
    return mu, EightBitMoment(_join(v_codes, shape).astype(jnp.uint8), _narrow(scale / unit))


def _narrow(scale: chex.ArrayDevice) -> chex.ArrayDevice:
    """A scale that `_round_up` has made, as the state holds it."""
    return scale[..., 0].astype(jnp.bfloat16)


def _uniform(bits: chex.ArrayDevice) -> chex.ArrayDevice:
    """16 bits as a number in (0, 1): the middle of its interval, so that the mean is one half."""
    return (bits.astype(jnp.float32) + 0.5) * 2.0**-16


def _largest(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """The largest finite size in each group, [..., groups, 1]."""
    size = jnp.abs(x)
    return jnp.max(jnp.where(jnp.isfinite(size), size, 0), axis=-1, keepdims=True)


def _round_up(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """The next number of bfloat16 that is at least x >= 0, in float32."""
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + np.uint32(0xFFFF)
    return jax.lax.bitcast_convert_type(pattern & np.uint32(0xFFFF0000), jnp.float32)


def _reciprocal(scale: chex.ArrayDevice) -> chex.ArrayDevice:
    return 1 / jnp.where(scale == 0, 1, scale)


def _split_moments(mu: EightBitMoment, nu: EightBitMoment) -> _Split:
    group = group_size(nu)
    codes = [_split(x.codes, group).astype(jnp.float32) for x in (mu, nu)]
    scales = [x.scales.astype(jnp.float32)[..., None] for x in (mu, nu)]
    return _Split(*codes, *scales)


def _split(x: chex.ArrayDevice, group: int) -> chex.ArrayDevice:
    """[..., n] as [..., groups, group], with zeros at the end."""
    short = -x.shape[-1] % group
    if short:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)])
    return x.reshape(*x.shape[:-1], -1, group)


def _join(x: chex.ArrayDevice, shape: tuple[int, ...]) -> chex.ArrayDevice:
    """The inverse of `_split`."""
    return x.reshape(*x.shape[:-2], -1)[..., : shape[-1]]
