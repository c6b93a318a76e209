"""The Adam state within any Optax state: its arrays by name, and a copy with others instead."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import (
    KeyPath,
    tree_flatten_with_path,
    tree_leaves_with_path,
    tree_map_with_path,
)

from adamx.base.adam_state import AdamState, AmsgradState, array_name, check_count, open_state
from adamx.base.errors import InvalidValue
from adamx.base.jax_seam import is_traced
from adamx.state.counters import find_following

__all__ = ["named_arrays", "replace_arrays"]


def named_arrays(state: optax.OptState) -> dict[str, Any]:
    """The arrays of the Adam states within `state`, which split one tree of parameters.

    Returns:
      `count`, every `mu/<path>`, every `nu/<path>`, every `nu_max/<path>`, in tree order.

    Raises:
      InvalidValue: no Adam state; several that overlap or are at different steps; two parameters
        with the same path; something else than an array, or one that is traced or was deleted.
    """
    states = _adam_states(state)
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
        merged = _merge(field, [getattr(adam, field) for adam in states if hasattr(adam, field)])
        for path, leaf in tree_leaves_with_path(merged):
            name = array_name(field, path)
            if name in arrays:
                raise InvalidValue(
                    "two parameters have this path", where=name, remedy="rename one of them"
                )
            arrays[name] = _checked(name, leaf)
    for adam in states:
        open_state(adam, is_ensemble_allowed=True)
    return arrays


def replace_arrays(
    state: optax.OptState,
    arrays: Mapping[str, Any],
    fit: Callable[[Any, Any], Any],
) -> optax.OptState:
    """A copy of `state` with `arrays`, named as by `named_arrays`, in its Adam states.

    Counters that go with Adam's count move on by as many steps.

    Args:
      state: one that `named_arrays` takes; is not changed.
      arrays: the new arrays. All names of `named_arrays(state)`.
      fit: makes a new leaf of the present one and the new array.

    Raises:
      InvalidValue: the count changes, and for some integer scalar of `state` it is not known by
        how much it has to change, as in `find_following`.
    """
    before = jax.tree.leaves(_adam_states(state)[0].count)[0]
    steps = np.asarray(arrays["count"], np.int64) - np.asarray(before)
    following = find_following(state, steps.shape) if np.any(steps) else set()
    adams = {
        path for path, node in tree_leaves_with_path(state, is_leaf=_is_adam) if _is_adam(node)
    }
    depths = {len(path) for path in adams}

    def replace(path: KeyPath, leaf: Any) -> Any:
        for depth in depths:
            if path[:depth] in adams:
                field, rest = path[depth].name, path[depth + 1 :]
                # Flax has each leaf in a box, which makes its path longer.
                return fit(leaf, arrays["count" if field == "count" else array_name(field, rest)])
        if path not in following:
            return leaf
        count = np.asarray(leaf)
        after = np.clip(count + steps, 0, np.iinfo(count.dtype).max)
        return int(after) if isinstance(leaf, int) else fit(leaf, after)

    return tree_map_with_path(replace, state)


def _adam_states(state: optax.OptState) -> list[Any]:
    """Every Adam state within `state`, in tree order; at least one."""
    states = [node for node in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(node)]
    if not states:
        raise InvalidValue(
            expected="an optimizer state that holds an AdamState or AmsgradState",
            found=f"none in {type(state).__name__}",
            remedy="states of Optax's and adamx's Adam hold one after init, and adamx.unpack makes "
            "one of a packed state",
        )
    return states


def _is_adam(node: object) -> bool:
    return isinstance(node, AdamState | AmsgradState)


def _checked(name: str, leaf: Any) -> Any:
    def fail(found: str, remedy: str) -> InvalidValue:
        return InvalidValue(where=name, expected="an array", found=found, remedy=remedy)

    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise fail(type(leaf).__name__, "take a state that init made from the parameters")
    if is_traced(leaf):
        raise fail("one that is being traced", "call this outside of jit")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise fail(
            "one that was deleted, as donation to a jitted function does",
            "take the state which that function returned",
        )
    return leaf


def _merge(name: str, trees: Sequence[Any]) -> Any:
    """The one tree of which each of `trees` has a part, and `optax.MaskedNode` for the others."""
    parts = [tree for tree in trees if not isinstance(tree, optax.MaskedNode)]
    if len(parts) < 2:
        return parts[0] if parts else None
    first = parts[0]
    keyed, treedef = tree_flatten_with_path(first, is_leaf=lambda x: x is not first)
    if treedef == jax.tree.structure(0) or any(_top(part) != treedef for part in parts):
        raise InvalidValue(
            where=name,
            expected="Adam states that split one tree of parameters, as in optax.partition",
            found=f"{len(parts)} that overlap",
            remedy="pass them one by one",
        )
    children = zip(*map(treedef.flatten_up_to, parts), strict=True)
    named = zip((array_name(name, key) for key, _ in keyed), children, strict=True)
    return treedef.unflatten([_merge(*child) for child in named])


def _top(tree: Any) -> Any:
    """The structure of the topmost node alone."""
    return jax.tree.structure(tree, is_leaf=lambda x: x is not tree)
