r"""Both moments of a leaf in 8 bits each: codes, and a scale for each group of them.

A group is `group` consecutive elements along the last axis; r is the root of a second moment v.
bits(x) is the pattern of a positive float32 as an integer: a logarithm of x, nearly.

===========  =====================================================================================
code of v    k in 1..254: bits(r) = bits(s) - (254 - k) w, where s is the scale of the group and w
             the distance of its levels; 0 for v = 0 alone
code of m    q in -127..127: m/r = c p(|q|/127) with the sign of q, p(y) = (y + y^2)/2
scales of v  uint16: s in 8 bits of exponent and 4 of mantissa, at least the largest r of the group;
             then j in 4 bits, with w = 10650 (4 + j mod 4) 2^(j div 4): 1.3 to 18 octaves in all
scales of m  bfloat16: c, at least the largest |m|/r of the group
255, -128    v and m that are infinite or NaN
===========  =====================================================================================

Between two levels a number is rounded at random, so that its mean is kept: r and m/r. What matters
is the ratio of the moments, so it is what is stored: a level that r misses moves m by as much, and
the size of a direction is no larger than without rounding (`docs/explanation/memory.md` proves it).
The levels of a group stay as they are for as long as they fit: while they do, an r that hardly
changes is hardly rounded.

A step is computed in units of each group: a power of two near its largest number. So the squares
of gradients neither overflow nor underflow.

The compiled kernel has the same in `native/blockwise.h`.
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

_TOP = 254  # the code of the highest level of v
_LEVELS_M = 127
_NOT_FINITE_V = 255
_NAN_M = -128
_FINEST = 10650  # times 4: the smallest distance of two levels of v
_WIDEST = 15
_OCTAVE = 1 << 23  # in bits(x): from x to 2 x
_MARGIN = _OCTAVE // 10  # below the smallest r of a group when its levels are chosen
_LOST = (1 << 19) - 1  # the bits of a float32 that a scale of v does not have
_NORMAL = 1 << 23  # bits of the smallest float32 that XLA does not flush to 0
_SMALLEST_EPS = 2.0**-100  # in units: its half and its products are not flushed either
_NEGLIGIBLE = 2.0**-60  # in units: the square of a smaller number is flushed to 0


class EightBitMoment(NamedTuple):
    """One moment of a leaf in 8 bits.

    Attributes:
      codes: int8 for the first moment, uint8 for the second one; in the shape of the parameter.
      scales: bfloat16 for the first moment, uint16 for the second one; in the shape of the
        parameter, but one for each group along the last axis.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    codes: Any
    scales: Any


class _Split(NamedTuple):
    """The moments of a leaf with an axis for the groups: [..., groups, elements]."""

    m: chex.ArrayDevice  # codes, in float32
    v: chex.ArrayDevice  # codes, in int32
    m_scale: chex.ArrayDevice  # [..., groups, 1], in float32
    levels: "_Levels"


class _Levels(NamedTuple):
    """The levels of v in each group, int32[..., groups, 1]."""

    top: chex.ArrayDevice  # bits(s), in units where the step is computed; 0 before the first step
    choice: chex.ArrayDevice  # j

    @property
    def distance(self) -> chex.ArrayDevice:
        return _FINEST * ((4 + (self.choice & 3)) << (self.choice >> 2))

    @property
    def lowest(self) -> chex.ArrayDevice:
        return self.top - (_TOP - 1) * self.distance


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
        scales = _largest(_split(jnp.zeros_like(param, dtype=jnp.float32), group))
        codes = jnp.zeros_like(param, dtype=dtype)
        return EightBitMoment(codes, scales[..., 0].astype(scale_dtype))

    return make(jnp.int8, jnp.bfloat16), make(jnp.uint8, jnp.uint16)


def decode(mu: EightBitMoment, nu: EightBitMoment) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The moments m and v, in float32 and in the shape of the parameter."""
    coded = _split_moments(mu, nu)
    unit = _unit(coded.levels.top)
    m, r = (x / _float(unit) for x in _decode(_in_units(coded, unit)))
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
    unit = _unit(_bits(_largest(root)))
    none = jnp.zeros_like(unit)
    bits = _split(hashed_bits(key, v.shape, jax.typeof(v).sharding), group)
    first = _split(m.astype(jnp.float32), group) * _float(unit)
    return _encode(first, root * _float(unit), _Levels(none, none), unit, bits, v.shape)


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
    unit = _unit(jnp.maximum(_bits(_largest(x)), coded.levels.top))
    coded, scale = _in_units(coded, unit), _float(unit)
    m, r = _decode(coded)
    narrow: list[Any] = [a if isinstance(a, float) else jnp.asarray(a, jnp.float32) for a in s]
    s = Scalars(*narrow)
    # A number so small beside the largest has no root to be divided by, and its step is 0.
    x, m = (jnp.where(jnp.abs(a) < _NEGLIGIBLE, 0, a) for a in (x * scale, m))
    smallest = jnp.where(s.eps > 0, _SMALLEST_EPS, 0.0).astype(jnp.float32)
    in_units = s._replace(
        eps=jnp.maximum(s.eps * scale, smallest), eps_root=s.eps_root * scale * scale
    )
    direction, (m, v) = step(x, (m, jnp.square(r)), in_units, convention, m_correction_next)
    bits = _split(hashed_bits(key, shape, jax.typeof(g).sharding), group)
    moments = _encode(m, jnp.sqrt(v), coded.levels, unit, bits, shape)
    return _join(direction, shape), *moments


def _bits(x: chex.ArrayDevice) -> chex.ArrayDevice:
    """The pattern of a float32 x >= 0 as int32, which is in the order of x."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _float(bits: chex.ArrayDevice) -> chex.ArrayDevice:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _unit(largest: chex.ArrayDevice) -> chex.ArrayDevice:
    """bits(u) of a power of two by which numbers of this size, bits(x), become about 1."""
    return jnp.where(largest == 0, 127, jnp.clip(254 - (largest >> 23), 1, 253)) << 23


def _in_units(coded: _Split, unit: chex.ArrayDevice) -> _Split:
    """With the levels in other units than 1. Where they are too low for these, all are 0."""
    top = coded.levels.top + unit - (127 << 23)
    top = jnp.where((coded.levels.top == 0) | (top < _NORMAL), 0, top)
    return coded._replace(levels=coded.levels._replace(top=top))


def _decode(coded: _Split) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The first moment and the root of the second one, in the units of the levels."""
    levels = coded.levels
    bits = levels.top - (_TOP - jnp.maximum(coded.v, 1)) * levels.distance
    level = _float(jnp.where(bits < _NORMAL, 0, bits))
    r = jnp.where(coded.v == 0, 0, level)
    size = jnp.abs(coded.m)
    ratio = jnp.copysign(size * (_LEVELS_M + size) * (0.5 / _LEVELS_M**2), coded.m)
    m = ratio * coded.m_scale * level  # of the lowest level, where v is 0
    is_lost = coded.v == _NOT_FINITE_V
    sign = jnp.where(coded.m == 0, 0, jnp.copysign(jnp.inf, coded.m))
    m = jnp.where(is_lost, jnp.where(coded.m == _NAN_M, jnp.nan, sign), m)
    return m, jnp.where(is_lost, jnp.where(coded.m == _NAN_M, jnp.nan, jnp.inf), r)


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
    scales = _scales(levels, unit)
    is_zero = (r == 0) | (scales == 0)
    # The level below r, of which n are above, and the one above r.
    distance = levels.distance
    n = (levels.top - _bits(kept)).astype(jnp.float32) * (1 / distance.astype(jnp.float32))
    n = jnp.clip(jnp.ceil(n), 1, _TOP - 1).astype(jnp.int32)
    below = levels.top - n * distance
    gap, rest = _float(below + distance) - _float(below), kept - _float(below)
    k = _TOP - n + (_uniform(bits >> 16) * gap < rest).astype(jnp.int32)
    v_codes = jnp.where(is_lost, _NOT_FINITE_V, jnp.where(is_zero, 0, k))

    # Below the lowest level, which r is then read as, m itself is kept. If the scale is 0, so is m.
    denominator = jnp.maximum(kept, _float(jnp.maximum(levels.lowest, _NORMAL)))
    ratio = jnp.where(is_lost | (scales == 0), 0, m / denominator)
    m_scale = _round_up(_largest(ratio))
    a = jnp.abs(ratio) * (1 / jnp.where(m_scale == 0, 1, m_scale))
    q = jnp.floor((jnp.sqrt(1 + 8 * a) - 1) * (_LEVELS_M / 2))
    q = jnp.clip(q, 0, _LEVELS_M - 1)
    gap, rest = 2 * q + (_LEVELS_M + 1), 2 * _LEVELS_M**2 * a - q * (_LEVELS_M + q)
    q = q + (_uniform(bits & 0xFFFF) * gap < rest).astype(jnp.float32)
    lost = jnp.where(jnp.isinf(m), jnp.copysign(float(_LEVELS_M), m), 0)
    lost = jnp.where(jnp.isnan(m) | jnp.isnan(r), _NAN_M, lost)
    m_codes = jnp.where(is_lost, lost, jnp.copysign(q, ratio))
    m_codes, v_codes = _join(m_codes, shape), _join(v_codes, shape)
    mu = EightBitMoment(m_codes.astype(jnp.int8), m_scale[..., 0].astype(jnp.bfloat16))
    return mu, EightBitMoment(v_codes.astype(jnp.uint8), scales[..., 0])


def _choose_levels(old: _Levels, r: chex.ArrayDevice) -> _Levels:
    """The levels for these roots: the old ones, if all roots are among them and few are idle."""
    largest = _bits(jnp.max(r, axis=-1, keepdims=True))
    smallest = _bits(jnp.min(jnp.where(r == 0, jnp.inf, r), axis=-1, keepdims=True))
    smallest = jnp.minimum(smallest, largest)
    top = (largest + _LOST) & ~_LOST
    # The least j whose levels reach that far: a float32's exponent and two bits of its mantissa.
    reach = (top - smallest + _MARGIN).astype(jnp.float32) * (1 / ((_TOP - 1) * _FINEST))
    four = 129 << 2  # of the number 4, whose j is 0
    choice = jnp.clip(((_bits(reach) + ((1 << 21) - 1)) >> 21) - four, 0, _WIDEST)
    fits = (largest <= old.top) & (largest >= old.top - _OCTAVE) & (old.choice <= choice + 1)
    fits &= (smallest >= old.lowest) | (old.choice == _WIDEST)
    return _Levels(jnp.where(fits, old.top, top), jnp.where(fits, old.choice, choice))


def _scales(levels: _Levels, unit: chex.ArrayDevice) -> chex.ArrayDevice:
    """The levels as the state holds them, uint16; 0 where they are too low for it."""
    top = levels.top - unit + (127 << 23)
    scales = jnp.where((levels.top == 0) | (top < 2 * _NORMAL), 0, top >> 15 | levels.choice)
    return scales.astype(jnp.uint16)


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


def _split_moments(mu: EightBitMoment, nu: EightBitMoment) -> _Split:
    group = group_size(nu)
    scales = nu.scales.astype(jnp.int32)[..., None]
    return _Split(
        _split(mu.codes, group).astype(jnp.float32),
        _split(nu.codes, group).astype(jnp.int32),
        mu.scales.astype(jnp.float32)[..., None],
        _Levels((scales >> 4) << 19, scales & 15),
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
