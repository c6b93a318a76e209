"""The moments of all leaves in one buffer each, to pass fewer arrays into and out of a step."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.adam_state import AdamState, AmsgradState, check_count, open_state
from adamx.base.checks import check_params
from adamx.base.dtypes import compute_dtype, first_moment_dtype, second_moment_dtype
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.jax_seam import is_traced
from adamx.base.trees import leaf_name

__all__ = [
    "PackedAdamState",
    "PackedAmsgradState",
    "Span",
    "pack",
    "packed_spans",
    "packed_state",
    "unpack",
]

_ALIGNMENT = 64  # bytes: a line of the cache, and the widest vector register

Buffers = dict[str, chex.ArrayDevice]


class PackedAdamState(NamedTuple):
    """An `AdamState` whose moments are stored contiguously.

    Attributes:
      count: the number of steps done, an int32 scalar.
      mu, nu: flat arrays by the name of their dtype, `{"float32": ...}`: one, or one for each dtype
        if they differ. A leaf's part begins at a multiple of 64 bytes; between parts are zeros.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    # The field's name in Optax's states; tuples have a method of that name.
    count: chex.ArrayDevice  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Buffers
    nu: Buffers


class PackedAmsgradState(NamedTuple):
    """An `AmsgradState` whose moments are stored contiguously; see `PackedAdamState`."""

    __module__ = "adamx"  # as users import it: what pickles and repr name

    count: chex.ArrayDevice  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Buffers
    nu: Buffers
    nu_max: Buffers


class Span(NamedTuple):
    """Where a leaf's part lies: in the buffer of which dtype, and from which element on."""

    dtype: str
    begin: int


def _spans(sizes: Sequence[int], dtypes: Sequence[np.dtype]) -> tuple[list[Span], dict[str, int]]:
    """Where the parts of leaves of these sizes and dtypes lie, and the sizes of the buffers."""
    ends: dict[str, int] = {}
    found = []
    for size, dtype in zip(sizes, dtypes, strict=True):
        begin = ends.get(dtype.name, 0)
        step = max(1, _ALIGNMENT // dtype.itemsize)
        found.append(Span(dtype.name, begin))
        ends[dtype.name] = begin + math.ceil(size / step) * step
    return found, ends


def packed_state(
    mu_dtype: Any | None, nu_dtype: Any | None, amsgrad: bool, params: optax.Params
) -> PackedAdamState | PackedAmsgradState:
    """The packed state of `params` before the first step, as `scale_by_adam` makes its own."""
    check_params(params)
    _check_packable(params)
    leaves = jax.tree.leaves(params)
    sizes = [int(np.prod(jnp.shape(p))) for p in leaves]

    def zeros(dtypes: list[np.dtype]) -> Buffers:
        return {name: jnp.zeros(size, name) for name, size in _spans(sizes, dtypes)[1].items()}

    mu = zeros([first_moment_dtype(p, mu_dtype) for p in leaves])
    nu_dtypes = [second_moment_dtype(p, nu_dtype) for p in leaves]
    count = jnp.zeros([], jnp.int32)
    if amsgrad:
        return PackedAmsgradState(count, mu, zeros(nu_dtypes), zeros(nu_dtypes))
    return PackedAdamState(count, mu, zeros(nu_dtypes))


def pack(state: optax.OptState, params: optax.Params) -> optax.OptState:
    """A copy of `state` with every Adam state in it packed, for `fused_adam(..., packed=True)`.

    Args:
      state: an `AdamState` or `AmsgradState`, or any Optax state that holds one.
      params: the tree of parameters that it belongs to; of its leaves, shapes and dtypes count.

    Returns:
      The state with a `PackedAdamState` or `PackedAmsgradState` instead: the same numbers.

    Raises:
      ValueError: the state has no Adam state; moments of another structure or shape than
        `params`; moments of dtypes that differ otherwise than the parameters' do, from which
        `unpack` would not know them; parameters that are sharded over several devices.
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

    def pack_state(adam: AdamState | AmsgradState) -> PackedAdamState | PackedAmsgradState:
        kind = PackedAmsgradState if isinstance(adam, AmsgradState) else PackedAdamState
        opened = open_state(adam, params)
        names = [leaf_name(path) for path in opened.paths]
        fields = [_pack_column(f, opened.columns[f], leaves, names) for f in adam._fields[1:]]
        packed = kind(jnp.asarray(adam.count), *fields)
        packed_spans(packed, leaves)
        return packed

    return _replace_nodes(
        state, (AdamState, AmsgradState), pack_state, "an AdamState or AmsgradState"
    )


def unpack(state: optax.OptState, params: optax.Params) -> optax.OptState:
    """The inverse of `pack`: the ordinary state, for `to_numpy`, checkpoints and `adam`.

    Args:
      state: a `PackedAdamState` or `PackedAmsgradState`, or any Optax state that holds one.
      params: the tree of parameters that it belongs to; of its leaves, shapes and dtypes count.

    Returns:
      The state with an `AdamState` or `AmsgradState` instead, its moments trees like `params`.

    Raises:
      ValueError: the state has no packed state; buffers of other sizes than `params` needs, rounded
        up to 64 bytes for each leaf.
    """
    leaves, treedef = jax.tree.flatten(params)

    def unpack_state(adam: PackedAdamState | PackedAmsgradState) -> AdamState | AmsgradState:
        check_count(adam.count)
        kind = AmsgradState if isinstance(adam, PackedAmsgradState) else AdamState
        return kind(adam.count, *(tree(f, getattr(adam, f)) for f in adam._fields[1:]))

    def tree(field: str, buffers: Buffers) -> Any:
        found = leaf_spans(field, buffers, leaves)
        rows = zip(found, leaves, strict=True)
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
        expected = _leaf_dtype(field, p, {dtype.name for dtype in dtypes})
        if found != expected:
            raise InvalidValue(
                where=f"state: {field}/{name}",
                expected=(
                    f"{expected}, since moments of several dtypes are packed by the parameter's"
                ),
                found=found,
                remedy="Convert it first",
            )
    spans, ends = _spans([leaf.size for leaf in leaves], dtypes)
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


def _leaf_dtype(field: str, param: Any, names: set[str]) -> np.dtype:
    """The dtype of a parameter's moment `field` ("mu", "nu", "nu_max"), given the buffers' names.

    It is that of the only buffer; of several, the one that `scale_by_adam` chooses by itself.
    """
    if len(names) == 1:
        return jnp.dtype(next(iter(names)))
    dtype = jnp.result_type(param)
    return dtype if field == "mu" else compute_dtype(dtype)


def leaf_spans(field: str, buffers: Buffers, params: Sequence[Any]) -> list[Span]:
    """Where in `buffers` the parts of `params` lie; raise a ValueError if they cannot."""
    dtypes = [_leaf_dtype(field, p, set(buffers)) for p in params]
    found, ends = _spans([int(np.prod(jnp.shape(p))) for p in params], dtypes)
    sizes = {name: buffer.size for name, buffer in buffers.items()}
    if ends != sizes:
        raise InvalidValue(
            where=f"state: {field}",
            expected=f"buffers of {ends or 'no'} elements for these parameters",
            found=sizes,
            remedy="the state was packed for other parameters",
        )
    return found


def packed_spans(
    adam: PackedAdamState | PackedAmsgradState, params: Sequence[Any]
) -> list[list[Span]]:
    """`leaf_spans` of each field; raise a ValueError unless nu_max lies as nu does."""
    found = [leaf_spans(field, getattr(adam, field), params) for field in adam._fields[1:]]
    if isinstance(adam, PackedAmsgradState) and found[1] != found[2]:
        raise InvalidValue(
            where="state: nu_max",
            expected=f"the dtypes of nu for a packed state, {', '.join(adam.nu)}",
            found=", ".join(adam.nu_max),
            remedy="Convert one of them first",
        )
    return found


def _check_packable(params: optax.Params) -> None:
    """Raise for a parameter that is complex or sharded."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
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
    """A copy of `state` with `replace(node)` for every node of these types; at least one."""
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
