import copy
import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx

PROMOTES = True  # Optax's wrappers do

PARAMS = {
    "activation": None,
    "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3, jnp.bfloat16)},
    "heads": [jnp.ones(2), None, jnp.float32(1)],
}
PATHS = ["dense/bias", "dense/kernel", "heads/0", "heads/2"]

SCHEDULE = optax.linear_schedule(1e-2, 0.0, 100)
LABELS = {"activation": None, "dense": {"kernel": "a", "bias": "b"}, "heads": "a"}
HOLDERS = {
    "scale_by_adam": adamx.scale_by_adam(),
    "optax": optax.adam(1e-2),
    "schedule": adamx.adam(SCHEDULE),
    "amsgrad": adamx.adam(1e-2, amsgrad=True),
    "adamw": adamx.adamw(SCHEDULE, weight_decay=SCHEDULE),
    "chain": optax.chain(optax.clip(1.0), adamx.adam(SCHEDULE), optax.ema(0.9)),
    "inject": optax.inject_hyperparams(adamx.adam)(learning_rate=SCHEDULE),
    "MultiSteps": optax.MultiSteps(adamx.adam(SCHEDULE), 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(adamx.adam(SCHEDULE), 3),
    "partition": optax.partition({"a": adamx.adam(SCHEDULE), "b": adamx.adam(1e-3)}, LABELS),
    "none": optax.partition(
        {"a": adamx.adam(SCHEDULE), "b": adamx.adam(1e-3)},
        lambda tree: jax.tree.map(lambda x: "a" if x.ndim == 1 else "b", tree),
    ),
    "one_part": optax.partition({"a": adamx.adam(SCHEDULE), "b": optax.sgd(1e-3)}, LABELS),
}


def trained(tx, steps=4, params=PARAMS):
    state = tx.init(params)
    for t in range(steps):
        grads = jax.tree.map(lambda p, t=t: jnp.full_like(p, 0.5 + t), params)
        _, state = tx.update(grads, state, params)
    return state


def adam_states(state):
    def is_adam(x):
        return isinstance(x, adamx.AdamState | adamx.AmsgradState)

    return [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]


@pytest.mark.parametrize("holder", HOLDERS)
def test_round_trips_are_identities(holder):
    state = trained(HOLDERS[holder])
    chex.assert_trees_all_equal(adamx.set_weights(state, adamx.get_weights(state)), state)
    chex.assert_trees_all_equal(adamx.from_numpy(state, adamx.to_numpy(state)), state)


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_fresh_state_goes_on_where_the_old_one_was(holder):
    """Schedules included."""
    tx = HOLDERS[holder]
    state = trained(tx)
    fresh = tx.init(PARAMS)
    if holder == "chain":  # a state beside Adam's, which these functions do not carry
        fresh = (*fresh[:2], state[2])
    for restored in (
        adamx.set_weights(fresh, adamx.get_weights(state)),
        adamx.from_numpy(fresh, adamx.to_numpy(state)),
    ):
        expected, found = tx.update(PARAMS, state, PARAMS), tx.update(PARAMS, restored, PARAMS)
        chex.assert_trees_all_equal(found, expected)


def test_order():
    """Keras's: count, every mu, every nu, every maximum; leaves in tree order."""
    state = trained(HOLDERS["amsgrad"])
    weights, adam = adamx.get_weights(state), state[0]
    leaves = [adam.count, *jax.tree.leaves((adam.mu, adam.nu, adam.nu_max))]
    for weight, leaf in zip(weights, leaves, strict=True):
        np.testing.assert_array_equal(weight, leaf)
    names = ["count", *(f"{field}/{p}" for field in ("mu", "nu", "nu_max") for p in PATHS)]
    arrays = adamx.to_numpy(state)
    assert list(arrays) == names
    for array, weight in zip(arrays.values(), weights, strict=True):
        np.testing.assert_array_equal(array, weight)


def test_a_partition_is_put_together_again():
    whole, parts = trained(HOLDERS["schedule"]), trained(HOLDERS["partition"])
    assert len(adam_states(parts)) == 2
    for mine, other in zip(adamx.get_weights(parts), adamx.get_weights(whole), strict=True):
        np.testing.assert_array_equal(mine, other)
    part = adamx.to_numpy(trained(HOLDERS["one_part"]))
    assert [name for name in part if name.startswith("mu/")] == [f"mu/{p}" for p in PATHS[1:]]


def test_a_prefix_masks_a_whole_branch():
    tx = optax.partition(
        {"a": adamx.adam(1e-2), "b": adamx.adam(1e-3)},
        {"activation": None, "dense": "b", "heads": "a"},
    )
    assert list(adamx.to_numpy(trained(tx)))[1:5] == [f"mu/{p}" for p in PATHS]


def test_npz(tmp_path):
    state = trained(HOLDERS["amsgrad"])
    np.savez(tmp_path / "state.npz", **adamx.to_numpy(state))
    with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
        restored = adamx.from_numpy(HOLDERS["amsgrad"].init(PARAMS), arrays)
    chex.assert_trees_all_equal(restored, state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "complex64"])
def test_low_precision_comes_out_right(dtype):
    params = jnp.asarray([1.0, -2.0, 0.1]).astype(dtype)
    tx = adamx.scale_by_adam(nu_dtype="bfloat16")
    _, state = tx.update(params, tx.init(params))
    arrays = adamx.to_numpy(state)
    np.testing.assert_array_equal(arrays["mu"], np.asarray(state.mu).astype(arrays["mu"].dtype))
    assert all(array.dtype.isbuiltin == 1 for array in arrays.values())
    assert (arrays["mu"] != 0).all()
    restored = adamx.from_numpy(tx.init(params), arrays)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)


def test_a_single_array_and_a_module():
    assert list(adamx.to_numpy(adamx.adam(1e-2).init(jnp.ones(2)))) == ["count", "mu", "nu"]
    layer = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    names = list(adamx.to_numpy(adamx.adam(1e-2).init(layer)))
    assert names == ["count", "mu/weight", "mu/bias", "nu/weight", "nu/bias"]


def test_an_ensemble():
    """Under vmap every member has a count."""
    tx = adamx.adam(SCHEDULE)
    params = jnp.ones((3, 2))
    state = jax.vmap(tx.init)(params)
    _, state = jax.vmap(tx.update)(params, state, params)
    assert adamx.to_numpy(state)["count"].tolist() == [1, 1, 1]
    restored = adamx.from_numpy(jax.vmap(tx.init)(params), adamx.to_numpy(state))
    chex.assert_trees_all_equal(restored, state)


def test_a_restored_state_can_be_donated_and_does_not_share_memory():
    tx = HOLDERS["partition"]
    state = trained(tx)
    weights = adamx.get_weights(state)
    kept = [w.copy() for w in weights]
    restored = adamx.set_weights(tx.init(PARAMS), weights)
    for weight in weights:
        weight[...] = 0
    for mine, other in zip(adamx.get_weights(restored), kept, strict=True):
        np.testing.assert_array_equal(mine, other)
    exported = adamx.get_weights(restored)
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(restored)
    for mine, other in zip(exported, kept, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_numpy_states_stay_numpy():
    state = jax.device_get(trained(HOLDERS["schedule"]))
    restored = adamx.set_weights(state, adamx.get_weights(state))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(restored[0].mu))


def test_float_counts_and_doubles_are_converted():
    """TF 1.1 stores its iterations as float32; other programs store doubles."""
    state = trained(HOLDERS["schedule"])
    doubles = [np.asarray(w, np.float64) for w in adamx.get_weights(state)]
    chex.assert_trees_all_equal(adamx.set_weights(state, doubles), state)


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


def test_optax_complex_second_moment():
    """Optax stores it as complex numbers; its real part goes into adamx's state."""
    params = jnp.array([1 + 2j, 3j], jnp.complex64)
    theirs, ours = optax.scale_by_adam(), adamx.scale_by_adam()
    _, state = theirs.update(params, theirs.init(params))
    restored = adamx.set_weights(ours.init(params), adamx.get_weights(state))
    np.testing.assert_array_equal(restored.nu, state.nu.real)
    direction, _ = ours.update(params, restored)
    same, continued = ours.update(params, state)
    np.testing.assert_array_equal(same, direction)
    assert continued.nu.dtype == jnp.complex64


def test_flax_nnx_state():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamx.adam(SCHEDULE), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((1, 2))) ** 2).sum())(model))

    step(model, optimizer)
    state = optimizer.opt_state
    restored = adamx.set_weights(state, adamx.get_weights(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    optimizer.opt_state = restored
    step(model, optimizer)
    assert adamx.get_weights(optimizer.opt_state)[0] == 2


def test_no_adam_state():
    with pytest.raises(ValueError, match=r"holds an AdamState .*, found none in tuple"):
        adamx.get_weights(optax.sgd(1e-2).init(PARAMS))


def test_two_adam_states_of_the_same_parameters():
    state = HOLDERS["schedule"].init(PARAMS)
    message = "mu/dense/bias: expected Adam states that share out one tree .* found 2 that overlap"
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


@given(
    st.recursive(
        st.sampled_from([(), (2,), (0,), (1, 3)]),
        lambda inner: st.one_of(
            st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
            st.lists(inner, max_size=3),
        ),
        max_leaves=6,
    ),
    st.sampled_from(["float32", "bfloat16", "float16", "complex64"]),
    st.booleans(),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=60, deadline=None)
def test_round_trips_of_random_trees(shapes, dtype, amsgrad, count):
    rng = np.random.default_rng(count)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)).astype(dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    tx = adamx.adam(SCHEDULE, amsgrad=amsgrad)
    _, state = tx.update(params, tx.init(params), params)
    state = optax.tree.set(state, count=jnp.int32(count))
    fresh = tx.init(params)
    chex.assert_trees_all_equal(adamx.set_weights(fresh, adamx.get_weights(state)), state)
    chex.assert_trees_all_equal(adamx.from_numpy(fresh, adamx.to_numpy(state)), state)
