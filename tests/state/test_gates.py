"""Counters that Adam does not share its steps with, or that are not known."""

import copy

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.errors import InvalidValue
from adamx.checkpoint import Checkpoint
from tests.state.counted import (
    PARAMS,
    SCHEDULE,
    STEPS,
    UNKNOWN,
    Noted,
    Wrapped,
    adam,
    is_odd,
    multi_steps,
    names,
    trained,
)

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")

PROMOTES = True  # Optax's wrappers do


GATED = {
    "MultiSteps": multi_steps(adam()),
    "apply_if_finite": optax.apply_if_finite(adam(), 3),
    "conditionally_mask": optax.conditionally_mask(adam(), is_odd),
    "conditionally_transform": optax.conditionally_transform(adam(), is_odd),
    "sam": optax.contrib.sam(adam(), optax.sgd(1e-3)),
}


def check_error(state, message):
    """Nothing is set to another step, nor changed; to the same step everything can be set."""
    before = copy.deepcopy(state)
    count, *moments = adamx.get_weights(state)
    with pytest.raises(InvalidValue, match=message) as error:
        adamx.set_weights(state, [count + 1, *moments])
    assert "The state is unchanged" in str(error.value)
    chex.assert_trees_all_equal(state, before)
    chex.assert_trees_all_equal(adamx.set_weights(state, [count, *moments]), before)


@pytest.mark.parametrize("gate", GATED)
def test_a_counter_outside_of_the_gate_around_adam(gate):
    """How many of its calls passed the gate is not known."""
    state = optax.chain(GATED[gate], optax.scale_by_schedule(SCHEDULE)).init(PARAMS)
    name = r"state\[1\].count: ScaleByScheduleState.count"
    check_error(
        state,
        f"{name}: expected a counter of the same steps as Adam's count, found one that a wrapper",
    )


@pytest.mark.parametrize("gate", GATED)
def test_a_counter_behind_a_gate_beside_adam(gate):
    names = {"MultiSteps": "inner_opt_state", "sam": "opt_state"}
    gated = jax.tree.map(lambda x: x, GATED[gate].init(PARAMS))
    name = names.get(gate, "inner_state")
    inner = optax.ScaleByScheduleState(jnp.int32(0))
    state = (adam(1e-3).init(PARAMS), gated._replace(**{name: inner}))
    check_error(
        state, "expected a counter of the same steps as Adam's count, found one that a wrapper"
    )


def test_both_sides_of_sam_are_apart():
    """The adversarial optimizer takes other steps than the other one."""
    state = optax.contrib.sam(adam(), optax.sgd(SCHEDULE)).init(PARAMS)
    check_error(state, r"state.adv_state\[1\].count: ScaleByScheduleState.count: expected")


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_integer_is_an_error_that_names_it(name):
    tx, message = UNKNOWN[name]
    check_error(tx.init(PARAMS), message)


def test_a_wrapper_that_keeps_an_average():
    """Its count is that of what went into the average."""
    state = (Wrapped(jnp.int32(0), {"average": jnp.ones(3), "inner": adam().init(PARAMS)}), ())
    assert names(state, "unknown") == ["Wrapped.count"]
    state = (optax.contrib.mechanize(adam()).init(PARAMS), ())
    assert names(state, "stays") == ["MechanicState.count"]


def test_restoring_a_checkpoint_meets_the_same_error():
    config = adamx.AdamConfig()
    state = trained(config.transformation(), STEPS)
    checkpoint = Checkpoint.from_state(PARAMS, state, config)
    with pytest.raises(ValueError, match=r"state\[0\].steps: Named.steps"):
        checkpoint.restore(PARAMS, transformation=UNKNOWN["named_otherwise"][0])


def test_an_ensemble_and_a_counter_for_all_of_it():
    """One count cannot go on by as many steps as each of several."""
    tx = optax.chain(adam(), optax.ema(0.9))
    state = jax.vmap(tx.init)(jnp.ones((3, 2)))
    counts = np.array([1, 2, 3], np.int32)
    moved = adamx.set_weights(state, [counts, *adamx.get_weights(state)[1:]])
    assert moved[0][1].count.tolist() == [1, 2, 3]
    assert moved[1].count.tolist() == [0, 0, 0]
    shared = (state, optax.scale_by_schedule(SCHEDULE).init(PARAMS))
    check_error(shared, r"state\[1\].count: ScaleByScheduleState.count: expected integers")


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int16"])
def test_counters_stop_at_the_largest_number_and_at_zero(dtype):
    """As Optax's `safe_increment` does: a schedule that wrapped would begin anew, or before it."""
    last = np.iinfo(dtype).max
    adam_state = adam(1e-3).init(PARAMS)
    weights = adamx.get_weights(adam_state)[1:]

    def move(adam_count, count, to):
        tree = (optax.tree.set(adam_state, count=jnp.int32(adam_count)), Noted(count=count))
        return adamx.set_weights(tree, [to, *weights])[1].count

    for count in (jnp.asarray(last - 2, dtype), np.asarray(last - 2, dtype)):
        assert [int(move(0, count, to)) for to in (1, 2, 3, 2**31 - 1)] == [last - 1, *[last] * 3]
    for count in (jnp.asarray(2, dtype), np.asarray(2, dtype)):
        assert [int(move(9, count, to)) for to in (8, 7, 6, 0)] == [1, 0, 0, 0]
        assert move(9, count, 0).dtype == dtype
