"""What each integer scalar of an Optax state counts.

Adam's count can be set to any step, and a schedule that counts the same steps has to follow it.
What a counter counts is decided by the node that holds it:

- In a state of Adam, `count` is Adam's.
- In a wrapper, or another state of Optax that counts differently, `_ROLES` has the answer: for its
  class, or for a mapping with its fields, as in `nnx.state` of an optimizer.
- Beside an `opt_state`, in an object of Flax that trains, `step` counts the calls of `update`.
- In any other node, `count` counts the calls of `update` of the transformation that the node
  belongs to. Alone, it belongs to a schedule or a random key, and follows Adam. Beside
  floating-point arrays, it counts what went into them (for the bias correction of an average, say),
  and stays as they do. In a node that holds other counters it belongs to a wrapper, which may pass
  on only some calls.
- All others are unknown, and an error if Adam's count changes.

A *gate* is a wrapper that passes only some calls of `update` on to the transformation it holds.
Counters of calls agree only if they are behind the same gates.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.tree_util import DictKey, KeyPath, all_leaves, keystr, tree_flatten_with_path

from adamx.base.adam_state import as_adam
from adamx.base.dtypes import is_of
from adamx.base.errors import InvalidValue
from adamx.base.trees import flatten_with_path, is_box, listed
from adamx.transforms.residual import ResidualState

__all__ = ["Counter", "check_together", "find_counters", "find_following"]

Kind = Literal["adam", "follows", "stays", "unknown"]

# The gates around a counter: for each the path of its node, and which calls it passes on.
_Gates = tuple[tuple[KeyPath, str], ...]

# The role of a field of a known node. Any other word names a gate: the field, or the states in it,
# count only the calls that pass it. Fields without a role hold states like any other node.
_CALLS = "calls"  # counts every call
_OWN = "own"  # neither follows Adam nor holds a counter that does

_INJECTED = {"count": _CALLS, "hyperparams": _OWN}

# Optax may remove classes of `contrib`. () replaces a missing class: nothing is an instance of it.
_ROLES: tuple[tuple[Any, Mapping[str, str]], ...] = (
    # Gates
    (
        optax.MultiStepsState,
        {
            "mini_step": _OWN,
            "acc_grads": _OWN,
            "skip_state": _OWN,
            "gradient_step": "emitted",
            "inner_opt_state": "emitted",
        },
    ),
    (
        optax.ApplyIfFiniteState,
        {"notfinite_count": _OWN, "total_notfinite": _OWN, "inner_state": "finite"},
    ),
    (optax.ConditionallyTransformState, {"step": _CALLS, "inner_state": "chosen"}),
    (optax.ConditionallyMaskState, {"step": _CALLS, "inner_state": "chosen"}),
    (
        getattr(optax.contrib, "SAMState", ()),
        {
            "steps_since_sync": _OWN,
            "cache": _OWN,
            "opt_state": "synchronizing",
            "adv_state": "adversarial",
        },
    ),
    # Wrappers that pass every call on
    (optax.InjectStatefulHyperparamsState, _INJECTED),
    (getattr(optax, "InjectHyperparamsState", ()), _INJECTED),  # deprecated since 0.1.9
    (optax.LookaheadState, {"steps_since_sync": _OWN}),
    (optax.MonitorState, {"measurements": _OWN}),
    (getattr(optax.contrib, "ScheduleFreeState", ()), {"step_count": _CALLS}),
    # What belongs to the parameters, as do its integers
    (ResidualState, {"count": _CALLS, "residual": _OWN}),
    # What was measured last, and averages whose counts have other names
    (optax.SnapshotState, {"measurement": _OWN}),
    (optax.ScaleByBacktrackingLinesearchState, {"info": _OWN}),
    (optax.ScaleByZoomLinesearchState, {"info": _OWN}),
    (
        getattr(optax.contrib, "ReduceLROnPlateauState", ()),
        {"plateau_count": _OWN, "cooldown_count": _OWN, "count": _OWN},
    ),
    (optax.ScaleByAdanState, {"t": _OWN}),
    (getattr(optax.contrib, "ScaleBySimplifiedAdEMAMixState", ()), {"t": _OWN}),
    (getattr(optax.contrib, "ScaleByAdemamixState", ()), {"count": _OWN, "count_m2": _OWN}),
)


# Fields that have no leaves in most states, so that `nnx.state` leaves them out.
_OFTEN_EMPTY = {"cache", "hyperparams_states", "measure_states", "narrow", "skip_state"}


class Counter(NamedTuple):
    """An integer scalar of a state.

    Attributes:
      path: of the leaf in the state, as of `flatten_with_path`.
      name: the class that holds it, and the path from there: `ScaleByScheduleState.count`.
      kind: Adam's count, one that follows it, one that stays, or unknown.
      gates: those that it is behind.
    """

    path: KeyPath
    name: str
    kind: Kind
    gates: _Gates


def find_counters(state: optax.OptState, shape: tuple[int, ...] = ()) -> list[Counter]:
    """Every integer scalar of `state`.

    Args:
      state: of any Optax transformation.
      shape: of Adam's count, which in an ensemble made by `jax.vmap` is an array.
    """
    return _visit(state, _Position((), type(state).__name__, (), ()), shape, "unknown")


def find_following(state: optax.OptState, shape: tuple[int, ...] = ()) -> set[KeyPath]:
    """The paths of the counters in `state` that follow Adam's.

    Raises:
      InvalidValue: an integer scalar is unknown, or one is behind other gates than Adam's count, so
        that the number of its calls is not known.
    """
    counters = find_counters(state, shape)
    if unknown := [counter for counter in counters if counter.kind == "unknown"]:
        raise InvalidValue(
            where=_listed(unknown),
            expected="integers of which adamx knows whether they count Adam's steps",
            found="an integer scalar that may have to change with Adam's count",
            remedy="Pass only the part of the state that holds Adam, without this integer, and set "
            "the integer yourself. The state is unchanged",
        )
    gates = {counter.gates for counter in counters if counter.kind == "adam"}
    following = [counter for counter in counters if counter.kind == "follows"]
    if apart := [counter for counter in following if counter.gates not in gates]:
        raise InvalidValue(
            where=_listed(apart),
            expected="a counter of the same steps as Adam's count",
            found="one that a wrapper separates from it; the wrapper skips calls, and their number "
            "is unknown here",
            remedy="Pass only the part of the state on Adam's side of the wrapper. The state is "
            "unchanged",
        )
    return {counter.path for counter in following}


def check_together(state: optax.OptState) -> None:
    """Raise where a checkpoint of Adam's count and moments would lose steps or gradients.

    Raises:
      InvalidValue: a counter that follows Adam's differs from it; or gradients wait in
        `optax.MultiSteps` for an update.
    """
    leaves = dict(flatten_with_path(state)[0])
    counters = find_counters(state)
    adams = {c.gates: c for c in counters if c.kind == "adam"}
    for counter in counters:
        adam = adams.get(counter.gates)
        if counter.kind == "follows" and adam is not None:
            steps, found = (np.asarray(leaves[c.path]) for c in (adam, counter))
            if steps.shape == found.shape == () and steps != found:
                raise InvalidValue(
                    where=_listed([counter]),
                    expected=f"{steps} steps, as in Adam's count",
                    found=found,
                    remedy="A checkpoint stores one count: save the whole state with your own "
                    "program instead",
                )
        if counter.name.endswith("MultiStepsState.mini_step") and np.any(leaves[counter.path]):
            raise InvalidValue(
                where=_listed([counter]),
                expected="0, with no accumulated gradients waiting for an update",
                found=np.asarray(leaves[counter.path]),
                remedy="Save after an update",
            )


def _listed(counters: Iterable[Counter]) -> str:
    return listed(f"state{keystr(counter.path)}: {counter.name}" for counter in counters)


class _Position(NamedTuple):
    """Where a node is: its path, the innermost class there with named fields, and the gates."""

    path: KeyPath
    owner: str
    of_owner: KeyPath
    gates: _Gates

    def enter(self, key: KeyPath, child: Any, gate: str | None = None) -> "_Position":
        gates = (*self.gates, (self.path, gate)) if gate else self.gates
        path = (*self.path, *key)
        if type(child) in (tuple, list, dict) or _is_boxed(child):
            return self._replace(path=path, gates=gates)
        return _Position(path, type(child).__name__, path, gates)

    def counter(self, rest: KeyPath, kind: Kind) -> Counter:
        path = (*self.path, *rest)
        return Counter(path, self.owner + keystr(path[len(self.of_owner) :]), kind, self.gates)


def _visit(node: Any, at: _Position, shape: tuple[int, ...], kind: Kind) -> list[Counter]:
    """The counters in a node. `kind` is theirs if the node is a counter, or if it is "stays"."""
    scalars = _integer_scalars(node, shape)
    if not scalars:
        return []
    if kind == "stays":
        return [at.counter(rest, kind) for rest in scalars]
    if _is_boxed(node):
        # One count for a whole ensemble cannot follow a count for each member.
        fits = np.shape(jax.tree.leaves(node)[0]) == shape
        return [at.counter(scalars[0], kind if fits else "unknown")]
    if as_adam(node) is not None:
        return [at.counter(scalars[0], "adam")]
    children = tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    named = [(keystr(key, simple=True), key, child) for key, child in children]
    roles = _find_roles(node, [key[0] for key, _ in children])
    if roles is None:
        return _visit_by_protocol(named, at, shape)
    found: list[Counter] = []
    for name, key, child in named:
        role = roles.get(name)
        gate = None if role in (_CALLS, _OWN) else role
        kind = "unknown" if role is None else "stays" if role == _OWN else "follows"
        found += _visit(child, at.enter(key, child, gate), shape, kind)
    return found


def _find_roles(node: Any, keys: Sequence[Any]) -> Mapping[str, str] | None:
    """The roles of the fields of `node`, if it is known by its class or by its fields."""
    for known, roles in _ROLES:
        if isinstance(node, known):
            return roles
    names = {keystr((key,), simple=True) for key in keys}
    if {"step", "opt_state"} <= names:  # Flax's Optimizer and TrainState: steps of training
        return {"step": _CALLS}
    if all(isinstance(key, DictKey) for key in keys):
        for known, roles in _ROLES:
            fields = set(getattr(known, "_fields", ()))
            if names <= fields <= names | _OFTEN_EMPTY:
                return roles
    return None


def _visit_by_protocol(
    children: list[tuple[str, KeyPath, Any]], at: _Position, shape: tuple[int, ...]
) -> list[Counter]:
    """The counters in a node of a class that is not in `_ROLES`."""
    found: list[Counter] = []
    counts: list[tuple[KeyPath, Any]] = []
    has_arrays = is_wrapper = False
    for name, key, child in children:
        if name == "count" and _is_boxed(child):
            counts.append((key, child))
            continue
        within = _visit(child, at.enter(key, child), shape, "unknown")
        if any(counter.kind in ("adam", "follows") for counter in within):
            is_wrapper = True
        elif any(is_of(leaf, np.inexact) for leaf in jax.tree.leaves(child)):
            has_arrays = True
        found += within
    kind = "stays" if has_arrays else "unknown" if is_wrapper else "follows"
    for key, child in counts:
        found += _visit(child, at.enter(key, child), shape, kind)
    return found


def _is_boxed(node: Any) -> bool:
    """Whether it is a leaf, or one in a box of Flax."""
    return all_leaves([node]) or (is_box(node) and len(jax.tree.leaves(node)) == 1)


def _integer_scalars(tree: Any, shape: tuple[int, ...]) -> list[KeyPath]:
    """The paths, as of `flatten_with_path`, of the leaves that may be counters."""
    return [
        path
        for path, leaf in flatten_with_path(tree)[0]
        if np.shape(leaf) in ((), shape) and is_of(leaf, np.integer)
    ]
