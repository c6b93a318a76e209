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
from adamx.checkpoint import Checkpoint
from tests.state.holders import HOLDERS, PARAMS, PATHS, SCHEDULE, trained

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")

PROMOTES = True  # Optax's wrappers do


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


def test_annealed_noise_goes_on():
    """Its strength is that of the step; its key is not in the arrays."""
    tx = optax.chain(optax.add_noise(0.1, 0.55, jax.random.key(0)), adamx.adam(1e-3))
    state = trained(tx)
    restored = adamx.from_numpy(tx.init(PARAMS), adamx.to_numpy(state))
    assert restored[0].count == state[0].count == 4


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


@pytest.mark.parametrize("is_first", [True, False])
def test_parts_that_none_leaves_out_are_put_together(is_first):
    """As of `equinox.partition`, or None for a whole subtree."""
    layer = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
    one, other = eqx.partition(layer, lambda x: eqx.is_array(x) and x.ndim == 2)
    other = eqx.filter(other, eqx.is_array)
    trees = [({"m": one, "x": None}, {"m": other, "x": {"y": jnp.ones(2), "z": None}})]
    whole = {"m": eqx.filter(layer, eqx.is_array), "x": {"y": jnp.ones(2), "z": None}}
    tx = adamx.adam(SCHEDULE)
    [parts] = trees if is_first else [pair[::-1] for pair in trees]
    state = tuple(trained(tx, 3, part) for part in parts)
    arrays = adamx.to_numpy(state)
    expected = adamx.to_numpy(trained(tx, 3, whole))
    assert list(arrays) == list(expected)
    chex.assert_trees_all_equal(arrays, expected)
    fresh = tuple(map(tx.init, parts))
    chex.assert_trees_all_equal(adamx.from_numpy(fresh, arrays), state)


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


def test_members_and_ensembles_are_told_apart():
    """The errors say what to do, and it does."""
    tx, params = adamx.adam(1e-2), {"w": jnp.ones(2)}
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), params)
    one, many = tx.init(params), jax.vmap(tx.init)(stacked)
    with pytest.raises(
        ValueError, match=r"count: .* found \(3,\). If the weights are .*array\[0\]"
    ):
        adamx.set_weights(one, adamx.get_weights(many))
    adamx.set_weights(one, [array[0] for array in adamx.get_weights(many)])
    with pytest.raises(
        ValueError, match=r"count: .* found \(\). The state is .*: stack the weights"
    ):
        adamx.from_numpy(many, adamx.to_numpy(one))
    adamx.from_numpy(many, {name: np.stack([x] * 3) for name, x in adamx.to_numpy(one).items()})
    packed = adamx.fused_adam(1e-2, packed=True)
    config = adamx.AdamConfig()
    member = r"one member.*: jax.tree.map\(lambda x: x\[0\], state\)"
    for call, error in (
        (lambda: adamx.pack(many, stacked), TypeError),
        (lambda: adamx.unpack(jax.vmap(packed.init)(stacked), stacked), TypeError),
        (lambda: tx.update(stacked, many, stacked), TypeError),
        (lambda: Checkpoint.from_state(stacked, many, config), ValueError),
        (lambda: Checkpoint.from_state(params, many, config), ValueError),
    ):
        with pytest.raises(error, match=f"state: count: .* of shape .*{member}"):
            call()
    taken = jax.tree.map(lambda x: x[0], (stacked, many))
    assert Checkpoint.from_state(*taken, config).count == 0


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


@pytest.mark.slow
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
