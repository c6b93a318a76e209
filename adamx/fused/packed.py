"""The moments of all leaves in one buffer each, to pass fewer arrays into and out of a step."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.adam_state import AdamState, AmsgradState, check_count, open_state
from adamx.base.checks import check_params
from adamx.base.dtypes import first_moment_dtype, second_moment_dtype
from adamx.base.eight_bit import is_eight_bit
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.jax_seam import is_traced
from adamx.base.trees import flatten_with_path, leaf_name
from adamx.fused.layout import (
    Buffers,
    PackedAdamState,
    PackedAmsgradState,
    PackedState,
    Span,
    buffers_of,
    leaf_dtype,
    locate,
    packed_spans,
    with_layout,
)

__all__ = ["pack", "packed_state", "unpack"]


def packed_state(
    mu_dtype: Any | None, nu_dtype: Any | None, amsgrad: bool, params: optax.Params
) -> Any:
    """The packed state of `params` before the first step, as `scale_by_adam` makes its own."""
    check_params(params)
    _check_packable(params)
    leaves = jax.tree.leaves(params)
    sizes = [int(np.prod(jnp.shape(p))) for p in leaves]

    def zeros(dtypes: list[np.dtype]) -> Buffers:
        return {name: jnp.zeros(size, name) for name, size in locate(sizes, dtypes)[1].items()}

    mu = zeros([first_moment_dtype(p, mu_dtype) for p in leaves])
    nu_dtypes = [second_moment_dtype(p, nu_dtype) for p in leaves]
    count = jnp.zeros([], jnp.int32)
    if amsgrad:
        state = PackedAmsgradState(count, mu, zeros(nu_dtypes), zeros(nu_dtypes))
    else:
        state = PackedAdamState(count, mu, zeros(nu_dtypes))
    return with_layout(state, params)


def pack(state: optax.OptState, params: optax.Params) -> optax.OptState:
    """A copy of `state` with every Adam state in it packed, for `fused_adam(..., packed=True)`.

    Args:
      state: an `AdamState` or `AmsgradState`, or any Optax state that holds one.
      params: the tree of parameters that it belongs to: names, shapes and dtypes count.

    Returns:
      The state with a `PackedAdamState` or `PackedAmsgradState` instead: the same numbers.

    Raises:
      ValueError: the state has no Adam state; moments of another structure or shape than
        `params`; moments whose dtypes differ in another way than the parameters' dtypes, so that
        `unpack` could not find them; parameters that are sharded over several devices.
      TypeError: a parameter is complex.

    Example:
      >>> import adamx, jax.numpy as jnp
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
      >>> state = adamx.adam(1e-3).init(params)
      >>> {name: x.shape for name, x in adamx.pack(state, params)[0].mu.items()}
      {'float32': (32,)}
    """
    _check_packable(params)
    leaves = jax.tree.leaves(params)

    def pack_state(adam: AdamState | AmsgradState) -> PackedState:
        kind = PackedAmsgradState if isinstance(adam, AmsgradState) else PackedAdamState
        opened = open_state(adam, params)
        if any(map(is_eight_bit, opened.columns["mu"])):
            raise InvalidValue(
                where="state",
                expected="moments that are arrays, to put them into buffers",
                found="moments in 8 bits",
                remedy="use adamx.dequantize_moments(state) first",
            )
        names = [leaf_name(path) for path in opened.paths]
        rows = opened.columns.items()
        buffers: list[Any] = [_pack_column(field, column, leaves, names) for field, column in rows]
        return with_layout(kind(jnp.asarray(adam.count), *buffers), params)

    return _replace_nodes(
        state, (AdamState, AmsgradState), pack_state, "an AdamState or AmsgradState"
    )


def unpack(state: optax.OptState, params: optax.Params) -> optax.OptState:
    """The inverse of `pack`: the ordinary state, for `to_numpy`, checkpoints and `adam`.

    Args:
      state: a `PackedAdamState` or `PackedAmsgradState`, or any Optax state that holds one.
      params: the tree of parameters that it belongs to: names, shapes and dtypes count.

    Returns:
      The state with an `AdamState` or `AmsgradState` instead, its moments trees like `params`.

    Raises:
      ValueError: the state has no packed state; one that was packed for other parameters.
    """
    leaves, treedef = jax.tree.flatten(params)

    def unpack_state(adam: PackedState) -> AdamState | AmsgradState:
        check_count(adam.count)
        kind = AmsgradState if isinstance(adam, PackedAmsgradState) else AdamState
        rows = zip(buffers_of(adam).values(), packed_spans(adam, params), strict=True)
        return kind(adam.count, *(tree(buffers, spans) for buffers, spans in rows))

    def tree(buffers: Buffers, spans: list[Span]) -> Any:
        rows = zip(spans, leaves, strict=True)
        return treedef.unflatten([_take(buffers[span.dtype], span, p) for span, p in rows])

    kinds = (PackedAdamState, PackedAmsgradState)
    return _replace_nodes(state, kinds, unpack_state, "a PackedAdamState or PackedAmsgradState")


def _pack_column(
    field: str, column: Sequence[Any], params: Sequence[Any], names: Sequence[str]
) -> Buffers:
    """The buffers with the moments `field` of these parameters."""
    leaves = [jnp.asarray(leaf) for leaf in column]
    dtypes = [leaf.dtype for leaf in leaves]
    for name, p, found in zip(names, params, dtypes, strict=True):
        expected = leaf_dtype(field, p, {dtype.name for dtype in dtypes})
        if found != expected:
            raise InvalidValue(
                where=f"state: {field}/{name}",
                expected=(
                    f"{expected}, since moments of several dtypes need the parameters' own dtypes"
                ),
                found=found,
                remedy="Convert it first",
            )
    spans, ends = locate([leaf.size for leaf in leaves], dtypes)
    pieces: dict[str, list[chex.ArrayDevice]] = {name: [] for name in ends}
    filled = dict.fromkeys(ends, 0)
    for span, leaf in zip(spans, leaves, strict=True):
        gap = span.begin - filled[span.dtype]
        pieces[span.dtype] += [jnp.zeros(gap, leaf.dtype), leaf.reshape(-1)]
        filled[span.dtype] = span.begin + leaf.size
    return {
        name: jnp.concatenate([*pieces[name], jnp.zeros(end - filled[name], name)])
        for name, end in ends.items()
    }


def _check_packable(params: optax.Params) -> None:
    """Raise for a parameter that is complex or sharded."""
    for path, leaf in flatten_with_path(params)[0]:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise InvalidType(
                where=leaf_name(path),
                expected="a real parameter for a packed state",
                found=jnp.result_type(leaf),
                remedy="use packed=False",
            )
        if not isinstance(leaf, jax.Array) or is_traced(leaf):
            continue
        if not leaf.sharding.is_fully_replicated:
            raise InvalidValue(
                where=leaf_name(path),
                expected=(
                    "a parameter that is not sharded, since a packed state has one buffer for all "
                    "of them"
                ),
                found=leaf.sharding,
                remedy="use packed=False",
            )


def _take(buffer: chex.ArrayDevice, span: Span, like: Any) -> chex.ArrayDevice:
    shape = jnp.shape(like)
    end = span.begin + int(np.prod(shape))
    return jax.lax.slice(buffer, [span.begin], [end]).reshape(shape)


def _replace_nodes(
    state: optax.OptState, kinds: tuple[type, ...], replace: Callable[[Any], Any], words: str
) -> optax.OptState:
    """A copy of `state` with `replace(node)` for every node of these types; raise if none is."""
    nodes = 0

    def at(node: Any) -> Any:
        nonlocal nodes
        if not isinstance(node, kinds):
            return node
        nodes += 1
        return replace(node)

    result = jax.tree.map(at, state, is_leaf=lambda node: isinstance(node, kinds))
    if not nodes:
        raise InvalidValue(
            where="state", expected=f"a state that holds {words}", found=type(state).__name__
        )
    return result
