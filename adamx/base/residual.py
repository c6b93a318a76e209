"""A float32 weight w as a narrow parameter p and an integer r: what p has no room for.

p is the number of its dtype nearest to w, and r is the distance to it in units of the last place
that is kept. Sign, exponent and mantissa of a float are one integer, `bits32`, in which that is

    bits32(w) = bits32(p) + r * unit,    unit = max(1, 2**(lost - bits)).

r is an integer of so many `bits`. `lost` are the bits of the mantissa that p lacks: 16 in bfloat16,
13 in float16. At a tie p is the number of larger size, so that r is below 2**(bits - 1).

Up to 2**-14 in size, float16 has a constant spacing of 2**-24, where float32 has none. For such p

    w = p + r * 2**-(24 + bits).

So w has these numbers:

=======  =======================  ==================================================================
bits     with bfloat16            with float16
=======  =======================  ==================================================================
16       all float32              all float32 from 2**-17 to 65520; below, multiples of 2**-40
8        15 bits of the mantissa  18 bits of the mantissa; below 2**-14, multiples of 2**-32
=======  =======================  ==================================================================
"""

import functools
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.errors import InvalidValue
from adamx.base.random_bits import hashed_bits

__all__ = ["DTYPES", "Bits", "check_bits", "join", "split"]

Bits = Literal[8, 16]

_INFINITY = 0x7F800000  # bits32 of infinity; what is above is NaN
_NAN = 0x7FC00000
_SPACING = 2.0**-24  # of float16 near zero


class _Form(NamedTuple):
    """How the bits of a narrow dtype follow from those of float32."""

    lost: int  # bits of the mantissa
    bias: int  # bits32 of a normal number is its own bits, shifted by `lost`, and this
    infinity: int  # its own bits
    nan: int
    constant: int | None  # 2**-14, where float16's constant spacing ends

    def shift(self, bits: int) -> int:
        """The exponent of `unit`."""
        return max(0, self.lost - bits)


_FORMS = {
    jnp.dtype(jnp.bfloat16): _Form(16, 0, 0x7F80, 0x7FC0, None),
    jnp.dtype(jnp.float16): _Form(13, 112 << 23, 0x7C00, 0x7E00, 0x0400),
}
DTYPES = tuple(_FORMS)
"""The narrow dtypes that a weight can be split into."""


def check_bits(name: str, bits: Any) -> None:
    """Raise unless `bits` is a number of bits that a residual can have."""
    if not isinstance(bits, int) or bits not in (8, 16):
        raise InvalidValue(where=name, expected="8 or 16", found=repr(bits))


@jax.custom_jvp
def join(p: chex.ArrayDevice, r: chex.ArrayDevice) -> chex.ArrayDevice:
    """The weights w of narrow parameters and their residuals, in float32.

    Args:
      p: of one of `DTYPES`. Where it is NaN, and where it is infinite in float16, so is w. In
        bfloat16 an infinite p with a negative r is a finite w, above that dtype's largest number.
      r: int8 or int16, in the shape of p. If it was made for another p, w still has the sign of p
        and is at most half of p's distance to its neighbours away.

    Returns:
      w. Its derivative by p is 1.
    """
    form, bits = _FORMS[p.dtype], 8 * r.dtype.itemsize
    own, r = jax.lax.bitcast_convert_type(p, jnp.uint16).astype(jnp.int32), r.astype(jnp.int32)
    size = own & 0x7FFF
    units = r << form.shift(bits)
    if bits > form.lost:  # that of a p near zero has more bits
        units = jnp.clip(units, -(1 << (form.lost - 1)), (1 << (form.lost - 1)) - 1)
    pattern = jnp.clip((size << form.lost) + form.bias + units, 0, _INFINITY)
    if form.constant is not None:
        pattern = jnp.where(size == form.infinity, _INFINITY, pattern)
    pattern = jnp.where(size > form.infinity, _NAN, pattern)
    w = jax.lax.bitcast_convert_type(pattern | (own >> 15 << 31), jnp.float32)
    if form.constant is None:
        return w
    steps = jnp.where(own > size, -size, size)
    near_zero = ((steps << bits) + r).astype(jnp.float32) * (_SPACING / 2**bits)
    return jnp.where(size <= form.constant, near_zero, w)


@join.defjvp
def _join_jvp(primals: Any, tangents: Any) -> Any:
    return join(*primals), tangents[0].astype(jnp.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def split(
    w: chex.ArrayDevice, dtype: np.dtype, bits: Bits, key: chex.ArrayDevice | None
) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The narrow parameter and the residual of each weight: the inverse of `join`.

    Args:
      w: float32, of any shape and sharding.
      dtype: one of `DTYPES`.
      bits: of the residual.
      key: uint32[2], with which a w that `join` cannot return is rounded at random, so that its
        mean over all keys is kept; another one for each leaf and step. None to round to nearest.

    Returns:
      p, of `dtype`, with the derivative 1, and r, int8 or int16. Where w is NaN, or too large for
      the dtype, p is NaN or infinite, and r is 0; but in bfloat16 r is negative if w is finite.
    """
    form = _FORMS[dtype]
    shift = form.shift(bits)
    is_exact = shift == 0 and form.constant is None
    draw = None if key is None or is_exact else hashed_bits(key, w.shape, jax.typeof(w).sharding)
    pattern = jax.lax.bitcast_convert_type(w, jnp.int32)
    size = pattern & 0x7FFFFFFF
    # As many random bits as are dropped carry with the probability that those encode. The carry
    # moves the number to its neighbour of larger size, across powers of two as well.
    dropped = (1 << shift) - 1
    noise = (dropped + 1) >> 1 if draw is None else draw.astype(jnp.int32) & dropped
    own, r = _nearest((size + noise - form.bias) >> shift, form.lost - shift)
    if form.constant is not None:
        r = jnp.where(own >= form.infinity, 0, r)
        own = jnp.minimum(own, form.infinity)
        scaled = jnp.abs(w) * (2**bits / _SPACING)  # exact, as is the difference below
        below = jnp.floor(scaled)
        threshold = 0.5 if draw is None else (draw >> 8).astype(jnp.float32) * 2.0**-24
        up = (scaled - below > threshold).astype(jnp.int32)
        steps = below.astype(jnp.int32) + up
        steps, rest = _nearest(jnp.where(pattern < 0, -steps, steps), bits)
        is_near_zero = size < form.bias + (form.constant << form.lost) + (1 << (form.lost - 1))
        own, r = jnp.where(is_near_zero, jnp.abs(steps), own), jnp.where(is_near_zero, rest, r)
    is_nan = size > _INFINITY
    own, r = jnp.where(is_nan, form.nan, own), jnp.where(is_nan, 0, r)
    sign = (pattern >> 31) & 0x8000
    # The sum that makes a parameter zero loses the sign of zero. Near it, r has a sign of its own.
    own = own | (sign if form.constant is None else jnp.where(own == 0, 0, sign))
    return jax.lax.bitcast_convert_type(own.astype(jnp.uint16), dtype), r.astype(f"int{bits}")


@split.defjvp
def _split_jvp(dtype: np.dtype, bits: Bits, primals: Any, tangents: Any) -> Any:
    p, r = split(primals[0], dtype, bits, primals[1])
    return (p, r), (tangents[0].astype(dtype), np.zeros(r.shape, jax.dtypes.float0))


def _nearest(x: chex.ArrayDevice, bits: int) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """Integers without their last bits, rounded to nearest, ties up; and what that changed."""
    rounded = (x + (1 << (bits - 1))) >> bits
    return rounded, x - (rounded << bits)
