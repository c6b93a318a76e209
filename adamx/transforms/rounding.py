"""Stochastic rounding: arrays narrower than float32 that small updates move by the right mean.

Rounded to the nearest bfloat16, 1 + 1e-4 is 1, however often it is computed. Rounded to one of its
two neighbours at random, with the probability that makes the mean right, it moves.

The random bits are those of `jax.random.bits`. On CPUs, JAX computes them in a loop over all of
memory for each few rounds; here each element's bits are a function of its index that XLA fuses into
the loop of the step.
"""

import functools
import math
from typing import Any, NamedTuple, TypeGuard

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.checks import check_gradients, is_none
from adamx.base.errors import InvalidType, InvalidValue

__all__ = [
    "StochasticRoundState",
    "check_key",
    "fold_in",
    "key_data",
    "leaf_keys",
    "random_bits",
    "round_at_random",
    "stochastic_round",
]

_FLOAT32_MANTISSA = 23
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_MAKE_KEY = 'make one with jax.random.key(seed, impl="threefry2x32")'


class StochasticRoundState(NamedTuple):
    """The state of `stochastic_round`: arrays that any checkpoint takes.

    Attributes:
      count: the number of steps done, an int32 scalar that stops at its largest value.
      key: uint32[2], the same in every step: the data of a key of `jax.random`.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    # The field's name in Optax's states; tuples have a method of that name.
    count: chex.ArrayDevice  # pyright: ignore[reportIncompatibleMethodOverride]
    key: chex.ArrayDevice


def stochastic_round(key: chex.ArrayDevice | int) -> optax.GradientTransformationExtraArgs:
    r"""Round parameters narrower than float32 at random, so that small updates are not lost.

    The last part of a chain, after the learning rate. With parameter :math:`p` and update
    :math:`u`, the sum :math:`s = p + u` is computed in float32 and lies between two neighbouring
    numbers :math:`a \le s \le b` of the parameter's dtype. The parameter becomes

    .. math:: r = b \text{ with probability } \frac{s - a}{b - a}, \text{ else } a,

    whose mean is s; s itself where it is such a number. Beyond the largest, s is rounded to
    nearest. The update comes back as :math:`r - p` in float32, and `optax.apply_updates` then gives
    r exactly. (Not for 8-bit floats, which JAX does not promote: there, add them in float32.)
    Derivatives are those of a sum that is not rounded.

    Parameters of float32 and wider, and complex ones, get the update that was given.

    Give gradients in float32 (`optax.tree.cast(grads, "float32")`). Adam's updates come in the
    gradients' dtype, and weight decay is added to the direction in it: in bfloat16 what is below
    about 1/500 of the direction is lost, which is nearly all of a decay of 1e-4. Optax's gates
    (`apply_if_finite` and the like) need it too, since the updates that come back are in float32.

    Of wrappers that compute parameters themselves it goes around `optax.lookahead`, not inside,
    where what it does would be rounded to nearest again. `optax.contrib.schedule_free` is not for
    narrow parameters: it adds up its weights in their dtype.

    Add the updates with `optax.apply_updates`, which keeps the parameters' dtype;
    `equinox.apply_updates` would make them float32. An infinite parameter becomes NaN.

    Args:
      key: a seed, or a key of `jax.random` (Threefry, JAX's default), typed or as uint32[2], which
        may be traced. Members of an ensemble under `jax.vmap`, devices under `jax.shard_map` and
        parts of an `optax.partition` need keys of their own; arrays that `jax.jit` shards do not:
        an element's bits depend on its index in the whole array.

    Returns:
      A transformation with the state `StochasticRoundState(count, key)`. `update(updates, state,
      params)` needs the parameters. The bits of leaf i, in tree order and counting leaves that are
      None, are `jax.random.bits(fold_in(fold_in(key, count), i), shape)`.

    Raises:
      ValueError: a key of another generator or shape; in `update`, no params, or updates whose
        shapes or structure are not theirs.
      TypeError: a key that is none; in `update`, a state of another transformation.

    Example:
      >>> import adamx, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1e-4), adamx.stochastic_round(0))
      >>> params = jnp.ones(10_000, jnp.bfloat16)  # the numbers beside 1 are 0.996 and 1.008
      >>> updates, state = tx.update(jnp.ones(10_000), tx.init(params), params)
      >>> moved = optax.apply_updates(params, updates) < 1
      >>> bool(0.020 < moved.mean() < 0.032)  # 1e-4 / 2**-8 is 0.026
      True

    Sources: Gupta et al. 2015, https://arxiv.org/abs/1502.02551, section 3; Zamirai et al. 2020,
    https://arxiv.org/abs/2010.06192, algorithm 2; for the bits Salmon et al. 2011,
    https://doi.org/10.1145/2063384.2063405, Threefry-2x32 with 20 rounds.
    """
    check_key("key", key)

    def init(params: optax.Params) -> StochasticRoundState:
        del params
        return StochasticRoundState(jnp.zeros([], jnp.int32), key_data(key))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None:
            raise InvalidValue(
                where="params",
                expected="the parameters, whose next values are rounded",
                found=None,
                remedy="call update(updates, state, params)",
            )
        if not isinstance(state, StochasticRoundState):
            expected = "StochasticRoundState, as init made it"
            raise InvalidType(where="state", expected=expected, found=type(state).__name__)
        check_gradients(updates, params, "the parameters")
        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        keys = leaf_keys(state.key, state.count, len(leaves))
        rows = zip(leaves, treedef.flatten_up_to(params), range(len(leaves)), strict=True)
        rounded = [
            u if u is None or not _is_narrow(jnp.result_type(p)) else _update_leaf(u, p, keys[i])
            for u, p, i in rows
        ]
        count = jnp.asarray(optax.safe_increment(state.count))
        return treedef.unflatten(rounded), StochasticRoundState(count, state.key)

    return optax.GradientTransformationExtraArgs(init, update)


def _update_leaf(u: chex.Array, p: chex.Array, key: chex.ArrayDevice) -> chex.ArrayDevice:
    """The update r - p, such that p + (r - p), in float32 and then rounded to p's dtype, is r.

    Where r is at least about 2**-11 of p, the errors of difference and sum together are below half
    of r's distance to its neighbours. Where it is smaller, p + u cancels: the sum is exact and a
    multiple of u's last place, as then are r and p; r - p has no more places than u, and is exact.
    (Differences below 2**-126 are 0 to some of XLA's code; there r is p.)
    """
    p = jnp.asarray(p)
    wide = p.astype(jnp.float32)
    s = wide + jnp.asarray(u).astype(jnp.float32)
    return round_at_random(s, key, p.dtype).astype(jnp.float32) - wide


def _is_narrow(dtype: np.dtype) -> bool:
    """Whether it is a real floating dtype with less precision than float32."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).nmant < _FLOAT32_MANTISSA


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
      NaN, x rounded to nearest. The derivative is 1, as that of rounding to nearest is to JAX.
    """
    return _round(x, random_bits(key, x.shape, jax.typeof(x).sharding), dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _round(x: chex.ArrayDevice, bits: chex.ArrayDevice, dtype: np.dtype) -> chex.ArrayDevice:
    info = jnp.finfo(dtype)
    # Sign, exponent and mantissa as one integer: what `dtype` cannot hold are its last bits. A
    # random number of as many bits, added to them, carries with the probability that they say; the
    # carry makes the number larger in magnitude by one place, across powers of two as well.
    dropped = np.uint32(2 ** (_FLOAT32_MANTISSA - info.nmant) - 1)
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((pattern + (bits & dropped)) & ~dropped, jnp.float32)
    smallest, spacing = float(info.smallest_normal), float(info.smallest_subnormal)
    if smallest > jnp.finfo(jnp.float32).smallest_normal:
        # Below its smallest normal number, where float32 goes on, `dtype` has a constant spacing.
        # The division is by a power of two, and exact, as is the difference.
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
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if (found := str(jax.random.key_impl(key))) != "threefry2x32":
            raise InvalidValue(
                where=name,
                expected="a key of Threefry",
                found=f"one of {found}",
                remedy=_MAKE_KEY,
            )
        one = ()
    elif dtype == np.uint32:
        if shape[-1:] != (2,):
            raise InvalidValue(
                where=name,
                expected="the data of a key of Threefry, uint32[2]",
                found=f"{shape}, as of another generator",
                remedy=_MAKE_KEY,
            )
        one = (2,)
    else:
        found = type(key).__name__ if dtype is None else f"an array of {dtype}"
        raise InvalidType(
            where=name,
            expected="an int, a key of jax.random or the data of one, uint32[2]",
            found=found,
            remedy=f'Under optax.inject_hyperparams name it in static_args="{name}"',
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
    """The uint32[2] of what `check_key` lets pass: a new array, which may be donated."""
    typed = jax.random.key(key, impl="threefry2x32") if _is_seed(key) else jnp.array(key)
    is_data = typed.dtype == np.uint32
    return typed if is_data else jax.random.key_data(typed)


def fold_in(key: chex.ArrayDevice, number: chex.Numeric) -> chex.ArrayDevice:
    """`jax.random.fold_in` on the data of a key: uint32[2] for a scalar, [n, 2] for [n]."""
    number = jnp.asarray(number).astype(jnp.uint32)
    return jnp.stack(_threefry(key, jnp.zeros_like(number), number), axis=-1)


def leaf_keys(key: chex.ArrayDevice, count: chex.Numeric, leaves: int) -> chex.ArrayDevice:
    """The keys of one step, one for each leaf: uint32[leaves, 2]."""
    keys = fold_in(fold_in(key, count), jnp.arange(leaves, dtype=jnp.uint32))
    # XLA would compute them again in the loops of the leaves, for each element.
    return jax.lax.optimization_barrier(keys)


def random_bits(
    key: chex.ArrayDevice, shape: tuple[int, ...], sharding: Any | None = None
) -> chex.ArrayDevice:
    """`jax.random.bits(key, shape, "uint32")`, elementwise: the same with any sharding.

    Args:
      key: uint32[2].
      shape: of the result. With 2**32 elements or more, the bits are others than those of JAX.
      sharding: of the result where axes of the mesh are explicit.
    """
    x0, x1 = _threefry(key, *_counters(shape, sharding))
    return x0 ^ x1


def _counters(
    shape: tuple[int, ...], sharding: Any | None = None, limit: int = 2**32
) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """Two numbers below `limit` for each element, together different for any two of them.

    The second is the index within as many of the last dimensions as have room below the limit, and
    the first that within the others: 0 for all arrays that are not huge.
    """
    split = len(shape)
    while split > 0 and math.prod(shape[split - 1 :]) <= limit:
        split -= 1

    def index(dimensions: range) -> chex.ArrayDevice:
        total = jnp.zeros([], jnp.uint32)
        for d in dimensions:
            along = jax.lax.broadcasted_iota(jnp.uint32, shape, d, out_sharding=sharding)
            stride = math.prod(shape[d + 1 : dimensions.stop])
            total = total + along * np.uint32(stride % 2**32)
        return total

    return index(range(split)), index(range(split, len(shape)))


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
