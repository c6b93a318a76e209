"""Random bits of `jax.random` that XLA fuses into the loop of a step, and rounding with them.

On CPUs, JAX passes over the whole array once for every few rounds of its generator; here each
element's bits are a function of its index.
"""

import functools
import math
from typing import Any, TypeGuard

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.dtypes import dtype_of, type_name
from adamx.base.errors import InvalidType, InvalidValue

__all__ = [
    "check_key",
    "fold_in",
    "hashed_bits",
    "key_data",
    "leaf_keys",
    "random_bits",
    "round_at_random",
]

_FLOAT32_MANTISSA = 23
_MAKE_KEY = 'make one with jax.random.key(seed, impl="threefry2x32")'
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


@functools.partial(jax.jit, static_argnames="dtype")
def round_at_random(
    x: chex.ArrayDevice, key: chex.ArrayDevice, dtype: np.dtype
) -> chex.ArrayDevice:
    """Each element of a float32 array as one of its two neighbours in `dtype`, a narrower one.

    Args:
      x: the numbers, of any shape and sharding.
      key: uint32[2]; element i gets the bits of `jax.random.bits`.
      dtype: a real floating dtype.

    Returns:
      An array of `dtype` whose mean over all keys is x. Where x or the result would be infinite or
      NaN, x rounded to nearest. Below the smallest normal number of float16 and 8-bit floats the
      mean is larger than x in magnitude, by less than 2**-24 of the distance between neighbours.
      The derivative is 1, as JAX has it for rounding to nearest.
    """
    return _round(x, random_bits(key, x.shape, jax.typeof(x).sharding), dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _round(x: chex.ArrayDevice, bits: chex.ArrayDevice, dtype: np.dtype) -> chex.ArrayDevice:
    info = jnp.finfo(dtype)
    # Sign, exponent and mantissa are one integer, whose last bits `dtype` cannot hold. Adding as
    # many random bits to those carries with the probability that they encode. The carry moves the
    # number to its neighbour of larger magnitude, across powers of two as well.
    dropped = np.uint32(2 ** (_FLOAT32_MANTISSA - info.nmant) - 1)
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((pattern + (bits & dropped)) & ~dropped, jnp.float32)
    smallest, spacing = float(info.smallest_normal), float(info.smallest_subnormal)
    if smallest > jnp.finfo(jnp.float32).smallest_normal:
        # Below its smallest normal number `dtype` has a constant spacing, unlike float32 there.
        # The division by a power of two is exact, and so is the difference.
        places = jnp.abs(x) / spacing
        below = jnp.floor(places)
        up = (bits >> 8).astype(jnp.float32) * 2**-24 < places - below
        tiny = jnp.copysign((below + up.astype(jnp.float32)) * spacing, x)
        rounded = jnp.where(jnp.abs(x) < smallest, tiny, rounded)
    return jnp.where(jnp.abs(x) <= float(info.max), rounded, x).astype(dtype)


@_round.defjvp
def _round_jvp(dtype: np.dtype, primals: Any, tangents: Any) -> Any:
    return _round(*primals, dtype), tangents[0].astype(dtype)


def check_key(name: str, key: Any) -> None:
    """Raise unless `key` is a seed, one typed key of Threefry, or the data of one."""
    if _is_seed(key):
        return
    dtype, shape = dtype_of(key), getattr(key, "shape", ())
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if (found := str(jax.random.key_impl(key))) != "threefry2x32":
            raise InvalidValue(
                where=name,
                expected="a Threefry key",
                found=f"a key of {found}",
                remedy=_MAKE_KEY,
            )
        one = ()
    elif dtype == np.uint32:
        if shape[-1:] != (2,):
            raise InvalidValue(
                where=name,
                expected="the data of a Threefry key, uint32[2]",
                found=f"shape {shape}, as of another generator",
                remedy=_MAKE_KEY,
            )
        one = (2,)
    else:
        found = type_name(key) if dtype is None else f"an array of {dtype}"
        raise InvalidType(
            where=name,
            expected="an int, a jax.random key or the data of one, uint32[2]",
            found=found,
            remedy=f'With optax.inject_hyperparams pass static_args="{name}"',
        )
    if shape != one:
        raise InvalidValue(
            where=name,
            expected=f"one key, of shape {one}",
            found=shape,
            remedy="for an ensemble of keys, call this within jax.vmap",
        )


def _is_seed(key: object) -> TypeGuard[int]:
    return isinstance(key, int | np.integer) and not isinstance(key, bool)


def key_data(key: chex.Array | int) -> chex.ArrayDevice:
    """The uint32[2] of a key that `check_key` accepts: a new array, which may be donated."""
    typed = jax.random.key(key, impl="threefry2x32") if _is_seed(key) else jnp.array(key)
    is_data = typed.dtype == np.uint32
    return typed if is_data else jax.random.key_data(typed)


def fold_in(key: chex.ArrayDevice, number: chex.Numeric) -> chex.ArrayDevice:
    """`jax.random.fold_in` on the data of a key: uint32[2] for a scalar, [n, 2] for [n]."""
    number = jnp.asarray(number).astype(jnp.uint32)
    return jnp.stack(_threefry(key, jnp.zeros_like(number), number), axis=-1)


def leaf_keys(key: chex.ArrayDevice, count: chex.Numeric, leaves: int) -> chex.ArrayDevice:
    """The keys of one step, one for each leaf: uint32[leaves, 2]."""
    # A sort of what is sorted, which XLA cannot fuse: beside the generator of this one key, LLVM's
    # vectorizer does not come to an end of the loop over the leaves (jaxlib 0.10.2, 16 leaves).
    index = jnp.arange(2, dtype=jnp.uint32)
    _, of_step = jax.lax.sort([index, fold_in(key, count)], num_keys=1)
    keys = fold_in(of_step, jnp.arange(leaves, dtype=jnp.uint32))
    # Without the barrier, XLA would compute the keys again for each element of the leaves.
    return jax.lax.optimization_barrier(keys)


def random_bits(
    key: chex.ArrayDevice, shape: tuple[int, ...], sharding: Any | None = None
) -> chex.ArrayDevice:
    """`jax.random.bits(key, shape, "uint32")`, elementwise: the same with any sharding.

    Args:
      key: uint32[2].
      shape: of the result. With 2**32 elements or more, the bits differ from those of JAX. With
        symbolic dimensions, as in `jax.export`, fewer elements are assumed.
      sharding: of the result where axes of the mesh are explicit.
    """
    x0, x1 = _threefry(key, *_counters(shape, sharding))
    return x0 ^ x1


def hashed_bits(
    key: chex.ArrayDevice, shape: tuple[int, ...], sharding: Any | None = None
) -> chex.ArrayDevice:
    """uint32 for each element, by a hash of its index: a dozen operations, Threefry has a hundred.

    The index is mixed by the multiplications and shifts of `lowbias32`, found by search to have
    little bias (Wellons 2018, https://nullprogram.com/blog/2018/07/31/), with the key before and
    in between. The same with any sharding; arguments as for `random_bits`.
    """
    rows, index = _counters(shape, sharding)
    x = index + key[0] + rows * np.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D) + key[1]
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _counters(
    shape: tuple[int, ...], sharding: Any | None = None, limit: int = 2**32
) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """Two numbers below `limit` for each element; no two elements have the same pair.

    The second is the index within as many of the last dimensions as fit below the limit. The first
    is the index within the other dimensions: 0 unless the array is huge.
    """
    split = len(shape)
    is_symbolic = any(map(jax.export.is_symbolic_dim, shape))
    while split > 0 and (is_symbolic or math.prod(shape[split - 1 :]) <= limit):
        split -= 1

    def index(dimensions: range) -> chex.ArrayDevice:
        total = jnp.zeros([], jnp.uint32)
        for d in dimensions:
            along = jax.lax.broadcasted_iota(jnp.uint32, shape, d, out_sharding=sharding)
            stride = math.prod(shape[d + 1 : dimensions.stop])
            known = np.uint32(stride % 2**32) if isinstance(stride, int) else _as_array(stride)
            total = total + along * known
        return total

    return index(range(split)), index(range(split, len(shape)))


def _as_array(dimension: Any) -> chex.ArrayDevice:
    """A symbolic dimension as a number of the program."""
    return jnp.asarray(dimension).astype(jnp.uint32)


def _threefry(
    key: chex.ArrayDevice, x0: chex.ArrayDevice, x1: chex.ArrayDevice
) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """Threefry-2x32, 20 rounds, with the constants of Salmon et al. 2011; all of uint32."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for i in range(5):
        for bits in _ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << bits | x1 >> (32 - bits))
        x0 = x0 + keys[(i + 1) % 3]
        x1 = x1 + (keys[(i + 2) % 3] + np.uint32(i + 1))
    return x0, x1
