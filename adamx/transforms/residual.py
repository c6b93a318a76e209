"""Narrow parameters whose lost bits are kept, as an integer each, in the optimizer's state."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath

from adamx.base.checks import check_params
from adamx.base.dtypes import dtype_of, type_name
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.random_bits import check_key, fold_in, key_data, leaf_keys
from adamx.base.residual import DTYPES, Bits, check_bits, join, split
from adamx.base.rounded import check_not_rounded
from adamx.base.trees import describe_difference, flatten_with_path, is_none, leaf_name
from adamx.transforms.narrow import check_update, count_narrow, is_narrow, map_narrow

__all__ = ["ResidualState", "check_residual", "residual_keys", "residual_params"]


class ResidualState(NamedTuple):
    """The state of `residual_params`: arrays that any checkpoint can hold.

    Attributes:
      count: the number of steps done, an int32 scalar that stops at its largest value.
      key: uint32[2], the same in every step: the data of a key of `jax.random`.
      residual: a tree like the parameters, int8 or int16 in the shape of each narrow parameter, so
        that its sharding fits; None for the others.
      narrow: the dtypes of narrow parameters and how many leaves have each, as in
        `StochasticRoundState`.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    # The field's name in Optax's states; tuples have a method of that name.
    count: chex.ArrayDevice  # pyright: ignore[reportIncompatibleMethodOverride]
    key: chex.ArrayDevice
    residual: Any
    narrow: dict[str, tuple[()]] | None = None


def residual_params(
    bits: Bits = 8, *, key: chex.ArrayDevice | int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Keep in the optimizer's state what narrow parameters lack of their weights.

    Make it the last part of a chain, after the learning rate: `adam` and the like raise an error
    for updates that it returned. A weight :math:`w` of float32 is kept as a parameter :math:`p` in
    bfloat16 or float16, the nearest number of that dtype, and a signed integer :math:`r` in the
    state. The bits of a float, read as an integer, count the floats of one sign, so in bfloat16

    .. math:: \mathrm{bits}(w) = \mathrm{bits}(p) + r \cdot 2^{16 - bits}.

    A step computes :math:`w' = w + u` in float32 with the update :math:`u`, and returns
    :math:`p' - p` in float32, with which `optax.apply_updates` gives :math:`p'` exactly.
    `full_params` returns the weights, and `split_params` begins with given ones.

    - `bits=16` loses nothing: for given updates, weights are bit for bit those of float32, at 4
      bytes for both parts.
    - `bits=8` keeps 15 bits of the mantissa of w in bfloat16 (float32 has 23), 18 in float16. The
      sum is rounded to one of its two neighbours at random, with the right mean, so that small
      updates survive. The rounding is 256 times as fine as with `stochastic_round`, at one byte.

    Near zero float16 has a constant spacing, and so have the weights: below 2**-17 in size (with 8
    bits below 2**-14) they are multiples of 2**-(24 + bits), rounded at random.

    Parameters of float32 and wider, and complex ones, get the given update unchanged. Derivatives
    are those of a sum that is not rounded.

    Give gradients in float32, as for `stochastic_round`, which says how and why; it also says what
    to do beside other wrappers. The forward pass and the weight decay of `adamw` see p, not w: they
    differ by up to 2**-9 of p in bfloat16, 2**-12 in float16, and the decay by as much of itself.

    Infinite numbers and NaN are those of a float32 run, but a weight too large for its dtype is
    infinite in p: in bfloat16 only from 3.396e38 on, where w stays finite, in float16 from 65520
    on, where w becomes infinite. A p that was infinite becomes NaN if it would return: no sum
    brings it back. Two more limits come from the sum p + (p' - p). An update that takes a weight
    across 0, to below 2**-13 of its size, can leave w off by 2**-24 of that size. And where XLA
    flushes subnormal numbers to 0, weights below 2**-118 in size can lose r.

    The state belongs to the parameters. Other dtypes (of `equinox.apply_updates`, say) and shapes
    raise an error; other values cannot be detected. If you change or load parameters yourself, call
    `split_params`: otherwise the old r is added to them, up to half of their distance to the next
    number of their dtype.

    Args:
      bits: of the residual, 8 or 16.
      key: a seed or a key, as for `stochastic_round`, whose remarks on keys hold here. Not used for
        16 bits in bfloat16.

    Returns:
      A transformation with the state `ResidualState(count, key, residual, narrow)`, whose residuals
      begin at 0. `update(updates, state, params)` needs the parameters. Random bits are a hash of
      an element's index with a key for each leaf and step: the same with any sharding, and others
      than those of `stochastic_round`, of `nu_key` and of moments in 8 bits with the same key.

    Raises:
      ValueError: other `bits`; a key of another generator or shape; in `update`, no params, updates
        or a state whose shapes or structure differ from theirs, or params whose narrow dtypes
        differ from those in `init`; updates that were rounded already.
      TypeError: something that is not a key; a parameter in 8 bits; in `update`, a state of another
        transformation, or with a residual of another dtype.

    Example:
      >>> import adamx, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1e-3), adamx.residual_params(bits=16))
      >>> params = jnp.ones(1, jnp.bfloat16)  # the number below 1 is 0.996
      >>> state = tx.init(params)
      >>> for _ in range(5):
      ...     updates, state = tx.update(jnp.ones(1), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params, adamx.full_params(params, state))
      [0.996094] [0.99500006]

    Sources: Kalamkar et al. 2020, https://arxiv.org/abs/2005.04680, Split-SGD, whose p is cut off
    and whose r has 16 bits; Ortiz et al. 2026, https://arxiv.org/abs/2602.23349, whose r is rounded
    to nearest in 8 bits; for the hash Wellons 2018, https://nullprogram.com/blog/2018/07/31/.
    """
    check_bits("bits", bits)
    check_key("key", key)

    def init(params: optax.Params) -> Any:
        check_params(params)
        for path, p in flatten_with_path(params)[0]:
            _check_dtype(path, p)
        residual = jax.tree.map(
            lambda p: jnp.zeros_like(p, dtype=f"int{bits}") if is_narrow(p) else None, params
        )
        count = jnp.zeros([], jnp.int32)
        return ResidualState(count, key_data(key), residual, count_narrow(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        own, params = check_update(updates, state, params, ResidualState)
        check_residual(own.residual, params, bits)
        check_not_rounded(updates)
        stream = _stream(own.key)
        moved, residual = map_narrow(_update_leaf, stream, own.count, updates, params, own.residual)
        count = jnp.asarray(optax.safe_increment(own.count))
        after: Any = own._replace(count=count, residual=residual)
        return moved, after

    return optax.GradientTransformationExtraArgs(init, update)


def residual_keys(state: ResidualState, leaves: int) -> chex.ArrayDevice:
    """The keys of a step from this state, uint32[leaves, 2]."""
    return leaf_keys(_stream(state.key), state.count, leaves)


def _stream(key: chex.ArrayDevice) -> chex.ArrayDevice:
    return fold_in(key, np.uint32(2**32 - 3))  # which no count reaches


def check_residual(residual: Any, params: optax.Params, bits: int | None = None) -> None:
    """Raise unless `residual` is a tree of residuals for these parameters.

    Args:
      residual: of a `ResidualState`.
      params: the parameters; a narrow one needs an integer array of its shape, others None.
      bits: of the residuals; None for any.
    """
    keyed, treedef = flatten_with_path(params)
    try:
        rows = treedef.flatten_up_to(residual)
    except (ValueError, TypeError) as error:
        raise InvalidValue(
            where="state: residual",
            problem="the structure differs from that of the parameters; "
            f"{describe_difference(residual, params)}",
        ) from error
    dtypes = [f"int{bits}"] if bits else ["int8", "int16"]
    for (path, p), r in zip(keyed, rows, strict=True):
        _check_dtype(path, p)
        where = f"state: residual: {leaf_name(path)}"
        if not is_narrow(p):
            if not is_none(r):
                expected = f"None, for a parameter of {jnp.result_type(p)}"
                raise InvalidType(where=where, expected=expected, found=_describe(r))
            continue
        if str(dtype_of(r)) not in dtypes:
            raise InvalidType(
                where=where,
                expected=f"{' or '.join(dtypes)}, for a parameter of {jnp.result_type(p)}",
                found=_describe(r),
                remedy="To change the number of bits: weights = adamx.full_params(params, state), "
                "and adamx.split_params(weights, params, new.init(params))",
            )
        if jnp.shape(r) != jnp.shape(p):
            expected = f"shape {jnp.shape(p)}, like the parameter"
            raise InvalidValue(where=where, expected=expected, found=jnp.shape(r))


def _check_dtype(path: KeyPath, p: Any) -> None:
    """Raise for a parameter too narrow to have a residual."""
    if is_narrow(p) and jnp.result_type(p) not in DTYPES:
        raise InvalidType(
            where=leaf_name(path),
            expected="a parameter of bfloat16 or float16, or of float32 and wider",
            found=jnp.result_type(p),
            remedy="adamx.stochastic_round takes it",
        )


def _describe(x: Any) -> str:
    dtype = dtype_of(x)
    return type_name(x) if dtype is None else str(dtype)


@jax.jit  # outside of a compiled step, once for all leaves of a shape
def _update_leaf(
    u: chex.ArrayDevice, p: chex.ArrayDevice, r: chex.ArrayDevice, key: chex.ArrayDevice
) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """The update p' - p and the residual r' of the next weight."""
    return _move(u.astype(jnp.float32), p, r, key)


@jax.custom_jvp
def _move(
    u: chex.ArrayDevice, p: chex.ArrayDevice, r: chex.ArrayDevice, key: chex.ArrayDevice
) -> tuple[chex.ArrayDevice, chex.ArrayDevice]:
    """`_update_leaf` in float32.

    p + (p' - p), rounded to p's dtype, is p': where p' is at least 2**-13 of p, the errors of
    difference and sum together are below half of the distance of p' to its neighbours. Where it is
    smaller, w + u cancels and is a multiple of the last bit of one of them, and so is p' - p, which
    is exact, unless p was rounded up to a power of two and p' has another sign. There, and where a
    difference is flushed to 0, p' is not reached: r' is 0, so that w' is what p becomes.
    """
    bits: Any = 8 * r.dtype.itemsize
    after, rest = split(join(p, r) + u, p.dtype, bits, key)
    wide = p.astype(jnp.float32)
    # Infinity minus itself would be NaN, and 0 would turn -0 into 0.
    moved = jnp.where(_bits(after) == _bits(p), -0.0, after.astype(jnp.float32) - wide)
    is_reached = _bits((wide + moved).astype(p.dtype)) == _bits(after)
    return moved, jnp.where(is_reached, rest, 0).astype(r.dtype)


@_move.defjvp
def _move_jvp(primals: Any, tangents: Any) -> Any:
    moved, rest = _move(*primals)
    return (moved, rest), (tangents[0], np.zeros(rest.shape, jax.dtypes.float0))


def _bits(x: chex.ArrayDevice) -> chex.ArrayDevice:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)
