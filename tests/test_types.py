"""What type checkers and `help` see: pyright checks this file, and its functions are run, too."""

import inspect
import typing
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax
import pytest

import adamx
import adamx.checkpoint
import adamx.keras

Params = dict[str, jax.Array]


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_keeps_the_type_of_the_parameters(packed: bool):
    params: Params = {"w": jnp.ones(2)}
    grads: Params = {"w": jnp.ones(2)}
    optimizer = adamx.fused_adam(None, packed=packed)
    state = optimizer.init(params)
    for step in (optimizer.step, optimizer.jit()):
        params, state = step(grads, params, state)
        assert_type(params, Params)
        assert_type(state, Any)
    after, state = optimizer.jit()(grads, params, state)
    assert_type(after, Params)
    assert after["w"].shape == (2,)
    optimizer.jit().lower(after, after, state).compile()
    leaf, _ = optimizer.step(after["w"], after["w"], optimizer.init(after["w"]))
    assert_type(leaf, jax.Array)


PUBLIC = [adamx.scale_by_adam, adamx.adam, adamx.adamw, adamx.fused_adam, adamx.fused_adamw]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_signatures_are_short(function):
    signature = inspect.signature(function)
    shown = {name: str(p) for name, p in signature.parameters.items()}
    assert max(map(len, shown.values())) <= 80, shown
    assert shown["b1"] == "b1: chex.Numeric = 0.9"
    if "learning_rate" in shown:
        assert shown["learning_rate"] == "learning_rate: optax.ScalarOrSchedule | None"
    hints = typing.get_type_hints(function)
    assert hints["return"] is signature.return_annotation
    assert hints["amsgrad"] is bool
    assert hints.get("weight_decay", optax.ScalarOrSchedule) == optax.ScalarOrSchedule


@pytest.mark.parametrize("module", [adamx, adamx.checkpoint, adamx.keras, adamx.native])
def test_completion_offers_public_names_alone(module):
    assert dir(module) == sorted(module.__all__)


def test_no_learning_rate():
    """The direction as it is; see the annotations."""
    assert jax.tree.leaves(adamx.adam(None).init(jnp.ones(2)))[0] == 0
