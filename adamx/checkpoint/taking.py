"""Take a checkpoint from parameters and an optimizer state."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax

from adamx.base.coded import CodedArray
from adamx.checkpoint.layouts import Layout, lay_out
from adamx.checkpoint.matching import check_paths
from adamx.checkpoint.names import spell_order
from adamx.checkpoint.trees import copy_to_host, holds, list_leaves, read_count, split_moments
from adamx.state.arrays import to_numpy
from adamx.state.counters import check_together
from adamx.state.residuals import full_params
from adamx.transforms.narrow import is_narrow
from adamx.transforms.residual import ResidualState
from adamx.transforms.rounding import StochasticRoundState

__all__ = ["read_state"]


def read_state(
    params: optax.Params,
    state: optax.OptState,
    order: Sequence[str] | None,
    layout: Layout | None,
) -> dict[str, Any]:
    """The names, the count, the weights and the moments of a run in JAX, as a checkpoint has them.

    The arguments are those of `Checkpoint.from_state`.
    """
    arrays = to_numpy(state)
    check_together(state)
    leaves = list_leaves(params)
    if holds(state, ResidualState):
        warnings.warn(
            "state: residual_params keeps bits of the weights, which are saved in full. But a "
            "checkpoint does not store it: continue with restore(params, transformation=...) and "
            "the same chain, and then adamx.split_params",
            stacklevel=3,
        )
        if any(map(is_narrow, leaves.values())):
            leaves = list_leaves(full_params(params, state))
    moments = split_moments(arrays)
    order = spell_order(order, leaves)
    paths = list(leaves) if order is None else check_paths(order, leaves)
    if holds(state, StochasticRoundState):
        warnings.warn(
            "state: stochastic_round rounds the parameters, but a checkpoint does not store it: "
            "continue with restore(params, transformation=...) and the same chain; without it, "
            "parameters are rounded to nearest",
            stacklevel=3,
        )

    def put(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = [path for path in paths if path in values]
        known += [path for path in values if path not in paths]
        return {path: lay_out(path, values[path], layout) for path in known}

    return {
        "names": tuple(path for path in paths if path in moments["mu"]),
        "count": read_count(arrays),
        "quantised": any(isinstance(array, CodedArray) for array in arrays.values()),
        "params": put(copy_to_host(leaves)),
        **{field: put(values) for field, values in moments.items()},
    }
