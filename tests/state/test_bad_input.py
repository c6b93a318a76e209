"""Bad input to the functions that set an optimizer's weights: nothing is changed."""

import copy
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx
from tests.state.holders import HOLDERS, PARAMS, SCHEDULE, trained
from tests.tensors import Tensor

PROMOTES = True  # Optax's wrappers do


@functools.cache
def state_of(holder):
    """A trained state, of NumPy arrays, which could be changed."""
    return jax.device_get(trained(HOLDERS[holder]))


def deleted(weight):
    array = jnp.asarray(weight)
    array.delete()
    return array


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
        (
            replaced(7, -np.ones(2)),
            "nu/heads/0: expected a second moment of at least 0, found -1.0",
        ),
    ],
)
def test_bad_weights(weights, message):
    """Nothing is changed, even where it could be: in a state of NumPy arrays."""
    state = jax.device_get(trained(HOLDERS["schedule"]))
    before = copy.deepcopy(state)
    with pytest.raises(ValueError, match=message) as error:
        adamx.set_weights(state, weights)
    assert "The state is unchanged" in str(error.value)
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


def test_missing_moments_may_begin_anew():
    """As of a parameter that was frozen; not where names are other ones, or a field is."""
    whole, part = trained(HOLDERS["schedule"]), trained(HOLDERS["one_part"])
    arrays = adamx.to_numpy(part)
    with pytest.raises(ValueError, match=r"If .* were frozen, .*: from_numpy\(fresh, \{\*\*to"):
        adamx.from_numpy(whole, arrays)
    fresh = HOLDERS["schedule"].init(PARAMS)
    found = adamx.to_numpy(adamx.from_numpy(fresh, {**adamx.to_numpy(fresh), **arrays}))
    chex.assert_trees_all_equal({name: found[name] for name in arrays}, arrays)
    assert not any(found[name].any() for name in found.keys() - arrays.keys())

    for tx, wrong in (
        (HOLDERS["schedule"], {name: array for name, array in arrays.items() if name != "count"}),
        (HOLDERS["schedule"], arrays | {"mu/other": np.ones(2)}),
        (HOLDERS["amsgrad"], adamx.to_numpy(whole)),
    ):
        with pytest.raises(ValueError, match=r"unknown: [\w/]+\. The state is unchanged$"):
            adamx.from_numpy(tx.init(PARAMS), wrong)


def test_the_other_function_is_named():
    state = trained(HOLDERS["schedule"])
    with pytest.raises(TypeError, match="found a mapping; use from_numpy"):
        adamx.set_weights(state, adamx.to_numpy(state))
    with pytest.raises(TypeError, match="found list; for a list use set_weights"):
        adamx.from_numpy(state, adamx.get_weights(state))


@pytest.mark.parametrize("weights", [None, 3, 2.5, "abc", b"abc", {1, 2}, object(), np.ones(())])
def test_what_is_no_list_and_no_mapping(weights):
    state = trained(HOLDERS["schedule"])
    kind = "None" if weights is None else type(weights).__name__
    message = rf"weights: expected a list of arrays, .*, found {kind}\. The state is unchanged"
    with pytest.raises(TypeError, match=message):
        adamx.set_weights(state, weights)
    message = rf"arrays: expected a mapping from names, .*, found {kind}\. The state is unchanged"
    with pytest.raises(TypeError, match=message):
        adamx.from_numpy(state, weights)
    with pytest.raises(ValueError, match="unknown: 0, 1, x"):
        adamx.from_numpy(state, adamx.to_numpy(state) | {0: 1, 1: 1, "x": 1})


def test_what_is_as_good_as_a_list():
    state = trained(HOLDERS["schedule"])
    weights = adamx.get_weights(state)
    for same in (
        tuple(weights),
        iter(weights),
        (w for w in weights),
        dict(enumerate(weights)).values(),
    ):
        chex.assert_trees_all_equal(adamx.set_weights(state, same), state)
    with pytest.raises(ValueError, match=r"expected 9 arrays .*, found 1"):
        adamx.set_weights(state, (w for w in weights[:1]))


UNREADABLE = {
    "none": (lambda _: None, "real numbers, found None"),
    "text": (lambda _: "abc", "real numbers, found str"),
    "bytes": (lambda _: b"abc", "real numbers, found bytes"),
    "mapping": (lambda _: {}, "real numbers, found dict"),
    "objects": (lambda w: w.astype(object), "real numbers, found an array of object"),
    "some_none": (lambda w: [None, *w[1:]], "real numbers, found an array of object"),
    "dates": (lambda w: w.astype("M8[s]"), r"real numbers, found an array of datetime64\[s\]"),
    "masked": (
        lambda w: np.ma.masked_array(w, w == w[0]),
        r"an array without masked entries, found \d masked",
    ),
    "tensor": (
        lambda _: Tensor(),
        r"an array, found a torch.Tensor that NumPy cannot read\. "
        r"Pass tensor.detach\(\).cpu\(\).float\(\).numpy\(\)",
    ),
    "deleted": (
        deleted,
        r"an array, found a jax.* that NumPy cannot read",
    ),
    "key": (lambda _: jax.random.key(0), r"an array, found a jax.* that NumPy cannot read"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
@pytest.mark.parametrize("index", [3, 7])
def test_weights_that_are_no_arrays_of_numbers(fault, index):
    make, message = UNREADABLE[fault]
    state = state_of("schedule")
    before, weights = copy.deepcopy(state), adamx.get_weights(state)
    weights[index] = make(weights[index])
    name = list(adamx.to_numpy(state))[index]
    for set_them in (
        lambda: adamx.set_weights(state, weights),
        lambda: adamx.from_numpy(state, dict(zip(adamx.to_numpy(state), weights, strict=True))),
    ):
        with pytest.raises(
            ValueError, match=f"^{name}: expected {message}.*The state is unchanged$"
        ):
            set_them()
        chex.assert_trees_all_equal(state, before)


@pytest.mark.parametrize(
    "convert",
    [
        jnp.asarray,
        np.ma.masked_array,
        lambda w: w.astype(np.longdouble),
        lambda w: w.tolist(),
    ],
)
def test_other_arrays_of_numbers_are_taken(convert):
    state = state_of("schedule")
    weights = [w.astype(np.int64) if w.ndim == 0 else w for w in adamx.get_weights(state)]
    found = adamx.set_weights(state, [convert(w) for w in weights])
    expected = adamx.set_weights(state, weights)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal_dtypes(found, state)
    with pytest.raises(ValueError, match="mu/heads/0: expected numbers in the range of float32"):
        adamx.set_weights(state, [*weights[:3], np.full(2, 1e300, np.longdouble), *weights[4:]])


def test_long_lists_of_names_are_cut():
    state = adamx.adam(1e-2).init([1.0] * 100)
    with pytest.raises(
        ValueError, match=r"expected 201 arrays \(count, .* and 191 more\), found 0"
    ):
        adamx.set_weights(state, [])


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
    with pytest.raises(ValueError, match="The state is unchanged"):
        adamx.set_weights(state, wrong)
    chex.assert_trees_all_equal(state, before)
    arrays = adamx.to_numpy(state)
    name = list(arrays)[place]
    renamed = {f"{k}x" if k == name else k: array for k, array in arrays.items()}
    with pytest.raises(ValueError, match=f"missing: {name}; unknown: {name}x"):
        adamx.from_numpy(state, renamed)
    chex.assert_trees_all_equal(state, before)
