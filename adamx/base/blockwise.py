r"""Both moments of a leaf in 8 bits each: codes, and a scale for each group of them.

A group is `group` consecutive elements along the last axis; r is the root of a second moment v.
bits(x) is the pattern of a positive float32 as an integer: a logarithm of x, nearly.

===========  =====================================================================================
code of v    k in 1..254: r = s x with bits(x) = bits(1) + (k - 1) w, where s is the scale of the
             group and 2^23 / w = 4 (4 + j mod 4) 2^(j div 4) levels are in an octave; 0 for v = 0
code of m    q in -127..127: m/r = c n/174 with n = 2 q - min(max(q, -80), 80)
scales of v  uint32: s, at most the smallest r of the group, as a float32 whose last four bits are j
scales of m  bfloat16: c, at least the largest |m|/r of the group
255, -128    v and m that are infinite or NaN
===========  =====================================================================================

Between two levels a number is rounded at random, so that its mean is kept: r and m/r. What matters
is the ratio of the moments, so it is what is stored: a level that r misses moves m by as much, and
the size of a direction is no larger than without rounding (`docs/explanation/memory.md` proves it).
The levels of a group stay for as long as they fit, and decay as v does: so an r without a gradient
is not rounded at all, and another one hardly.

A step is computed in units of each group: a power of two near its largest number. So the squares
of gradients neither overflow nor underflow. The compiled kernel has the same in
`native/blockwise.h`.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.errors import InvalidValue
from adamx.base.numerics import Convention, Scalars, step
from adamx.base.random_bits import hashed_bits

__all__ = ["CODE_VERSION", "EightBitMoment", "decode", "encode", "group_size", "step_codes"]
__all__ += ["zeros"]

CODE_VERSION = 2  # of the table above: a file whose codes mean something else is refused
_TOP = 254  # the code of the highest level of v
_LEVELS_M = 127
_KNEE = 80  # from this code of m on, levels are twice as far apart
_REACH_M = 2 * _LEVELS_M - _KNEE
_LOST_V = 255  # where a moment is infinite or NaN
_NAN_M = -128
_OCTAVE = 1 << 23  # in bits(x): from x to 2 x
_ONE = 127 << 23  # bits(1)
_FOUR = 129 << 2  # the exponent of 4 and two bits of its mantissa
_BELOW = 0.995  # of the smallest r of a group, where new levels begin
_ABOVE = 1.05  # of the largest r of a group, which new levels reach: levels decay, r may not
_FLOOR = 2.2e-5  # of the largest r of a group: the widest levels reach from there
_SHORT = 64  # of the highest level, lest rounding goes beyond it
_SMALLEST_EPS = 2.0**-100  # in units: its half and its products are not flushed to 0
_SMALLEST_RATIO = 2.0**-100  # of m to r, or else m is 0: the inverse of a scale is finite


class EightBitMoment(NamedTuple):
    """One moment of a leaf in 8 bits.

    Attributes:
      codes: int8 for the first moment, uint8 for the second one; in the shape of the parameter.
      scales: bfloat16 for the first moment, uint32 for the second one; in the shape of the
        parameter, but one for each group along the last axis.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    codes: Any
    scales: Any


class _Split(NamedTuple):
    """The moments of a leaf with an axis for the groups: [..., groups, elements]."""

    m: chex.ArrayDevice  # codes, in int32
    v: chex.ArrayDevice  # codes, in int32
    m_scale: chex.ArrayDevice  # [..., groups, 1], in float32
    levels: "_Levels"


class _Levels(NamedTuple):
    """The levels of v in each group, [..., groups, 1]."""

    lowest: chex.ArrayDevice  # s, in units where the step is computed
    choice: chex.ArrayDevice  # j, int32

    @property
    def distance(self) -> chex.ArrayDevice:
        return _OCTAVE // (4 * ((4 + (self.choice & 3)) << (self.choice >> 2)))

    @property
    def highest(self) -> chex.ArrayDevice:
        return self.lowest * _float(_ONE + (_TOP - 1) * self.distance)


def group_size(coded: EightBitMoment) -> int:
    """How many elements share a scale: the power of two that fits the shapes."""
    size, groups = coded.codes.shape[-1], coded.scales.shape[-1]
    group = 1
    while -(-size // group) > groups:
        group *= 2
    return group


def zeros(param: Any, group: int) -> tuple[EightBitMoment, EightBitMoment]:
    """Both moments of a parameter before the first step."""

    def make(dtype: Any, scale_dtype: Any) -> EightBitMoment:
        # Of the parameter, as in a step, for their sharding where axes are explicit.
        codes = jnp.zeros_like(param, dtype=dtype)
        return EightBitMoment(codes, _split(codes, group)[..., 0].astype(scale_dtype))

    return make(jnp.int8, jnp.bfloat16), make(jnp.uint8, jnp.uint32)


def decode(mu: EightBitMoment, nu: EightBitMoment) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The moments m and v, in float32 and in the shape of the parameter."""
    coded = _split_moments(mu, nu)
    unit = _unit(coded.levels.highest)
    m, r = (x / unit for x in _decode(_in_units(coded, unit)))
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
    unit = _unit(_largest(root))
    none = _Levels(jnp.zeros_like(unit), jnp.zeros_like(unit, dtype=jnp.int32))
    bits = _split(hashed_bits(key, v.shape, jax.typeof(v).sharding), group)
    first = _split(m.astype(jnp.float32), group) * unit
    return _encode(first, root * unit, none, unit, bits, v.shape)


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
    unit = _unit(jnp.maximum(_largest(x), coded.levels.highest))
    coded = _in_units(coded, unit)
    m, r = _decode(coded)
    narrow: list[Any] = [a if isinstance(a, float) else jnp.asarray(a, jnp.float32) for a in s]
    s = Scalars(*narrow)
    eps = jnp.maximum(s.eps * unit, _SMALLEST_EPS)
    in_units = s._replace(eps=eps, eps_root=s.eps_root * unit * unit)
    direction, (m, v) = step(x * unit, (m, jnp.square(r)), in_units, convention, m_correction_next)
    # Beside numbers 2^63 as large, a square is flushed to 0: there is no root to divide by.
    direction, m = jnp.where(v == 0, 0, direction), jnp.where(v == 0, 0, m)
    decay = jnp.sqrt(jnp.asarray(s.b2, jnp.float32))
    levels = coded.levels._replace(lowest=coded.levels.lowest * decay)
    bits = _split(hashed_bits(key, shape, jax.typeof(g).sharding), group)
    moments = _encode(m, jnp.sqrt(v), levels, unit, bits, shape)
    return _join(direction, shape), *moments


def _bits(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """The pattern of a float32 x >= 0 as int32, which is in the order of x."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _float(bits: chex.ArrayDevice) -> chex.ArrayDevice:
    """The inverse of `_bits`, also for uint32."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _unit(largest: chex.ArrayDevice) -> chex.ArrayDevice:
    """A power of two by which numbers of this size become numbers of about 1."""
    exponent = jnp.clip(254 - (_bits(largest) >> 23), 1, 253)
    return _float(jnp.where(largest == 0, 127, exponent) << 23)


def _in_units(coded: _Split, unit: chex.ArrayDevice) -> _Split:
    levels = coded.levels
    return coded._replace(levels=levels._replace(lowest=levels.lowest * unit))


def _decode(coded: _Split) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The first moment and the root of the second one, in the units of the levels."""
    levels = coded.levels
    r = levels.lowest * _float(_ONE + (coded.v - 1) * levels.distance)
    r = jnp.where(coded.v == 0, 0, r)
    n = 2 * coded.m - jnp.clip(coded.m, -_KNEE, _KNEE)
    m = n.astype(jnp.float32) * (coded.m_scale * (1 / _REACH_M)) * r
    is_lost, is_nan = coded.v == _LOST_V, coded.m == _NAN_M
    sign = jnp.where(coded.m == 0, 0, jnp.where(coded.m < 0, -jnp.inf, jnp.inf))
    m = jnp.where(is_lost, jnp.where(is_nan, jnp.nan, sign), m)
    return m, jnp.where(is_lost, jnp.where(is_nan, jnp.nan, jnp.inf), r)


def _encode(
    m: chex.ArrayDevice,
    r: chex.ArrayDevice,
    levels: _Levels,
    unit: chex.ArrayDevice,
    bits: chex.ArrayDevice,
    shape: tuple[int, ...],
) -> tuple[EightBitMoment, EightBitMoment]:
    """The codes of m and of r, the root of v; all in units, `levels` the present ones."""
    is_lost = ~(jnp.isfinite(r) & jnp.isfinite(m))
    kept = jnp.where(is_lost, 0, r)
    levels = _choose_levels(levels, kept)
    lowest = levels.lowest
    scales = _bits(lowest / unit) & ~15 | levels.choice
    is_used = (lowest / unit > 0) & (lowest > 0)  # which the state can hold
    distance, reach = levels.distance, (_TOP - 1) * levels.distance - _SHORT
    above = jnp.clip(_bits(kept * (1 / jnp.where(is_used, lowest, 1))) - _ONE, 0, reach)
    k = above.astype(jnp.float32) * (1 / distance.astype(jnp.float32))
    k = (k + _float(bits >> 16 << 7 | _ONE)).astype(jnp.int32)  # a number in [1, 2) is added
    v_codes = jnp.where(is_lost, _LOST_V, jnp.where((kept == 0) | ~is_used, 0, k))

    # Below the lowest level, which r is then read as, m itself is kept.
    ratio = m / jnp.where(is_used, jnp.maximum(kept, lowest), 1)
    largest = _largest(jnp.where(is_lost | ~is_used, 0, ratio))
    m_scale = _round_up(jnp.where(largest < _SMALLEST_RATIO, 0, largest))
    # A little less, so that no quotient is rounded to more than the highest level. In 2^-15.
    n = jnp.where(is_used, _REACH_M * 2.0**15 * (1 - 2.0**-21), 0)
    n = ratio * (n / jnp.where(m_scale == 0, 1, m_scale))
    n = jnp.where(is_lost, 0, n).astype(jnp.int32)
    q = n + jnp.clip(n, -(_KNEE << 15), _KNEE << 15) + (bits & 0xFFFF).astype(jnp.int32) >> 16
    lost = jnp.where(m == jnp.inf, _LEVELS_M, jnp.where(m == -jnp.inf, -_LEVELS_M, 0))
    lost = jnp.where(jnp.isnan(m) | jnp.isnan(r), _NAN_M, lost)
    m_codes, v_codes = _join(jnp.where(is_lost, lost, q), shape), _join(v_codes, shape)
    mu = EightBitMoment(m_codes.astype(jnp.int8), m_scale[..., 0].astype(jnp.bfloat16))
    scales = jnp.where(is_used, scales, 0)[..., 0].astype(jnp.uint32)
    return mu, EightBitMoment(v_codes.astype(jnp.uint8), scales)


def _choose_levels(old: _Levels, r: chex.ArrayDevice) -> _Levels:
    """The levels for these roots: the old ones, if all roots are among them and few are idle."""
    largest = jnp.max(r, axis=-1, keepdims=True)
    smallest = jnp.min(jnp.where(r == 0, jnp.inf, r), axis=-1, keepdims=True)
    lowest = jnp.maximum(jnp.minimum(smallest, largest) * _BELOW, largest * _FLOOR)
    lowest = _float((_bits(lowest) + 8) & ~15)
    # As many levels to an octave as reach the largest: a float32's exponent and two of its bits.
    reach = _bits(largest * _ABOVE / jnp.where(lowest == 0, 1, lowest)) - _ONE
    levels = ((_TOP - 1) * _OCTAVE / 4) / jnp.maximum(reach, 1).astype(jnp.float32)
    choice = jnp.clip((_bits(levels) >> 21) - _FOUR, 0, 15)
    fits = (largest <= old.highest) & (choice <= old.choice + 1)
    fits &= old.lowest <= jnp.maximum(smallest, largest * (2 * _FLOOR))
    return _Levels(
        jnp.where(fits, _float((_bits(old.lowest) + 8) & ~15), lowest),
        jnp.where(fits, old.choice, choice),
    )


def _largest(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """The largest finite size in each group, [..., groups, 1]."""
    size = jnp.abs(x)
    return jnp.max(jnp.where(jnp.isfinite(size), size, 0), axis=-1, keepdims=True)


def _round_up(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """The next number of bfloat16 that is at least x >= 0, in float32."""
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + np.uint32(0xFFFF)
    return jax.lax.bitcast_convert_type(pattern & np.uint32(0xFFFF0000), jnp.float32)


def _split_moments(mu: EightBitMoment, nu: EightBitMoment) -> _Split:
    group = group_size(nu)
    scales = jax.lax.bitcast_convert_type(nu.scales, jnp.int32)[..., None]
    return _Split(
        _split(mu.codes, group).astype(jnp.int32),
        _split(nu.codes, group).astype(jnp.int32),
        mu.scales.astype(jnp.float32)[..., None],
        _Levels(_float(scales & ~15), scales & 15),
    )


def _split(x: chex.ArrayDevice, group: int) -> chex.ArrayDevice:
    """[..., n] as [..., groups, group], with zeros at the end."""
    short = -x.shape[-1] % group
    if short:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)])
    return x.reshape(*x.shape[:-1], -1, group)


def _join(x: chex.ArrayDevice, shape: tuple[int, ...]) -> chex.ArrayDevice:
    """The inverse of `_split`."""
    return x.reshape(*x.shape[:-2], -1)[..., : shape[-1]]
