"""Bad input to the functions that set an optimizer's weights: nothing is changed."""

import copy
import functools
import re

import chex
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx
from tests.state.holders import HOLDERS, PARAMS, SCHEDULE, trained

PROMOTES = True  # Optax's wrappers do


@functools.cache
def state_of(holder):
    """A trained state, of NumPy arrays, which could be changed."""
    return jax.device_get(trained(HOLDERS[holder]))


def replaced(index, value):
    weights = adamx.get_weights(trained(HOLDERS["schedule"]))
    return [*weights[:index], value, *weights[index + 1 :]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (replaced(8, 0)[:-1], "expected 9 arrays .*mu/dense/kernel.*, found 8"),
        ([*replaced(0, 1), 1], "expected 9 arrays .*, found 10"),
        (replaced(2, np.ones((3, 2))), r"mu/dense/kernel: expected shape \(2, 3\), found \(3, 2\)"),
        (replaced(3, np.ones(1)), r"mu/heads/0: expected shape \(2,\), found \(1,\)"),
        (replaced(0, 1.5), "count: expected whole numbers from 0 to 2147483647, found 1.5"),
        (replaced(0, -1), "count: expected whole numbers from 0 to 2147483647, found -1"),
        (replaced(0, 2**31), "count: expected whole numbers .* found 2147483648"),
        (replaced(0, np.nan), "count: expected whole numbers .* found nan"),
        (replaced(3, np.full(2, 1e39)), "mu/heads/0: expected numbers in the range of float32"),
        (
            replaced(3, np.ones(2) * 1j),
            "mu/heads/0: expected real numbers, found an array of complex128",
        ),
        (replaced(3, np.array(["a", "b"])), "mu/heads/0: .* found an array of <U1"),
        (replaced(3, np.array([None, None])), "mu/heads/0: .* found an array of object"),
        (replaced(3, np.zeros(2, "V2")), r"mu/heads/0: .* found an array of \|V2"),
        (replaced(3, [[1], [1, 2]]), "mu/heads/0: expected an array, found rows of unequal length"),
        (replaced(7, -np.ones(2)), "nu/heads/0: expected a second moment, at least 0, found -1.0"),
    ],
)
def test_bad_weights(weights, message):
    """Nothing is changed, even where it could be: in a state of NumPy arrays."""
    state = jax.device_get(trained(HOLDERS["schedule"]))
    before = copy.deepcopy(state)
    with pytest.raises(ValueError, match=message) as error:
        adamx.set_weights(state, weights)
    assert "The state was left as it was" in str(error.value)
    chex.assert_trees_all_equal(state, before)
    names = list(adamx.to_numpy(state))
    if len(weights) == len(names):
        with pytest.raises(ValueError, match=message):
            adamx.from_numpy(state, dict(zip(names, weights, strict=True)))
        chex.assert_trees_all_equal(state, before)


def test_bad_names():
    state = jax.device_get(trained(HOLDERS["schedule"]))
    before = copy.deepcopy(state)
    arrays = adamx.to_numpy(state)
    arrays["mu/dense/weight"] = arrays.pop("mu/dense/kernel")
    message = "missing: mu/dense/kernel; unknown: mu/dense/weight"
    with pytest.raises(ValueError, match=message):
        adamx.from_numpy(state, arrays)
    chex.assert_trees_all_equal(state, before)


def test_the_other_function_is_named():
    state = trained(HOLDERS["schedule"])
    with pytest.raises(TypeError, match="found a mapping; use from_numpy"):
        adamx.set_weights(state, adamx.to_numpy(state))
    with pytest.raises(TypeError, match="found list; for a list use set_weights"):
        adamx.from_numpy(state, adamx.get_weights(state))


def test_long_lists_of_names_are_cut():
    state = adamx.adam(1e-2).init([1.0] * 100)
    with pytest.raises(
        ValueError, match=r"expected 201 arrays \(count, .* and 191 more\), found 0"
    ):
        adamx.set_weights(state, [])


def test_states_without_values():
    tx = adamx.adam(1e-2)
    with pytest.raises(ValueError, match="count: expected an array, found ShapeDtypeStruct"):
        adamx.get_weights(jax.eval_shape(tx.init, PARAMS))
    state = tx.init(PARAMS)
    jax.jit(lambda s: s, donate_argnums=0)(state)
    with pytest.raises(ValueError, match="count: expected an array, found one that was deleted"):
        adamx.get_weights(state)
    with pytest.raises(
        ValueError, match=r"count: .* found one that is being traced; call this out"
    ):
        jax.jit(adamx.get_weights)(tx.init(PARAMS))


GATED = {
    "MultiSteps": optax.MultiSteps(adamx.scale_by_adam(), 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(adamx.scale_by_adam(), 3),
}


@pytest.mark.parametrize("gate", GATED)
def test_a_schedule_around_a_wrapper_that_skips_steps(gate):
    """It counts other steps than Adam does, and no one can tell how many."""
    tx = optax.chain(GATED[gate], optax.scale_by_schedule(SCHEDULE))
    state = trained(tx)
    weights = adamx.get_weights(state)
    with pytest.raises(ValueError, match=r"ScaleByScheduleState.count: expected a counter of the"):
        adamx.set_weights(tx.init(PARAMS), weights)
    chex.assert_trees_all_equal(adamx.set_weights(state, weights), state)
    inner = adamx.set_weights(tx.init(PARAMS)[0], weights)
    assert optax.tree.get(inner, "ScaleByAdamState").count == weights[0]


def test_conditionally_transform_counts_calls():
    tx = optax.conditionally_transform(adamx.adam(1e-2), lambda step: step < 3)
    weights = adamx.get_weights(trained(tx))
    assert weights[0] == 3
    message = r"ConditionallyTransformState.step: expected a counter"
    with pytest.raises(ValueError, match=message):
        adamx.set_weights(tx.init(PARAMS), weights)


FAULTS = {
    "fewer": lambda _: [],
    "more": lambda array: [array, array],
    "longer": lambda array: [np.stack([array, array])],
    "text": lambda array: [np.full(array.shape, "x")],
    "complex": lambda array: [array + 1j],
    "nothing": lambda _: [None],
}
OF_COUNT = {
    "fraction": lambda count: [count + 0.5],
    "negative": lambda count: [-1 - count],
    "nan": lambda _: [np.nan],
}


@given(data=st.data(), holder=st.sampled_from(sorted(HOLDERS)))
@settings(max_examples=100, deadline=None)
def test_malformed_weights_raise_and_change_nothing(data, holder):
    """One fault of any kind, in any array of any state."""
    state = state_of(holder)
    before = copy.deepcopy(state)
    weights = adamx.get_weights(state)
    place = data.draw(st.integers(0, len(weights) - 1))
    faults = FAULTS | OF_COUNT if place == 0 else FAULTS
    fault = data.draw(st.sampled_from(sorted(faults)))
    wrong = [*weights[:place], *faults[fault](weights[place]), *weights[place + 1 :]]
    with pytest.raises(ValueError, match="The state was left as it was"):
        adamx.set_weights(state, wrong)
    chex.assert_trees_all_equal(state, before)
    arrays = adamx.to_numpy(state)
    name = list(arrays)[place]
    renamed = {f"{k}x" if k == name else k: array for k, array in arrays.items()}
    with pytest.raises(ValueError, match=f"missing: {name}; unknown: {name}x"):
        adamx.from_numpy(state, renamed)
    chex.assert_trees_all_equal(state, before)


def test_no_adam_state():
    with pytest.raises(ValueError, match=r"holds an AdamState .*, found none in tuple"):
        adamx.get_weights(optax.sgd(1e-2).init(PARAMS))


def test_two_adam_states_of_the_same_parameters():
    state = HOLDERS["schedule"].init(PARAMS)
    message = "mu/dense/bias: expected Adam states that split one tree .* found 2 that overlap"
    with pytest.raises(ValueError, match=message):
        adamx.get_weights((state, state))


def test_two_adam_states_of_different_parameters():
    tx = adamx.adam(1e-2)
    with pytest.raises(ValueError, match=r"mu: expected Adam states .* pass them one by one"):
        adamx.to_numpy((tx.init({"a": 1.0}), tx.init({"b": 1.0})))


def test_two_adam_states_at_different_steps():
    tx = HOLDERS["partition"]
    state = trained(tx)
    state.inner_states["a"] = tx.init(PARAMS).inner_states["a"]
    with pytest.raises(ValueError, match="found 2 at the steps 0, 4"):
        adamx.get_weights(state)


def test_paths_that_collide():
    tx = adamx.adam(1e-2)
    with pytest.raises(ValueError, match=re.escape("mu/a/b: two parameters have this path")):
        adamx.to_numpy(tx.init({"a": {"b": 1.0}, "a/b": 1.0}))
