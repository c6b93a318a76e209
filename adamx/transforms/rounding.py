"""Stochastic rounding: small updates to arrays narrower than float32 survive on average.

Rounded to the nearest bfloat16, 1 + 1e-4 is 1, however often it is computed. If it is rounded to
one of its two neighbours at random, with probabilities that keep the mean, it moves.
"""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from adamx.base.checks import check_params
from adamx.base.random_bits import check_key, key_data, round_at_random
from adamx.transforms.narrow import check_update, count_narrow, map_narrow

__all__ = ["StochasticRoundState", "stochastic_round"]


class StochasticRoundState(NamedTuple):
    """The state of `stochastic_round`: arrays that any checkpoint can hold.

    Attributes:
      count: the number of steps done, an int32 scalar that stops at its largest value.
      key: uint32[2], the same in every step: the data of a key of `jax.random`.
      narrow: the dtypes that are rounded and how many leaves have each, `{"2 of bfloat16": ()}`:
        names without arrays, fixed when a step is compiled. None in states of earlier versions.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    # The field's name in Optax's states; tuples have a method of that name.
    count: chex.ArrayDevice  # pyright: ignore[reportIncompatibleMethodOverride]
    key: chex.ArrayDevice
    narrow: dict[str, tuple[()]] | None = None


def stochastic_round(key: chex.ArrayDevice | int) -> optax.GradientTransformationExtraArgs:
    r"""Round parameters narrower than float32 at random, so that small updates are not lost.

    Make it the last part of a chain, after the learning rate: `adam` and the like raise an error
    for updates that it returned. With parameter :math:`p` and update
    :math:`u`, the sum :math:`s = p + u` is computed in float32 and lies between two neighbouring
    numbers :math:`a \le s \le b` of the parameter's dtype. The parameter becomes

    .. math:: r = b \text{ with probability } \frac{s - a}{b - a}, \text{ else } a,

    whose mean is s; r is s where s is a number of that dtype. Beyond the largest number, s is
    rounded to nearest. The returned update is :math:`r - p` in float32, with which
    `optax.apply_updates` gives r exactly. (Not for 8-bit floats, which JAX does not promote: there,
    add them in float32.) Derivatives are those of a sum that is not rounded.

    Parameters of float32 and wider, and complex ones, get the given update unchanged.

    Give gradients in float32: begin the chain with a cast, outside of Optax's conditional wrappers
    (`apply_if_finite` and the like), which need updates of the gradients' dtype::

        cast = optax.stateless(lambda grads, _: optax.tree.cast(grads, "float32"))
        tx = optax.chain(cast, adamx.adamw(1e-3), adamx.stochastic_round(0))

    Adam's updates have the gradients' dtype, in which weight decay is added to the direction: in
    bfloat16 what is below about 1/500 of the direction is lost, which is nearly all of a weight
    decay of 1e-4.

    Chain it after `optax.lookahead`, not inside of it, where its result would be rounded to nearest
    again. Do not use `optax.contrib.schedule_free` with narrow parameters: it adds up its weights
    in their dtype.

    Add the updates with `optax.apply_updates`, which keeps the parameters' dtype.
    `equinox.apply_updates` makes them float32, and the next `update` then raises an error. An
    infinite parameter becomes NaN.

    Args:
      key: a seed, or a key of `jax.random` (Threefry, JAX's default), typed or as uint32[2], which
        may be traced. Members of an ensemble under `jax.vmap`, devices under `jax.shard_map` and
        parts of an `optax.partition` need different keys; arrays that `jax.jit` shards do not: an
        element's bits depend on its index in the whole array.

    Returns:
      A transformation with the state `StochasticRoundState(count, key, narrow)`. `update(updates,
      state, params)` needs the parameters. The bits of leaf i, in tree order and counting leaves
      that are None, are `jax.random.bits(fold_in(fold_in(key, count), i), shape)`.

    Raises:
      ValueError: a key of another generator or shape; in `update`, no params, updates whose shapes
        or structure differ from theirs, or params whose narrow dtypes differ from those in `init`.
      TypeError: something that is not a key; in `update`, a state of another transformation.

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

    def init(params: optax.Params) -> Any:
        check_params(params)
        return StochasticRoundState(jnp.zeros([], jnp.int32), key_data(key), count_narrow(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        own, params = check_update(updates, state, params, StochasticRoundState)
        [rounded] = map_narrow(_update_leaf, own.key, own.count, updates, params)
        after: Any = own._replace(count=jnp.asarray(optax.safe_increment(own.count)))
        return rounded, after

    return optax.GradientTransformationExtraArgs(init, update)


def _update_leaf(u: chex.Array, p: chex.Array, key: chex.ArrayDevice) -> tuple[chex.ArrayDevice]:
    """The update r - p, such that p + (r - p), in float32 and then rounded to p's dtype, is r.

    Where r is at least about 2**-11 of p, the errors of difference and sum together are below half
    of r's distance to its neighbours. Where it is smaller, p + u cancels: the sum is exact and a
    multiple of u's last bit, as then are r and p; r - p has no more bits than u, and is exact.
    (Differences below 2**-126 are 0 to some of XLA's code; there r is p.)
    """
    p = jnp.asarray(p)
    wide = p.astype(jnp.float32)
    s = wide + jnp.asarray(u).astype(jnp.float32)
    return (round_at_random(s, key, p.dtype).astype(jnp.float32) - wide,)
