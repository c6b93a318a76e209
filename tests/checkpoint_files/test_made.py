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


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MADE_BY_ADAM)
def test_what_makes_the_steps_of_the_configuration(name):
    tx, config = MADE_BY_ADAM[name]
    assert Checkpoint.from_state(PARAMS, run(tx), config, transformation=tx).count == 20


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", SAME_CLASS)
def test_what_makes_other_steps(name):
    """Optax keeps their states in the class of Adam's."""
    tx = SAME_CLASS[name]
    with pytest.raises(
        CheckpointError, match=r"transformation: the next step of \w differs by up to"
    ):
        Checkpoint.from_state(PARAMS, run(tx), RATE, transformation=tx)


def test_a_transformation_of_other_parameters():
    tx = optax.partition({"all": optax.adam(1e-3)}, {"c": "all"})
    with pytest.raises(
        CheckpointError, match="transformation: expected one whose init makes such a state"
    ):
        Checkpoint.from_state(PARAMS, run(optax.adam(1e-3)), RATE, transformation=tx)


def as_bfloat16(scale):
    return jax.tree.map(lambda x: jnp.asarray(scale * x, jnp.bfloat16), PARAMS)


# Muon orthogonalises otherwise in bfloat16; at 0, decay and trust ratios make no difference.
NARROW = [
    (name, scale)
    for name in [*SAME_CLASS, "adam"]
    for scale in (0.0, 1.0, 100.0)
    if name != "muon" and (scale or name not in ("lamb", "adamw"))
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "scale"), NARROW)
def test_narrow_and_large_parameters_hide_nothing(name, scale):
    """The step is compared in float32, however little of it reaches the parameters."""
    params, tx = as_bfloat16(scale), SAME_CLASS.get(name, optax.adam(1e-3))
    state = tx.init(params)
    for count in range(20):
        g = jax.tree.map(lambda x, count=count: jnp.cos(x + count), as_bfloat16(1.0))
        _, state = tx.update(g, state, params)
    if name == "adam":
        assert Checkpoint.from_state(params, state, RATE, transformation=tx).count == 20
        return
    with pytest.raises(CheckpointError, match="transformation: the next step of"):
        Checkpoint.from_state(params, state, RATE, transformation=tx)


def test_epsilon_counts_where_gradients_are_small():
    tx = optax.adam(1e-3, eps=1e-5)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(jax.tree.map(lambda x: jnp.full_like(x, 1e-6), PARAMS), state, PARAMS)
    right = AdamConfig(learning_rate=1e-3, eps=1e-5)
    assert Checkpoint.from_state(PARAMS, state, right, transformation=tx).count == 3
    with pytest.raises(CheckpointError, match="transformation: the next step of"):
        Checkpoint.from_state(PARAMS, state, RATE, transformation=tx)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("calls", [4, 8])
def test_accumulated_gradients(calls):
    tx = optax.MultiSteps(optax.adam(1e-3), 4)
    state = tx.init(PARAMS)
    for _ in range(calls):
        _, state = tx.update(PARAMS, state, PARAMS)
    checkpoint = Checkpoint.from_state(PARAMS, state, RATE, transformation=tx)
    assert checkpoint.count == calls // 4
    with pytest.raises(CheckpointError, match="transformation: the next step of"):
        Checkpoint.from_state(
            PARAMS, state, AdamConfig(), transformation=optax.MultiSteps(optax.adam(3e-3), 4)
        )
    _, waiting = tx.update(PARAMS, state, PARAMS)
    with pytest.raises(
        ValueError, match="mini_step: expected 0, with no accumulated gradients waiting"
    ):
        Checkpoint.from_state(PARAMS, waiting, RATE, transformation=tx)


def test_accumulation_that_makes_no_step():
    """Of moments of zero and gradients of zero, or of more gradients than are tried."""
    tx = optax.MultiSteps(optax.adam(1e-3), 4)
    assert Checkpoint.from_state(PARAMS, tx.init(PARAMS), RATE, transformation=tx).count == 0
    slow = optax.MultiSteps(optax.adam(1e-3), 5_000)
    with pytest.warns(UserWarning, match="more than 1,000 gradients away"):
        Checkpoint.from_state(PARAMS, slow.init(PARAMS), RATE, transformation=slow)


def test_a_schedule_that_has_counted_other_steps():
    schedule = optax.linear_schedule(1e-3, 0.0, 100)
    tx = optax.adam(schedule)
    state = run(tx)
    config = AdamConfig(learning_rate=schedule)
    assert Checkpoint.from_state(PARAMS, state, config, transformation=tx).count == 20
    ahead = (state[0], state[1]._replace(count=jnp.int32(50)))
    with pytest.raises(ValueError, match=r"count: expected 20 steps, as in Adam's count, found 50"):
        Checkpoint.from_state(PARAMS, ahead, config, transformation=tx)


def test_keys_and_integers_beside_parameters():
    params = PARAMS | {"key": jax.random.key(0), "seen": jnp.int32(3)}
    trained = {name: name in PARAMS for name in params}
    tx = optax.masked(optax.adam(1e-3), trained)
    state = tx.init(params)
    checkpoint = Checkpoint.from_state(params, state, RATE, transformation=tx)
    assert checkpoint.names == ("a", "b")


def test_a_step_of_0_cannot_be_compared():
    tx = optax.adam(optax.linear_schedule(0.0, 1e-3, 10))
    config = AdamConfig(learning_rate=0.0)
    with pytest.warns(UserWarning, match="its next step is 0, or more than 1,000") as caught:
        Checkpoint.from_state(PARAMS, tx.init(PARAMS), config, transformation=tx)
    assert caught[0].filename == __file__


def test_without_it_nothing_tells():
    with pytest.warns(
        UserWarning, match="adamx cannot distinguish them: .*pass the transf"
    ) as caught:
        Checkpoint.from_state(PARAMS, run(optax.adam(1e-3)), RATE)
    assert caught[0].filename == __file__
