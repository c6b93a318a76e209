"""The Adam state within any Optax state: its arrays by name, and a copy with other arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import KeyPath, tree_flatten_with_path

from adamx.base.adam_state import AmsgradState, array_name, as_adam, check_count, open_state
from adamx.base.coded import CodedLeaf
from adamx.base.dtypes import dtype_of
from adamx.base.eight_bit import encode_like, is_eight_bit, mark_moments
from adamx.base.errors import InvalidValue
from adamx.base.jax_seam import is_traced
from adamx.base.trees import flatten_with_path, is_box, listed, path_name
from adamx.fused.packed import PackedAdamState, PackedAmsgradState
from adamx.state.counters import find_following

__all__ = ["named_arrays", "replace_arrays"]

_PACKED = (PackedAdamState, PackedAmsgradState)


def named_arrays(state: optax.OptState) -> dict[str, Any]:
    """The arrays of the Adam states within `state`, which split one tree of parameters.

    Returns:
      `count`, every `mu/<path>`, every `nu/<path>`, every `nu_max/<path>`, in tree order. For a
      moment in 8 bits a `CodedLeaf`.

    Raises:
      InvalidValue: no Adam state; several that overlap or are at different steps; two parameters
        with the same path; a leaf that is not an array, is traced or was deleted.
    """
    state = _mark(state)
    nodes = [node for node in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(node)]
    states = [adam for node in nodes if (adam := as_adam(node))]
    if not states:
        raise _not_found(state)
    is_sparse = not any(isinstance(node, tuple) for node in nodes)
    counts = []
    for adam in states:
        if len(jax.tree.leaves(adam.count)) != 1:
            check_count(adam.count)
        counts.append(_checked("count", jax.tree.leaves(adam.count)[0]))
    steps = [np.asarray(count) for count in counts]
    if any(not np.array_equal(steps[0], other) for other in steps):
        raise InvalidValue(
            expected="one Adam state, or several at the same step",
            found=f"{len(states)} at the steps {', '.join(map(str, steps))}",
            remedy="pass them one by one",
        )
    arrays = {"count": counts[0]}
    for field in AmsgradState._fields[1:]:
        parts = [getattr(adam, field) for adam in states if hasattr(adam, field)]
        merged = _merge(field, parts, is_sparse=is_sparse)
        for path, leaf in flatten_with_path(merged)[0]:
            name = array_name(field, path)
            if name in arrays:
                raise InvalidValue(
                    "two parameters have this path", where=name, remedy="rename one of them"
                )
            arrays[name] = leaf if isinstance(leaf, CodedLeaf) else _checked(name, leaf)
    for adam in states:
        open_state(adam, is_ensemble_allowed=True)
    return arrays


def replace_arrays(
    state: optax.OptState,
    arrays: Mapping[str, Any],
    fit: Callable[[Any, Any], Any],
) -> optax.OptState:
    """A copy of `state` with `arrays`, named as by `named_arrays`, in its Adam states.

    Counters that follow Adam's count change by as many steps.

    Args:
      state: one that `named_arrays` takes; it is not changed.
      arrays: the new arrays. All names of `named_arrays(state)`.
      fit: makes a new leaf of the present one and the new array; of a `CodedLeaf` an array of
        NumPy, which is encoded here.

    Raises:
      InvalidValue: the count changes, and it is not known by how much some integer scalar of
        `state` has to change; see `find_following`.
    """
    coded, state = state, _mark(state)
    nodes, _ = flatten_with_path(state, _is_adam)
    adams = {path: adam for path, node in nodes if (adam := as_adam(node))}
    before = jax.tree.leaves(next(iter(adams.values())).count)[0]
    steps = np.asarray(arrays["count"], np.int64) - np.asarray(before)
    following = find_following(state, steps.shape) if np.any(steps) else set()
    depths = {len(path) for path in adams}

    def replace(path: KeyPath, leaf: Any) -> Any:
        for depth in depths:
            if path[:depth] in adams:
                field, rest = path_name(path[depth : depth + 1]), path[depth + 1 :]
                return fit(leaf, arrays[array_name(field, rest)])
        if path not in following:
            return leaf
        count = np.asarray(leaf)
        after = np.clip(count + steps, 0, np.iinfo(count.dtype).max)
        return int(after) if isinstance(leaf, int) else fit(leaf, after)

    keyed, treedef = flatten_with_path(state)
    replaced = treedef.unflatten([replace(path, leaf) for path, leaf in keyed])
    return encode_like(coded, replaced)


def _mark(state: optax.OptState) -> optax.OptState:
    """The state with a `CodedLeaf` in place of each moment in 8 bits, if they can be read."""
    keyed, _ = flatten_with_path(state, is_eight_bit)
    for path, node in keyed:
        if is_eight_bit(node):
            for leaf in jax.tree.leaves(node):
                _checked(path_name(path), leaf)
    return mark_moments(state)


def _is_adam(node: object) -> bool:
    return as_adam(node) is not None


def _not_found(state: optax.OptState) -> InvalidValue:
    """The error for a state without Adam: it names the classes that are there instead."""
    kinds: dict[type, None] = {}  # in order

    def note(node: Any) -> bool:
        if dtype_of(node) is None and type(node) not in (tuple, list, dict, type(None)):
            kinds[type(node)] = None
        return isinstance(node, _PACKED)

    jax.tree.leaves(state, is_leaf=note)
    packed = listed(kind.__name__ for kind in kinds if kind in _PACKED)
    others = listed(kind.__name__ for kind in kinds if kind is not type(state))
    return InvalidValue(
        where="state",
        expected="an optimizer state that holds an AdamState or AmsgradState",
        found=f"a packed one, {packed}"
        if packed
        else f"none in {type(state).__name__}{others and f' of {others}'}",
        remedy="call adamx.unpack(state, params) first"
        if packed
        else "pass the state that init of adamx's or Optax's Adam returned, or one that holds it",
    )


def _checked(name: str, leaf: Any) -> Any:
    def fail(found: str, remedy: str) -> InvalidValue:
        return InvalidValue(where=name, expected="an array", found=found, remedy=remedy)

    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise fail(type(leaf).__name__, "pass a state that init made from the parameters")
    if is_traced(leaf):
        raise fail("a traced one", "call this outside of jit")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise fail(
            "a deleted one, perhaps donated to a jitted function",
            "pass the state that this function returned",
        )
    return leaf


def _merge(name: str, trees: Sequence[Any], *, is_sparse: bool) -> Any:
    """The one tree that `trees` split: each has a part of it, and a gap for the others.

    A gap is `optax.MaskedNode`, or None as `equinox.partition` leaves it; in a sparse tree, which
    `nnx.state` makes of a state, it is a missing key.
    """
    parts = [tree for tree in trees if not isinstance(tree, optax.MaskedNode | None)]
    if len(parts) < 2:
        return parts[0] if parts else None
    first = parts[0]
    if is_sparse and all(isinstance(part, Mapping) for part in parts):
        keys = sorted({key for part in parts for key in part})
        first, parts = dict.fromkeys(keys), [{k: part.get(k) for k in keys} for part in parts]
    keyed, treedef = tree_flatten_with_path(first, is_leaf=lambda x: x is not first)
    is_leaf = treedef == jax.tree.structure(0)
    if is_leaf or any(_top(part) != treedef for part in parts):
        raise InvalidValue(
            where=name,
            expected="Adam states that split one tree of parameters, as in optax.partition",
            found=f"{len(parts)} {'that overlap' if is_leaf else 'of different trees'}",
            remedy="pass them one by one",
        )
    children = zip(*map(treedef.flatten_up_to, parts), strict=True)
    names = [name if is_box(first) else array_name(name, key) for key, _ in keyed]
    named = zip(names, children, strict=True)
    return treedef.unflatten([_merge(*child, is_sparse=is_sparse) for child in named])


def _top(tree: Any) -> Any:
    """The structure of the topmost node alone."""
    return jax.tree.structure(tree, is_leaf=lambda x: x is not tree)
