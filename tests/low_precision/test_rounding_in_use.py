"""Stochastic rounding as it is compiled and sharded, its state, and that of the second moment."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import adamx
from tests.low_precision.rounded_runs import apply_updates, as_bits, make_step

# ---- How it is compiled --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: adamx.stochastic_round(0),
        lambda: optax.chain(optax.sgd(1e-3), adamx.stochastic_round(0)),
        lambda: optax.chain(adamx.adam(1e-3, mu_dtype="float32"), adamx.stochastic_round(0)),
    ],
)
def test_no_loop_and_no_memory_beside_the_donated(build):
    tx, params = build(), jnp.ones(1_000_000, jnp.bfloat16)
    arguments = params, tx.init(params), jnp.ones(params.size)
    compiled = jax.jit(make_step(tx), donate_argnums=(0, 1)).lower(*arguments).compile()
    assert "while" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < params.nbytes / 1000


def test_rounding_the_second_moment_takes_no_more_memory():
    params = jnp.ones(1_000_000, jnp.bfloat16)
    sizes = []
    for options in ({}, {"nu_key": 0}):
        tx = adamx.adam(1e-3, nu_dtype="bfloat16", **options)
        arguments = params, tx.init(params), jnp.ones(params.size)
        compiled = jax.jit(make_step(tx), donate_argnums=(0, 1)).lower(*arguments).compile()
        assert "while" not in compiled.as_text()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] + params.nbytes / 1000


def test_another_key_does_not_compile_again():
    params = jnp.ones(100, jnp.bfloat16)

    @jax.jit
    def step(params, state, nu_key):
        adam = adamx.adam(1e-3, nu_dtype="bfloat16", nu_key=nu_key)
        tx = optax.chain(adam, adamx.stochastic_round(0))
        return make_step(tx)(params, state, jnp.ones(100))

    results = []
    for seed in range(3):
        tx = optax.chain(adamx.adam(1e-3, nu_dtype="bfloat16"), adamx.stochastic_round(seed))
        results.append(step(params, tx.init(params), jax.random.key(seed)))
    assert step._cache_size() == 1
    for mine, other in itertools.combinations(results, 2):
        assert np.any(np.asarray(mine[0], float) != np.asarray(other[0], float))
        assert np.any(np.asarray(mine[1][0][0].nu) != np.asarray(other[1][0][0].nu))


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [("data", "model"), ("model", "data"), (None, "data"), (None,)])
def test_any_sharding_gives_the_same_bits(spec, axis_type):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 16, 24)).astype(np.float32)
    tx = adamx.stochastic_round(jax.random.key(7))
    # Squares of small whole numbers and b2 = 1/2: exact in float32, however it is compiled.
    adam = adamx.scale_by_adam(b2=0.5, nu_dtype="bfloat16", nu_key=7)
    wholes = rng.integers(-1000, 1000, (3, 16, 24)).astype(np.float32)

    def run(params, updates, *gradients):
        state, adam_state = tx.init(params), adam.init(params)
        for _ in range(3):
            rounded, state = tx.update(updates, state, params)
            params = apply_updates(params, rounded)
        for g in gradients:
            _, adam_state = adam.update(g, adam_state)
        return params, adam_state.nu

    params = values[0].astype(jnp.bfloat16)
    expected = jax.jit(run)(params, values[1] / 256, *wholes)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        arrays = jax.device_put((params, values[1] / 256, *wholes), PartitionSpec(*spec))
        compiled = jax.jit(run).lower(*arrays).compile()
        found = compiled(*arrays)
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-reduce", "permute"))
    for mine, other in zip(found, expected, strict=True):
        assert mine.sharding.is_equivalent_to(arrays[0].sharding, 2)
        np.testing.assert_array_equal(as_bits(mine), as_bits(other))


@pytest.mark.slow
def test_an_ensemble_with_a_key_each():
    values = jnp.asarray(np.random.default_rng(0).standard_normal((3, 50)), jnp.float32)

    def train(key, params):
        tx = adamx.stochastic_round(key)
        adam = adamx.scale_by_adam(nu_dtype="bfloat16", nu_key=key)
        state, adam_state = tx.init(params), adam.init(params)
        rounded, state = tx.update(values[0] / 64, state, params)
        _, adam_state = adam.update(params, adam_state)
        return apply_updates(params, rounded), adam_state.nu, state

    keys = jax.random.split(jax.random.key(0), 3)
    params = values.astype(jnp.bfloat16)
    together = jax.jit(jax.vmap(train))(keys, params)
    train_one = jax.jit(train)
    for i in range(3):
        alone = train_one(keys[i], params[i])
        for mine, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(as_bits(mine[i]), as_bits(other))


def test_scan_is_the_loop():
    params = jnp.ones(200, jnp.bfloat16)
    tx = optax.chain(optax.scale(-1e-3), adamx.stochastic_round(0))
    step = jax.jit(make_step(tx))
    grads = jnp.asarray(np.random.default_rng(0).standard_normal((50, 200)), jnp.float32)
    scanned, _ = jax.lax.scan(lambda c, g: (step(*c, g), None), (params, tx.init(params)), grads)
    looped = (params, tx.init(params))
    for g in grads:
        looped = step(*looped, g)
    for mine, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped), strict=True):
        np.testing.assert_array_equal(as_bits(mine), as_bits(other))


# ---- The state -----------------------------------------------------------------------------------


def test_the_state_goes_out_to_numpy_and_back(tmp_path):
    params = {"w": jnp.ones(50, jnp.bfloat16)}
    adam = adamx.adam(1e-3, nu_dtype="bfloat16", nu_key=1)
    tx = optax.chain(adam, adamx.stochastic_round(2))
    step, grads = jax.jit(make_step(tx)), {"w": jnp.linspace(-1, 1, 50)}
    params, state = step(params, tx.init(params), grads)
    restored = adamx.from_numpy(state, adamx.to_numpy(state))
    leaves, treedef = jax.tree.flatten(restored)
    np.savez(tmp_path / "state.npz", *(np.asarray(x, np.float32) for x in leaves[1:3]), *leaves[3:])
    assert [x.dtype.name for x in leaves[-2:]] == ["int32", "uint32"]
    expected = step(params, state, grads)
    for again in (restored, treedef.unflatten([np.asarray(x) for x in leaves])):
        for mine, other in zip(
            jax.tree.leaves(step(params, again, grads)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_array_equal(as_bits(mine), as_bits(other))


def test_a_fresh_state_with_the_moments_goes_on_with_the_same_bits():
    """`from_numpy` moves the count of steps on as it does those of schedules."""
    params = {"w": jnp.linspace(0.5, 1, 50, dtype=jnp.bfloat16)}
    tx = optax.chain(adamx.adam(1e-3), adamx.stochastic_round(2))
    step, grads = jax.jit(make_step(tx)), {"w": jnp.linspace(-1, 1, 50)}
    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state, grads)
    restored = adamx.from_numpy(tx.init(params), adamx.to_numpy(state))
    for mine, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(as_bits(mine), as_bits(other))


def test_optax_finds_the_parameters_in_the_state():
    params = {"w": jnp.ones(3, jnp.bfloat16), "v": jnp.ones(3)}
    tx = optax.chain(adamx.adam(1e-3), adamx.stochastic_round(0))
    state = tx.init(params)
    found = optax.tree_map_params(tx, lambda _, name: name, state, {"w": "W", "v": "V"})
    assert found[0][0].nu == {"w": "W", "v": "V"}
    assert found[1].narrow == state[1].narrow == {"1 of bfloat16": ()}


def test_a_donated_state_leaves_the_key_alone():
    key = jax.random.key_data(jax.random.key(0))
    params = jnp.ones(3, jnp.bfloat16)
    for given_key in (key, 0):
        tx = adamx.stochastic_round(given_key)
        step = jax.jit(make_step(tx), donate_argnums=(0, 1))
        for _ in range(2):
            step(params.copy(), tx.init(params), jnp.ones(3))
    assert not key.is_deleted()


def test_the_count_stops_at_its_largest_value():
    tx, params = adamx.stochastic_round(0), jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)._replace(count=jnp.int32(2**31 - 1))
    assert tx.update(params, state, params)[1].count == 2**31 - 1
