"""The Adam state within any Optax state: its arrays by name, and a copy with others instead."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

from adamx.base.trees import path_name
from adamx.transforms.adam import AdamState, AmsgradState

__all__ = ["named_arrays", "replace_arrays"]

# States that count Adam's steps for a schedule or for random bits, and the field that does.
_COUNTERS = {
    "ScaleByScheduleState": "count",
    "WeightDecaySchedule": "count",
    "WrappedScheduleState": "count",
    "InjectStatefulHyperparamsState": "count",
    "MultiStepsState": "gradient_step",
    "ConditionallyTransformState": "step",
    "ConditionallyMaskState": "step",
    "AddNoiseState": "count",
    "StochasticRoundState": "count",
}

# Those that do not pass every call on to what they hold: it counts other steps than they do.
_GATES = {
    "MultiStepsState",
    "ApplyIfFiniteState",
    "ConditionallyTransformState",
    "ConditionallyMaskState",
}

# The gates that stand above an Adam state or a counter: two with the same count together.
_Gates = tuple[int, ...]


def named_arrays(state: optax.OptState) -> dict[str, Any]:
    """The arrays of the Adam states within `state`, which share out one tree of parameters.

    Returns:
      `count`, every `mu/<path>`, every `nu/<path>`, every `nu_max/<path>`, in tree order.

    Raises:
      ValueError: no Adam state; several that overlap or are at different steps; two parameters with
        the same path; something else than an array, or one that is traced or was deleted.
    """
    states = [x for x in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(x)]
    if not states:
        raise ValueError(
            "expected an optimizer state that holds an AdamState or AmsgradState, found none in "
            f"{type(state).__name__}; states of Optax's and adamx's Adam hold one after init, and "
            "adamx.unpack makes one of a packed state"
        )
    counts = [jax.tree.leaves(adam.count)[0] for adam in states]
    arrays = {"count": _checked("count", counts[0])}
    steps = [np.asarray(_checked("count", count)) for count in counts]
    if any(not np.array_equal(steps[0], other) for other in steps):
        raise ValueError(
            f"expected one Adam state, or several at the same step; found {len(states)} at the "
            f"steps {', '.join(map(str, steps))}: pass them one by one"
        )
    for field in AmsgradState._fields[1:]:
        merged = _merge(field, [getattr(adam, field) for adam in states if hasattr(adam, field)])
        for path, leaf in jax.tree_util.tree_leaves_with_path(merged):
            name = _name(field, path)
            if name in arrays:
                raise ValueError(f"{name}: two parameters have this path; rename one of them")
            arrays[name] = _checked(name, leaf)
    return arrays


def replace_arrays(
    state: optax.OptState,
    arrays: Mapping[str, Any],
    place: Callable[[Any, Any], Any],
) -> optax.OptState:
    """A copy of `state` with `arrays`, named as by `named_arrays`, in its Adam states.

    Counters of schedules that go with Adam's steps move on by as many.

    Args:
      state: holds an Adam state; is not changed.
      arrays: the new arrays. All names of `named_arrays(state)`.
      place: makes what is put in of the leaf that was there and the new array.

    Raises:
      ValueError: the count changes, and a schedule counts calls of `MultiSteps`, `apply_if_finite`
        or the like around Adam, whose number cannot be known.
    """
    steps = np.asarray(arrays["count"], np.int64) - np.asarray(named_arrays(state)["count"])
    gates_of_adam: set[_Gates] = set()

    def note(node: Any, gates: _Gates) -> Any:
        gates_of_adam.add(gates)
        return node

    def put(tree: Any, array: Any) -> Any:  # a count may be a leaf, or a node around one in Flax
        return jax.tree.map(lambda leaf: place(leaf, array), tree)

    def replace(node: Any, gates: _Gates) -> Any:
        del gates

        def moments(field: str) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: place(leaf, arrays[_name(field, path)]), getattr(node, field)
            )

        count = put(node.count, arrays["count"])
        return node._replace(count=count, **{field: moments(field) for field in node._fields[1:]})

    def advance(name: str, count: Any, gates: _Gates) -> Any:
        if not np.any(steps):
            return count
        if gates not in gates_of_adam:
            raise ValueError(
                f"{name}: expected a counter of the steps that Adam counts; found one of the calls "
                "of a wrapper that passes on only some of them, whose number is not known here. "
                "Pass the part of the state within the wrapper. The state was left as it was"
            )
        before = jax.tree.leaves(count)[0]
        after = np.clip(np.asarray(before) + steps, 0, np.iinfo(before.dtype).max)
        return put(count, after)

    _visit(state, (), on_adam=note, on_counter=lambda _name, count, _gates: count)
    return _visit(state, (), on_adam=replace, on_counter=advance)


def _visit(
    tree: Any,
    gates: _Gates,
    on_adam: Callable[[Any, _Gates], Any],
    on_counter: Callable[[str, Any, _Gates], Any],
) -> Any:
    """`tree` with the results of two functions in place of its Adam states and its counters."""

    def is_special(node: object) -> bool:
        return _is_adam(node) or type(node).__name__ in _COUNTERS or type(node).__name__ in _GATES

    def at(node: Any) -> Any:
        if _is_adam(node):
            return on_adam(node, gates)
        if not is_special(node):
            return node
        kind = type(node).__name__
        inside = (*gates, id(node)) if kind in _GATES else gates
        # MultiSteps counts the steps that it passes on; the others count their own calls.
        counted = inside if kind == "MultiStepsState" else gates
        fields = {
            field: on_counter(f"{kind}.{field}", value, counted)
            if field == _COUNTERS.get(kind)
            else _visit(value, inside, on_adam, on_counter)
            for field, value in node._asdict().items()
        }
        return node._replace(**fields)

    return jax.tree.map(at, tree, is_leaf=is_special)


def _is_adam(node: object) -> bool:
    return isinstance(node, AdamState | AmsgradState)


def _name(field: str, path: jax.tree_util.KeyPath) -> str:
    return f"{field}/{path_name(path)}" if path else field


def _checked(name: str, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"{name}: expected an array, found {type(leaf).__name__}; take a state that init made "
            "from the parameters themselves"
        )
    if isinstance(leaf, Tracer):
        raise ValueError(
            f"{name}: expected an array, found one that is being traced; call this outside of jit"
        )
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            f"{name}: expected an array, found one that was deleted, as donation to a jitted "
            "function does; take the state which that function returned"
        )
    return leaf


def _merge(name: str, trees: Sequence[Any]) -> Any:
    """The one tree of which each of `trees` has a part, and `optax.MaskedNode` for the others."""
    parts = [tree for tree in trees if not isinstance(tree, optax.MaskedNode)]
    if len(parts) < 2:
        return parts[0] if parts else None
    first = parts[0]
    keyed, treedef = jax.tree_util.tree_flatten_with_path(first, is_leaf=lambda x: x is not first)
    if treedef == jax.tree.structure(0) or any(_top(part) != treedef for part in parts):
        raise ValueError(
            f"{name}: expected Adam states that share out one tree of parameters, as in "
            f"optax.partition; found {len(parts)} that overlap: pass them one by one"
        )
    children = zip(*map(treedef.flatten_up_to, parts), strict=True)
    named = zip((_name(name, key) for key, _ in keyed), children, strict=True)
    return treedef.unflatten([_merge(*child) for child in named])


def _top(tree: Any) -> Any:
    """The structure of the topmost node alone."""
    return jax.tree.structure(tree, is_leaf=lambda x: x is not tree)
