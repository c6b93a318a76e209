"""Whether a transformation makes the steps that a configuration means.

Optax keeps one class of state for Adam, Adamax, RAdam, LAMB, Yogi and a part of Muon. What made a
state is seen from the step that it makes next.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.errors import AdamxError
from adamx.base.trees import flatten_with_path, path_name
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.trees import name_moment
from adamx.config.adam_config import AdamConfig
from adamx.fused.optimizer import FusedOptimizer
from adamx.state.arrays import from_numpy, to_numpy

__all__ = ["Made", "check_made"]

Made = optax.GradientTransformation | FusedOptimizer
"""What may have made a state."""

_TOLERANCE = 1e-3  # of the largest update of an array
_SMALLEST = 1e-12


def check_made(
    transformation: Made | None, params: optax.Params, state: optax.OptState, config: AdamConfig
) -> None:
    """Raise unless the next step is that of the configuration, on one gradient.

    Args:
      transformation: what made the state; None to warn the caller of the public function that
        nothing tells.
      params: the parameters, of which some may have no moments.
      state: of `transformation`; not changed.
      config: the hyperparameters that the checkpoint is to have.

    Raises:
      CheckpointError: the steps differ, by more than rounding explains.
    """
    if transformation is None:
        warnings.warn(
            "state: Optax keeps the states of Adam, Adamax, RAdam, LAMB and Yogi in one class, so "
            "that nothing tells one from another: give transformation=, which made it, to have it "
            "checked",
            stacklevel=3,
        )
        return
    arrays = to_numpy(state)
    gradients = _list_leaves(_make_gradients(params))
    leaves = _list_leaves(params)
    try:
        theirs = _list_leaves(_step(transformation, params, state))
    except Exception:  # such as for the boxes of Flax's optimizers; Optax raises many kinds
        theirs = None
    try:
        if theirs is None:
            plain = from_numpy(transformation.init(leaves), arrays)
            theirs = _list_leaves(_step(transformation, leaves, plain))
    except Exception as error:
        raise CheckpointError(
            where="transformation",
            expected="one that takes these parameters with this state",
            found=f"{type(error).__name__} in a step",
            remedy="give the parameters that it was initialised with, or no transformation",
            argument="transformation",
        ) from error
    moved = {path: x for path, x in leaves.items() if name_moment("mu", path) in arrays}
    own = config.transformation()
    try:
        restored = from_numpy(own.init(moved), arrays)
    except AdamxError:  # of another kind: the check of the checkpoint says why
        return
    own_gradients: Any = {path: gradients[path] for path in moved}
    ours: Any = own.update(own_gradients, restored, moved)[0]
    for path, update in theirs.items():
        meant = np.asarray(ours[path]) if path in moved else np.zeros(np.shape(update))
        largest = float(np.max(np.abs(meant), initial=0.0))
        p = leaves[path]
        rounding = float(jnp.finfo(jnp.result_type(p)).eps) * np.max(np.abs(p), initial=0.0)
        difference = float(np.max(np.abs(np.asarray(update) - meant), initial=0.0))
        if difference > _TOLERANCE * largest + 2 * rounding + _SMALLEST:
            raise CheckpointError(
                f"the next step of {path} is up to {difference:.3g} off that of config, which is "
                f"up to {largest:.3g}",
                where="transformation",
                remedy="Give the hyperparameters of the run, those of this step where there is a "
                "schedule. Another optimizer than Adam cannot be saved",
                argument="config",
            )


def _make_gradients(params: optax.Params) -> Any:
    """A gradient of no structure, with entries of both signs around 1."""

    def make(p: Any) -> jax.Array:
        wave = np.cos(1.0 + np.arange(np.size(p), dtype=np.float64)).reshape(np.shape(p))
        return jnp.asarray(wave + np.sign(wave), jnp.result_type(p))

    return jax.tree.map(make, params)


def _step(transformation: Made, params: optax.Params, state: optax.OptState) -> Any:
    gradients = _make_gradients(params)
    if isinstance(transformation, FusedOptimizer):
        moved, _ = transformation.step(gradients, params, state)
        return jax.tree.map(lambda a, b: a - b, moved, params)
    updates, _ = transformation.update(gradients, state, params)
    return updates


def _list_leaves(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in flatten_with_path(tree)[0]}
