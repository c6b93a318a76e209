"""Residuals as they are compiled and sharded, within other transformations, and in a state."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from tests.low_precision.residual_runs import (
    ADAMW,
    CODED,
    assert_same,
    gradients,
    mixed_params,
    train,
)
from tests.low_precision.rounded_runs import as_bits, make_step

PROMOTES = True  # Optax adds float32 to bfloat16

# ---- How it is compiled --------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_no_loop_and_no_memory_but_for_a_copy(bits, dtype):
    tx, params = optax.chain(optax.sgd(1e-3), adamx.residual_params(bits)), jnp.ones(10**6, dtype)
    arguments = params, tx.init(params), jnp.ones(params.size)
    compiled = jax.jit(make_step(tx), donate_argnums=(0, 1)).lower(*arguments).compile()
    assert "while" not in compiled.as_text()
    memory, own = compiled.memory_analysis(), params.size * (2 + bits // 8)
    assert memory.alias_size_in_bytes >= own
    assert memory.temp_size_in_bytes < own + 1000  # what XLA for CPUs copies at most


def test_another_key_does_not_compile_again():
    params = jnp.ones(100, jnp.bfloat16)
    step = jax.jit(lambda p, s: make_step(adamx.residual_params())(p, s, jnp.full(100, 1e-4)))
    txs = [adamx.residual_params(key=seed) for seed in range(3)]
    residuals = [step(params, tx.init(params))[1].residual for tx in txs]
    assert step._cache_size() == 1
    for mine, other in itertools.combinations(residuals, 2):
        assert np.any(mine != other)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [("data", "model"), (None, "data"), (None,)])
@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("bfloat16", 16), ("float16", 8)])
def test_any_sharding_gives_the_same_bits(spec, axis_type, dtype, bits):
    rng = np.random.default_rng(0)
    tx = adamx.residual_params(bits, key=7)
    values = jnp.asarray(rng.standard_normal((16, 24)), dtype)
    updates = jnp.asarray(rng.standard_normal((16, 24)) / 256, jnp.float32)

    def run(params, updates):
        state = tx.init(params)
        for _ in range(3):
            params, state = make_step(tx)(params, state, updates)
        return params, state.residual

    expected = jax.jit(run)(values, updates)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        arrays = jax.device_put((values, updates), P(*spec))
        compiled = jax.jit(run).lower(*arrays).compile()
        found = compiled(*arrays)
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-reduce", "permute"))
    for mine, other in zip(found, expected, strict=True):
        assert mine.sharding.is_equivalent_to(arrays[0].sharding, 2)
        np.testing.assert_array_equal(as_bits(mine), as_bits(other))


@pytest.mark.slow
def test_an_ensemble_with_a_key_each():
    values = jnp.asarray(np.random.default_rng(0).standard_normal((3, 50)), jnp.float32)

    def one(key, params):
        tx = adamx.residual_params(key=key)
        return make_step(tx)(params, tx.init(params), values[0] / 640)

    keys, params = jax.random.split(jax.random.key(0), 3), values.astype(jnp.bfloat16)
    together = jax.jit(jax.vmap(one))(keys, params)
    weights = adamx.full_params(*together)
    for i in range(3):
        alone = jax.jit(one)(keys[i], params[i])
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone)
        np.testing.assert_array_equal(weights[i], adamx.full_params(*alone))


def test_compiled_loops_and_single_calls_give_the_same_bits():
    """With a rate that is a power of two, so that no product is rounded."""
    params, tx = mixed_params(), optax.chain(optax.sgd(2.0**-10), adamx.residual_params())
    expected = train(tx, params, tx.init(params))
    grads = jax.tree.map(lambda *g: jnp.stack(g), *[gradients(params, t) for t in range(3)])
    start = params, tx.init(params)
    assert_same(jax.lax.scan(lambda c, g: (make_step(tx)(*c, g), None), start, grads)[0], expected)
    for t in range(3):
        start = make_step(tx)(*start, gradients(params, t))
    assert_same(start, expected)


def test_steps_are_exported_for_all_sizes():
    tx = optax.chain(optax.scale(-0.001), adamx.residual_params())

    def step(p):
        state = tx.init(p)
        return tx.update(p.astype(jnp.float32), state, p)

    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(step))(jax.ShapeDtypeStruct((n,), jnp.bfloat16))
    params = jnp.linspace(-1, 1, 50, dtype=jnp.bfloat16)
    found, expected = exported.call(params), jax.jit(step)(params)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1][1].residual, expected[1][1].residual)


# ---- Within other transformations ----------------------------------------------------------------


@pytest.mark.slow
def test_masked_parameters_have_no_residual():
    params = mixed_params()
    mask = {"dense": True, "half": False, "norm": True, "scale": False}
    tx = optax.chain(ADAMW, optax.masked(adamx.residual_params(), mask))
    params, state = train(tx, params, tx.init(params))
    assert {str(x.dtype) for x in jax.tree.leaves(state[1].inner_state.residual)} == {"int8"}
    weights = adamx.full_params(params, state)
    assert weights["dense"]["kernel"].dtype == weights["half"].dtype == "float32"
    np.testing.assert_array_equal(weights["half"], params["half"].astype(jnp.float32))
    assert np.any(weights["dense"]["kernel"] != params["dense"]["kernel"].astype(jnp.float32))
    again = adamx.split_params(weights, params, state)
    assert_same(again, (params, state))


@pytest.mark.slow
def test_steps_that_are_left_out_leave_the_weights():
    """Gradients that are not finite, and all but every second of those that are accumulated."""
    params = mixed_params()
    chain = optax.chain(ADAMW, adamx.residual_params())
    grads = gradients(params)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    for tx, last in ((optax.apply_if_finite(chain, 3), bad), (optax.MultiSteps(chain, 2), grads)):
        before = train(tx, params, tx.init(params), 4)
        after = jax.jit(make_step(tx))(*before, last)
        assert_same(adamx.full_params(*after), adamx.full_params(*before))


# ---- The state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adam", [ADAMW, pytest.param(CODED, marks=pytest.mark.slow)])
def test_adams_arrays_go_out_and_back(adam):
    params, tx = mixed_params(), optax.chain(adam, adamx.residual_params())
    params, state = train(tx, params, tx.init(params))
    arrays = adamx.to_numpy(state)
    assert arrays["count"] == 3 == state[1].count
    assert not any("residual" in name for name in arrays)
    assert_same(adamx.from_numpy(state, arrays)[1], state[1])
    fresh = adamx.from_numpy(tx.init(params), arrays)
    assert fresh[1].count == 3  # it moves on with Adam's
    weights = adamx.full_params(params, state)
    again = adamx.split_params(weights, params, fresh)
    assert_same(again[0], params)
    assert_same(again[1][1], state[1])
    mapping = {"tx": [{}, state[1]._asdict() | {"narrow": {}}]}
    assert_same(adamx.full_params(params, mapping), weights)


@pytest.mark.slow
def test_moments_change_their_form_beside_residuals():
    params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    tx = optax.chain(ADAMW, adamx.residual_params())
    params, state = train(tx, params, tx.init(params))
    for converted in (adamx.quantize_moments(state), adamx.dequantize_moments(state)):
        assert_same(converted[1], state[1])


def test_residuals_are_split_as_moments_are():
    """ZeRO: a part of each on each device, and the same bits as on one."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params, tx = mixed_params(), optax.chain(ADAMW, adamx.residual_params())
    expected = train(tx, params, tx.init(params))
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    assert shardings[1].residual["dense"]["kernel"].spec == P(None, "data")
    assert shardings[1].residual["half"].spec == P("data")
    assert shardings[1].residual["norm"] is None
    assert (shardings[1].residual["scale"].spec, shardings[1].key.spec) == (P(), P())
    whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), params)
    params = jax.device_put(params, whole)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    step = jax.jit(make_step(tx), out_shardings=(whole, shardings), donate_argnums=(0, 1))
    for t in range(3):
        params, state = step(params, state, gradients(params, t))
    assert_same(params, expected[0])
    assert_same(state[1], expected[1][1])
    assert state[1].residual["half"].sharding.spec == P("data")
    adamx.describe_sharding(state)
