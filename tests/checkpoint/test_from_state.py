"""Checkpoints that are made of a state, and what makes them fit together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, torch_linear
from tests.checkpoint.matching_cases import NAMED, SHAPES, checkpoint_of, tree_of

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")


def test_every_count_is_set():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    config = AdamConfig(learning_rate=schedule, convention="torch")
    checkpoint = checkpoint_of(SHAPES, config=config, params={})
    transformation, state = checkpoint.restore(tree_of(NAMED))
    counts = optax.tree_utils.tree_get_all_with_path(state, "count")
    assert [int(count) for _, count in counts] == [5, 5]
    updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, tree_of(NAMED)), state)
    # m / sqrt(v) of 0.9 / sqrt(0.999) and the sixth step's corrections, at half the rate
    step = 0.5 * (0.9 / (1 - 0.9**6)) / np.sqrt(0.999 / (1 - 0.999**6))
    np.testing.assert_allclose(updates["in"]["weight"], -step, rtol=1e-6)


def test_from_state_and_back():
    tree = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "b": None}
    config = AdamConfig(amsgrad=True, learning_rate=0.5)
    transformation = config.transformation()
    state = transformation.init(tree)
    gradients = jax.tree.map(lambda x: x + 2, tree)
    _, state = transformation.update(gradients, state)
    checkpoint = Checkpoint.from_state(tree, state, config)
    assert checkpoint.names == ("a/bias", "a/kernel")
    assert (checkpoint.framework, checkpoint.count) == ("jax", 1)
    _, again = checkpoint.restore(tree)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_from_state_in_another_order():
    tree = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    config = AdamConfig()
    state = config.transformation().init(tree)
    order = ["a/kernel", "a/bias"]
    checkpoint = Checkpoint.from_state(tree, state, config, order=order, layout=torch_linear)
    assert checkpoint.names == tuple(order)
    assert checkpoint.mu["a/kernel"].shape == checkpoint.params["a/kernel"].shape == (3, 2)
    with pytest.raises(CheckpointError, match=r"order: a/x: not a leaf of params"):
        Checkpoint.from_state(tree, state, config, order=["a/kernel", "a/x"])


def test_from_state_must_fit_together():
    tree = {"a": jnp.ones(2)}
    state = AdamConfig().transformation().init(tree)
    with pytest.raises(CheckpointError, match="nu_max/a: missing for mu/a"):
        Checkpoint.from_state(tree, state, AdamConfig(amsgrad=True))
    with pytest.raises(CheckpointError, match="a: expected moments of shape"):
        Checkpoint.from_state({"a": jnp.ones(3)}, state, AdamConfig())
    with pytest.raises(CheckpointError, match="a: moments without a variable"):
        Checkpoint.from_state({"b": jnp.ones(2)}, state, AdamConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("in.weight",) * 4}, "in.weight: expected every name once"),
        ({"count": -1}, "count: expected at least 0, found -1"),
        ({"nu": {}}, "nu/in.weight: missing for mu/in.weight"),
        ({"nu_max": {"in.bias": np.zeros(4)}}, "nu_max/in.bias: not expected with amsgrad=False"),
        ({"mu": {}}, "nu/in.weight: there is no mu/in.weight"),
    ],
)
def test_a_checkpoint_fits_together(fields, message):
    with pytest.raises(CheckpointError, match=message):
        dataclasses.replace(checkpoint_of(SHAPES), **fields)


def test_it_cannot_be_changed():
    checkpoint = checkpoint_of(SHAPES)
    with pytest.raises(TypeError):
        checkpoint.mu["in.bias"] = np.zeros(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.count = 3
