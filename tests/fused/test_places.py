"""The fused step wherever JAX may put it: with the kernel on one CPU, in plain form elsewhere."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adamx
from adamx import native
from tests.state.test_sharding import COLLECTIVES

PROMOTES = True  # Optax's parts do

OPTIMIZER = adamx.fused_adamw(1e-2, clip_global_norm=1.0, amsgrad=True)
PACKED = adamx.fused_adamw(1e-2, clip_global_norm=1.0, amsgrad=True, packed=True)
BOTH = pytest.mark.parametrize("optimizer", [OPTIMIZER, PACKED], ids=["separate", "packed"])
RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": jnp.asarray(RNG.standard_normal((16, 24)), "float32"),
    "bias": jnp.asarray(RNG.standard_normal(24), "float32"),
}
GRADS = jax.tree.map(lambda p: 0.3 * p + 0.1, PARAMS)
CALL = "@adamx_step"  # in StableHLO
needs_kernel = pytest.mark.skipif(
    not adamx.native.status(), reason=f"no kernel: {adamx.native.status().reason}"
)


def text_of(lowered):
    return lowered.compile().as_text()


def assert_close(found, expected, rtol=2e-6):
    """Up to the order in which squares are added up for the norm."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=1e-9)


@BOTH
def test_outside_of_jit(optimizer):
    arguments = GRADS, PARAMS, optimizer.init(PARAMS)
    expected = jax.jit(optimizer.step)(*arguments)
    assert_close(optimizer.step(*arguments), expected)
    with jax.disable_jit():
        assert_close(optimizer.step(*arguments), expected)


@needs_kernel
@BOTH
def test_one_call_for_the_whole_tree(optimizer):
    text = text_of(jax.jit(optimizer.step).lower(GRADS, PARAMS, optimizer.init(PARAMS)))
    assert len(re.findall(rf'custom_call_target="{native.STEP}"', text)) == 1


@BOTH
def test_loops(optimizer):
    """scan, fori_loop and cond around it, in one compiled function."""
    state = optimizer.init(PARAMS)

    def body(carry, _):
        return optimizer.step(GRADS, *carry), None

    expected = PARAMS, state
    for _ in range(4):
        expected = jax.jit(optimizer.step)(GRADS, *expected)
    scanned, _ = jax.jit(lambda carry: jax.lax.scan(body, carry, length=4))((PARAMS, state))
    assert_close(scanned, expected)
    looped = jax.jit(
        lambda carry: jax.lax.fori_loop(0, 4, lambda _, carry: body(carry, None)[0], carry)
    )((PARAMS, state))
    assert_close(looped, expected)

    @jax.jit
    def maybe(take, carry):
        return jax.lax.cond(take, lambda c: body(c, None)[0], lambda c: c, carry)

    assert_close(maybe(False, (PARAMS, state)), (PARAMS, state), rtol=0)
    assert_close(maybe(True, (PARAMS, state)), jax.jit(optimizer.step)(GRADS, PARAMS, state))


@BOTH
def test_vmap(optimizer):
    stacked = [
        jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), tree)
        for tree in (GRADS, PARAMS, optimizer.init(PARAMS))
    ]
    found = jax.jit(jax.vmap(optimizer.step))(*stacked)
    for i in range(3):
        one = jax.jit(optimizer.step)(*jax.tree.map(lambda x, i=i: x[i], stacked))
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), one)


@pytest.mark.slow
@BOTH
def test_derivatives(optimizer):
    """Through three steps, by learning rate and starting point, beside finite differences."""

    def loss(lr, params):
        grown = adamx.fused_adamw(lr, packed=optimizer is PACKED, weight_decay=0.1)
        state = grown.init(params)
        for _ in range(3):
            params, state = grown.step(jax.tree.map(jnp.sin, params), params, state)
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), PARAMS)
        by_lr, by_params = jax.jit(jax.grad(loss, (0, 1)))(0.05, params)
        step, toward = 1e-6, jax.tree.map(np.sign, params)
        loss_at = jax.jit(loss)
        numeric = (loss_at(0.05 + step, params) - loss_at(0.05 - step, params)) / (2 * step)
        np.testing.assert_allclose(by_lr, numeric, rtol=1e-6)
        moved = [jax.tree.map(lambda p, d, s=s: p + s * d, params, toward) for s in (step, -step)]
        numeric = (loss_at(0.05, moved[0]) - loss_at(0.05, moved[1])) / (2 * step)
        pairs = map(jax.tree.leaves, (by_params, toward))
        along = sum(jnp.sum(g * d) for g, d in zip(*pairs, strict=True))
        np.testing.assert_allclose(along, numeric, rtol=1e-6)
        # Finite where gradients are exactly zero, and under rematerialisation.
        zeros = jax.tree.map(np.zeros_like, params)
        values = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))(0.05, zeros)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(values))


@BOTH
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms(optimizer, platform):
    state = optimizer.init(PARAMS)
    traced = jax.jit(optimizer.step).trace(GRADS, PARAMS, state)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert CALL not in text


@BOTH
def test_export(optimizer):
    """What is exported holds no call of the kernel, and runs anywhere."""
    arguments = GRADS, PARAMS, optimizer.init(PARAMS)
    flat, treedef = jax.tree.flatten(arguments)

    def step(*leaves):
        return jax.tree.leaves(optimizer.step(*jax.tree.unflatten(treedef, leaves)))

    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*flat)
    assert CALL not in exported.mlir_module()
    expected = jax.tree.leaves(jax.jit(optimizer.step)(*arguments))
    assert_close(exported.call(*flat), expected)


def sharded(axis_type=jax.sharding.AxisType.Auto):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    specs = {"kernel": PartitionSpec("data"), "bias": PartitionSpec()}
    put = lambda tree: {  # noqa: E731
        name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in tree.items()
    }
    return mesh, put(GRADS), put(PARAMS)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_eight_devices(kind):
    """The state lies where the parameters lie, nothing is gathered, no kernel is called."""
    optimizer = adamx.fused_adam(1e-2)
    _, grads, params = sharded(getattr(jax.sharding.AxisType, kind))
    state = jax.jit(optimizer.init)(params) if kind == "Auto" else optimizer.init(params)
    step = jax.jit(optimizer.step)
    text = text_of(step.lower(grads, params, state))
    assert not any(collective in text for collective in (*COLLECTIVES, "adamx_step"))
    found = step(grads, params, state)
    expected = step(GRADS, PARAMS, optimizer.init(PARAMS))
    assert_close(found, expected)
    for name, p in found[0].items():
        assert p.sharding.is_equivalent_to(params[name].sharding, p.ndim)


def test_shard_map():
    optimizer = adamx.fused_adam(1e-2)
    mesh, _, _ = sharded()
    specs = {"kernel": PartitionSpec("data"), "bias": PartitionSpec()}
    state = optimizer.init(PARAMS)
    state_specs = (adamx.AdamState(PartitionSpec(), specs, specs), state[1])
    mapped = jax.shard_map(
        optimizer.step,
        mesh=mesh,
        in_specs=(specs, specs, state_specs),
        out_specs=(specs, state_specs),
    )
    found = jax.jit(mapped)(GRADS, PARAMS, state)
    assert_close(found, jax.jit(optimizer.step)(GRADS, PARAMS, state))


@needs_kernel
@BOTH
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory(optimizer, clip, dtype):
    """Compiled with donation, a step needs gradients, parameters and moments, and nothing else."""
    build = adamx.fused_adamw
    optimizer = build(
        1e-2, packed=optimizer is PACKED, clip_global_norm=1.0 if clip else None, mu_dtype=dtype
    )
    params = {f"leaf {n}": jnp.zeros((n, 100), dtype) for n in (1000, 1000, 1001, 50)}
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state, grads):
        return optimizer.step(grads, params, state)

    analysis = train.lower(params, state, params).compile().memory_analysis()
    changed = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert analysis.alias_size_in_bytes >= changed
    assert analysis.temp_size_in_bytes < 4096  # the scalars; the smallest leaf has 10,000 bytes
    looped = jax.jit(
        lambda params, state, grads: jax.lax.fori_loop(
            0, 5, lambda _, carry: optimizer.step(grads, *carry), (params, state)
        ),
        donate_argnums=(0, 1),
    )
    analysis = looped.lower(params, state, params).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4096
    after, _ = train(params, state, jax.tree.map(jnp.ones_like, params))
    assert all(p.is_deleted() for p in jax.tree.leaves((params, state)))
    assert not any(p.is_deleted() for p in jax.tree.leaves(after))


def test_arguments_that_are_not_donated_stay():
    """And one array may be gradient, parameter and moment at once."""
    optimizer = adamx.fused_adam(0.1)
    x = jnp.asarray(np.abs(RNG.standard_normal(100_000)), "float32")
    kept = np.array(x)
    state = optimizer.init(x)
    state = (state[0]._replace(count=jnp.int32(7), mu=x, nu=x), state[1])
    step = jax.jit(lambda x, state: optimizer.step(x, x, state))
    found, found_state = step(x, state)
    np.testing.assert_array_equal(x, kept)
    tx = adamx.adam(0.1)
    updates, expected = jax.jit(tx.update)(x, state, x)
    # Units of the update, 0.1, count where it leaves next to nothing of the parameter.
    np.testing.assert_allclose(found, optax.apply_updates(x, updates), rtol=3e-7, atol=1e-8)
    np.testing.assert_allclose(found_state[0].mu, expected[0].mu, rtol=3e-7)
    np.testing.assert_allclose(found_state[0].nu, expected[0].nu, rtol=3e-7)
