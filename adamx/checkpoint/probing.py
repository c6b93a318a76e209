"""Check that a transformation makes the steps that a configuration describes.

Optax has one class of state for Adam, Adamax, RAdam, LAMB, Yogi and a part of Muon. Only the next
step shows which of them made a state.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.dtypes import is_of
from adamx.base.errors import AdamxError
from adamx.base.trees import flatten_with_path, path_name
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.trees import name_moment
from adamx.config.adam_config import AdamConfig
from adamx.fused.optimizer import FusedOptimizer
from adamx.state.arrays import from_numpy, to_numpy
from adamx.state.quantize import dequantize_moments

__all__ = ["Made", "check_made"]

Made = optax.GradientTransformation | FusedOptimizer
"""What may have made a state."""

_TOLERANCE = 1e-3  # of the largest update of an array
_SMALLEST = 1e-12
_MOST_CALLS = 1_000  # of `update`, where gradients are accumulated; as a warning says


def check_made(
    transformation: Made | None, params: optax.Params, state: optax.OptState, config: AdamConfig
) -> None:
    """Raise unless the next step is that of the configuration, on one gradient.

    Args:
      transformation: what made the state; None to warn the caller of the public function that
        this cannot be checked.
      params: the parameters, of which some may have no moments.
      state: of `transformation`; not changed.
      config: the hyperparameters that the checkpoint is to have.

    Raises:
      CheckpointError: the steps differ, by more than rounding explains.
    """
    if transformation is None:
        warnings.warn(
            "state: Optax keeps the states of Adam, Adamax, RAdam, LAMB and Yogi in one class, so "
            "adamx cannot distinguish them: to have the state checked, pass the transformation= "
            "that made it",
            stacklevel=3,
        )
        return
    arrays = to_numpy(state)
    wide = jax.tree.map(_widen, params)
    leaves = {path: leaf for path, leaf in _list_leaves(wide).items() if _is_inexact(leaf)}
    moved = {path: x for path, x in leaves.items() if name_moment("mu", path) in arrays}
    own = config.transformation()
    try:
        restored = from_numpy(own.init(moved), arrays)
    except AdamxError:  # of another kind: the check of the checkpoint says why
        return
    tree, made = _restore(transformation, wide, moved, arrays)
    is_seen = False
    # Zeros too: where moments are small, gradients of about 1 would hide epsilon.
    for make in (_make_wave, jnp.zeros_like):
        theirs = _step(transformation, tree, made, make)
        own_gradients: Any = {path: make(leaf) for path, leaf in moved.items()}
        ours: Any = own.update(own_gradients, restored, moved)[0]
        for path in (path for path in theirs if path in leaves):
            meant = np.asarray(ours[path]) if path in moved else np.zeros(leaves[path].shape)
            is_seen |= bool(np.any(meant))
            _compare(path, np.asarray(theirs[path]), meant, leaves[path], transformation)
    if not is_seen:
        warnings.warn(
            "transformation: its next step is 0, or more than 1,000 gradients away, so it was not "
            "compared with that of config",
            stacklevel=3,
        )


def _restore(
    transformation: Made, params: Any, moved: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[Any, Any]:
    """Parameters, as they are or by path, and the state that the transformation has for them.

    Moments in 8 bits are in float32 there, since rounding them would be most of the difference.
    """
    for tree in (params, moved):  # the latter for other boxes than those of the parameters
        try:
            return tree, from_numpy(dequantize_moments(transformation.init(tree)), arrays)
        except Exception as error:  # Optax raises many kinds
            failure = error
    raise CheckpointError(
        where="transformation",
        expected="one whose init makes such a state for these parameters",
        found=f"{type(failure).__name__} when it was initialised",
        remedy="pass the parameters that it was made for, or no transformation",
        argument="transformation",
    ) from failure


def _step(
    transformation: Made, params: Any, state: Any, make: Callable[[Any], Any]
) -> dict[str, Any]:
    """What the next step adds to the parameters, by path; on gradients that `make` makes."""
    gradients = jax.tree.map(lambda p: make(p) if _is_inexact(p) else p, params)
    if isinstance(transformation, FusedOptimizer):
        after, _ = transformation.step(gradients, params, state)
        return _list_leaves(jax.tree.map(lambda a, b: a - b, after, params))
    updates, state = transformation.update(gradients, state, params)
    if _waits(state):
        update = jax.jit(transformation.update)
        for _ in range(_MOST_CALLS):
            updates, state = update(gradients, state, params)
            if not _waits(state):
                break
        else:
            return {}
    return _list_leaves(updates)


def _waits(state: optax.OptState) -> bool:
    """Whether gradients have been accumulated for a step that is still to come."""

    def is_it(node: object) -> bool:
        return isinstance(node, optax.MultiStepsState)

    nodes = jax.tree.leaves(state, is_leaf=is_it)
    return any(isinstance(n, optax.MultiStepsState) and np.any(n.mini_step) for n in nodes)


def _compare(path: str, made: np.ndarray, meant: np.ndarray, p: Any, by: Made) -> None:
    largest = float(np.max(np.abs(meant), initial=0.0))
    allowed = _TOLERANCE * largest + _SMALLEST
    if isinstance(by, FusedOptimizer):  # it returns parameters, which are rounded
        allowed += 2 * float(jnp.finfo(p.dtype).eps) * float(jnp.max(jnp.abs(p), initial=0.0))
    difference = float(np.max(np.abs(made - meant), initial=0.0))
    if difference > allowed:
        raise CheckpointError(
            f"the next step of {path} differs by up to {difference:.3g} from that of config, which "
            f"is up to {largest:.3g}",
            where="transformation",
            remedy="Pass the hyperparameters of the run; with a schedule, those of this step. Only "
            "Adam can be saved",
            argument="config",
        )


def _is_inexact(leaf: Any) -> bool:
    return is_of(leaf, np.inexact)


def _widen(leaf: Any) -> Any:
    """In float32 at least, so that rounding hides nothing."""
    if not _is_inexact(leaf):
        return leaf
    dtype = jnp.result_type(leaf)
    return jnp.asarray(leaf, jnp.float32 if dtype.itemsize < 4 else dtype)


def _make_wave(p: jax.Array) -> jax.Array:
    """A gradient of no structure, with entries of both signs around 1."""
    wave = np.cos(1.0 + np.arange(p.size, dtype=np.float64)).reshape(p.shape)
    return jnp.asarray(wave + np.sign(wave), p.dtype)


def _list_leaves(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in flatten_with_path(tree)[0]}
