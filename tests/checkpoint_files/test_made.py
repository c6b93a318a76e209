"""Whether what made a state is the Adam of the configuration."""

import jax
import jax.numpy as jnp
import optax
import pytest

import adamx
from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError

PROMOTES = True  # Optax's own

PARAMS = {"a": jnp.ones((3, 4)), "b": jnp.linspace(0.0, 1.0, 5)}
RATE = AdamConfig(learning_rate=1e-3)
SAME_CLASS = {
    "adamax": optax.adamax(1e-3),
    "radam": optax.radam(1e-3),
    "lamb": optax.lamb(1e-3),
    "yogi": optax.yogi(1e-3),
    "muon": optax.contrib.muon(1e-3),
    "adam at another rate": optax.adam(2e-3),
    "adamw": optax.adamw(1e-3, weight_decay=0.1),
}
MADE_BY_ADAM = {
    "optax": (optax.adam(1e-3), RATE),
    "adamw": (optax.adamw(1e-3), AdamConfig(weight_decay=1e-4)),
    "nadam": (optax.nadam(1e-3), AdamConfig(nesterov=True)),
    "amsgrad": (optax.amsgrad(1e-3), AdamConfig(amsgrad=True)),
    "keras": (adamx.adam(1e-3, convention="keras"), AdamConfig(convention="keras")),
    "fused": (adamx.fused_adam(1e-3), RATE),
    "a part": (
        optax.partition(
            {"moves": optax.adam(1e-3), "stays": optax.set_to_zero()}, {"a": "moves", "b": "stays"}
        ),
        RATE,
    ),
}


def run(tx, steps=20):
    state = tx.init(PARAMS)
    for count in range(steps):
        gradients = jax.tree.map(lambda x, count=count: jnp.cos(x + count), PARAMS)
        if isinstance(tx, adamx.FusedOptimizer):
            _, state = tx.step(gradients, PARAMS, state)
        else:
            _, state = tx.update(gradients, state, PARAMS)
    return state


@pytest.mark.parametrize("name", MADE_BY_ADAM)
def test_what_makes_the_steps_of_the_configuration(name):
    tx, config = MADE_BY_ADAM[name]
    assert Checkpoint.from_state(PARAMS, run(tx), config, transformation=tx).count == 20


@pytest.mark.parametrize("name", SAME_CLASS)
def test_what_makes_other_steps(name):
    """Optax keeps their states in the class of Adam's."""
    tx = SAME_CLASS[name]
    with pytest.raises(CheckpointError, match=r"transformation: the next step of \w is up to"):
        Checkpoint.from_state(PARAMS, run(tx), RATE, transformation=tx)


def test_a_transformation_of_other_parameters():
    tx = optax.adam(1e-3)
    with pytest.raises(CheckpointError, match="transformation: expected one that takes these"):
        Checkpoint.from_state({"c": PARAMS["a"]}, run(tx), RATE, transformation=tx)


def test_without_it_nothing_tells():
    with pytest.warns(UserWarning, match="nothing tells one from another: give transf") as caught:
        Checkpoint.from_state(PARAMS, run(optax.adam(1e-3)), RATE)
    assert caught[0].filename == __file__
