"""An Adam state, wherever it sits in an Optax state, as NumPy arrays: by order and by path."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.checks import path_name
from adamx.transform import AdamState, AmsgradState

__all__ = ["from_numpy", "get_weights", "set_weights", "to_numpy"]

# Where Optax counts the steps of a schedule: the state's type, and the field.
_SCHEDULE_COUNTERS = {
    "ScaleByScheduleState": "count",
    "WeightDecaySchedule": "count",
    "WrappedScheduleState": "count",
    "InjectStatefulHyperparamsState": "count",
    "MultiStepsState": "gradient_step",
}


def get_weights(state: optax.OptState) -> list[np.ndarray]:
    """The Adam state within `state` as a list of arrays, in Keras's order.

    Args:
      state: any Optax state that holds an Adam state: of a chain, `inject_hyperparams`,
        `MultiSteps`, or a partition, whose parts are put together again.

    Returns:
      [count, every mu, every nu], with AMSGrad then every maximum of nu: leaves in the order of the
      parameters' tree, None and masked leaves left out. Dtypes are the state's, but NumPy has no
      bfloat16 and no float8: they come as float32, exactly.

    Raises:
      ValueError: there is no Adam state, or there are several for one parameter, or they are at
        different steps; or an array has parts on devices of another process.
    """
    return [_as_numpy(path, leaf) for path, leaf in _entries(state).items()]


def set_weights(state: optax.OptState, weights: Sequence[np.ndarray]) -> optax.OptState:
    """A copy of `state` whose Adam state has these weights: the inverse of `get_weights`.

    Schedules that count their steps beside Adam's (`optax.scale_by_schedule`, scheduled weight
    decay, `inject_hyperparams`, `MultiSteps`) move on by as many steps as Adam does, so that a
    learning rate goes on where it was.

    Args:
      state: as for `get_weights`; gives the structure, dtypes and shardings. It is not changed.
      weights: as `get_weights` returns them. Converted to the dtypes of `state`.

    Returns:
      The new state.

    Raises:
      ValueError: the number of arrays or a shape differs, a count is no whole number from 0 to
        2**31 - 1, or a value is too large for the state's dtype; the message has the path.
    """
    entries = _entries(state)
    if len(weights) != len(entries):
        raise ValueError(
            f"expected {len(entries)} arrays ({', '.join(entries)}), found {len(weights)}. "
            "The state was left as it was"
        )
    return _replace(state, entries, dict(zip(entries, weights, strict=True)))


def to_numpy(state: optax.OptState) -> dict[str, np.ndarray]:
    """The Adam state within `state` by path, fit for `np.savez`.

    Args:
      state: as for `get_weights`.

    Returns:
      A dictionary with the keys `count`, `mu/<path>`, `nu/<path>` and with AMSGrad
      `nu_max/<path>`, where the path is that of the parameter, such as `dense/kernel`; of a tree
      that is one array, `mu` and `nu`. Order and dtypes as for `get_weights`.

    Raises:
      ValueError: as `get_weights`; or two parameters have the same path.

    Example:
      >>> import adamx, jax.numpy as jnp
      >>> state = adamx.adam(1e-3).init({"dense": {"kernel": jnp.ones((2, 3))}})
      >>> {path: array.shape for path, array in adamx.to_numpy(state).items()}
      {'count': (), 'mu/dense/kernel': (2, 3), 'nu/dense/kernel': (2, 3)}
    """
    return {path: _as_numpy(path, leaf) for path, leaf in _entries(state).items()}


def from_numpy(state: optax.OptState, arrays: Mapping[str, np.ndarray]) -> optax.OptState:
    """A copy of `state` whose Adam state has these arrays: the inverse of `to_numpy`.

    Args:
      state: as for `set_weights`, which also tells what happens to schedules.
      arrays: as `to_numpy` returns them, or as `np.load` reads them back.

    Returns:
      The new state.

    Raises:
      ValueError: a name is missing or unknown, or as `set_weights`.
    """
    entries = _entries(state)
    missing = sorted(entries.keys() - arrays.keys())
    unknown = sorted(arrays.keys() - entries.keys())
    if missing or unknown:
        raise ValueError(
            f"expected the arrays {', '.join(entries)}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}. "
            "The state was left as it was"
        )
    return _replace(state, entries, arrays)


def _is_adam(node: object) -> bool:
    return isinstance(node, AdamState | AmsgradState)


def _adam_states(state: optax.OptState) -> list[AdamState | AmsgradState]:
    found = [x for x in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(x)]
    if not found:
        raise ValueError(
            "expected an optimizer state that holds an AdamState or AmsgradState, found none in "
            f"{type(state).__name__}; states of Optax's and adamx's Adam hold one after init"
        )
    return found


def _name(field: str, path: jax.tree_util.KeyPath) -> str:
    return f"{field}/{path_name(path)}" if path else field


def _entries(state: optax.OptState) -> dict[str, chex.Array]:
    """The leaves of the Adam states within `state`, by name, in Keras's order."""
    states = _adam_states(state)
    counts = [np.asarray(adam.count) for adam in states]
    if any(not np.array_equal(counts[0], count) for count in counts):
        raise ValueError(
            f"expected one Adam state, or several at the same step; found {len(states)} at the "
            f"steps {', '.join(map(str, counts))}: pass them one by one"
        )
    entries: dict[str, Any] = {"count": states[0].count}
    for field in AmsgradState._fields[1:]:
        trees = [getattr(adam, field) for adam in states if hasattr(adam, field)]
        merged = _merge(field, trees) if trees else None
        for path, leaf in jax.tree_util.tree_leaves_with_path(merged):
            name = _name(field, path)
            if name in entries:
                raise ValueError(f"{name}: two parameters have this path; rename one of them")
            entries[name] = leaf
    return entries


def _merge(name: str, trees: Sequence[Any]) -> Any:
    """The one tree of which each of `trees` has a part, and `optax.MaskedNode` for the others."""
    parts = [tree for tree in trees if not isinstance(tree, optax.MaskedNode)]
    if len(parts) < 2:
        return parts[0] if parts else None
    first = parts[0]
    keyed, treedef = jax.tree_util.tree_flatten_with_path(first, is_leaf=lambda x: x is not first)
    try:
        if jax.tree_util.treedef_is_leaf(treedef):
            raise ValueError
        columns = zip(*map(treedef.flatten_up_to, parts), strict=True)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected Adam states that share out one tree of parameters, as in "
            f"optax.partition; found {len(parts)} that overlap: pass them one by one"
        ) from error
    keys = [path for path, _ in keyed]
    children = [_merge(_name(name, key), list(c)) for key, c in zip(keys, columns, strict=True)]
    return treedef.unflatten(children)


def _as_numpy(name: str, leaf: chex.Array) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(
            f"{name}: expected an array on devices of this process, found one spread over several; "
            "gather it first, with jax.experimental.multihost_utils.process_allgather"
        )
    array = np.array(leaf)  # a copy, which outlives a donated state
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


def _like(name: str, leaf: chex.Array, value: chex.ArrayTree) -> chex.Array:
    """`value` with the dtype and on the devices of `leaf`."""
    value, dtype = np.asarray(value), np.dtype(leaf.dtype)
    if value.shape != leaf.shape:
        raise ValueError(
            f"{name}: expected shape {leaf.shape}, found {value.shape}. "
            "The state was left as it was"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.can_cast(value.dtype, np.complex128 if dtype.kind == "c" else np.float64)
        array = np.array(value, dtype) if fits else np.empty(0)
        if fits and dtype.kind == "i":
            fits = np.all(array == value) and np.all(array >= 0)
        elif fits:
            fits = np.all(np.isfinite(array) | ~np.isfinite(value))
    if not fits:
        shown = str(value) if value.ndim == 0 else f"an array of {value.dtype}"
        wanted = "whole numbers from 0" if dtype.kind == "i" else "numbers in the range"
        raise ValueError(
            f"{name}: expected {wanted} of {dtype}, found {shown}. The state was left as it was"
        )
    if not isinstance(leaf, jax.Array):
        return array
    return jax.device_put(array, leaf.sharding) if leaf.committed else jnp.asarray(array)


def _replace(
    state: optax.OptState,
    entries: Mapping[str, chex.Array],
    arrays: Mapping[str, chex.ArrayTree],
) -> optax.OptState:
    leaves = {name: _like(name, leaf, arrays[name]) for name, leaf in entries.items()}
    steps = np.asarray(leaves["count"], np.int64) - np.asarray(entries["count"])

    def counts(node: object) -> bool:
        return _is_adam(node) or type(node).__name__ in _SCHEDULE_COUNTERS

    def replace(node: Any) -> Any:
        if _is_adam(node):
            moments = {field: moment(field, getattr(node, field)) for field in node._fields[1:]}
            # A count of its own for each state: an array that stands twice cannot be donated.
            return node._replace(count=_like("count", node.count, arrays["count"]), **moments)
        if not counts(node):
            return node
        counter = _SCHEDULE_COUNTERS[type(node).__name__]
        fields = node._asdict()
        count = fields.pop(counter)
        advanced = np.clip(np.asarray(count) + steps, 0, np.iinfo(count.dtype).max)
        inner = jax.tree.map(replace, fields, is_leaf=counts)
        return node._replace(**{counter: _like(counter, count, advanced)}, **inner)

    def moment(field: str, tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: leaves[_name(field, path)], tree)

    return jax.tree.map(replace, state, is_leaf=counts)
