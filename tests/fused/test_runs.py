"""Whole steps in a run: changes of form, of numbers and of what is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.fused.fused_runs import Case, adam_of, gradients, tree

PROMOTES = True  # Optax's parts do


def test_a_run_changes_over_at_any_step():
    """From `update` to `step`, to packed steps and back, with schedules and a mask."""
    arguments = {
        "learning_rate": optax.cosine_decay_schedule(1e-2, 40),
        "weight_decay": optax.linear_schedule(0.1, 0.0, 40),
        "mask": lambda params: {name: name != "51" for name in params},
    }
    tx = adamx.adamw(**arguments)
    pairs = {packed: adamx.fused_adamw(**arguments, packed=packed) for packed in (False, True)}
    rng = np.random.default_rng(0)
    params = tree(rng, "float32")

    @jax.jit
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    expected, expected_state = params, tx.init(params)
    state = expected_state
    steps = {packed: jax.jit(pair.step) for packed, pair in pairs.items()}
    for i in range(40):
        grads = gradients(rng, Case(), params)
        kind = rng.integers(3)
        if kind == 0:
            params, state = update(grads, state, params)
        elif kind == 1:
            params, state = steps[False](grads, params, state)
        else:
            params, state = steps[True](grads, params, adamx.pack(state, params))
            state = adamx.unpack(state, params)
        expected, expected_state = update(grads, expected_state, expected)
        assert jax.tree.structure(state) == jax.tree.structure(expected_state)
        assert int(state[0].count) == int(state[2].count) == i + 1
    for mine, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=40 * 2**-24)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_numbers_may_change_without_recompiling(packed, amsgrad):
    def train(hyper, grads, params, state):
        lr, b1, b2, eps, eps_root, decay, largest = hyper
        optimizer = adamx.fused_adam(
            lr,
            b1,
            b2,
            eps,
            eps_root,
            weight_decay=decay,
            clip_global_norm=largest,
            amsgrad=amsgrad,
            packed=packed,
        )
        return optimizer.step(grads, params, state)

    step = jax.jit(train)
    rng = np.random.default_rng(0)
    params = tree(rng, "float32")
    grads = gradients(rng, Case(), params)
    for hyper in ((1e-3, 0.9, 0.999, 1e-8, 0.0, 0.01, 5.0), (0.5, 0.3, 0.4, 1e-3, 0.1, 0.5, 1e4)):
        lr, b1, b2, eps, eps_root, decay, largest = hyper
        parts = (
            optax.clip_by_global_norm(largest),
            adamx.scale_by_adam(b1, b2, eps, eps_root, amsgrad=amsgrad),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(lr),
        )
        tx = optax.chain(*parts)
        state = tx.init(params)
        updates, expected = jax.jit(tx.update)(grads, state, params)
        found, found_state = step(
            hyper, grads, params, adamx.pack(state, params) if packed else state
        )
        if packed:
            found_state = adamx.unpack(found_state, params)
        after = optax.apply_updates(params, updates)
        for mine, other in zip(
            jax.tree.leaves((found, found_state)), jax.tree.leaves((after, expected)), strict=True
        ):
            # 1 - b2 of a traced b2 is rounded to float32 before it is used.
            np.testing.assert_allclose(mine, other, rtol=3e-5, atol=1e-7)
    assert step._cache_size() == 1


def test_accuracy_of_the_norm():
    """Of a million gradients, against double precision; with b1 = 0 the moment is the gradient."""
    rng = np.random.default_rng(0)
    grads = {"w": rng.standard_normal(1_000_000).astype(np.float32), "b": np.float32([3e4, 1e-3])}
    params = jax.tree.map(jnp.zeros_like, grads)
    optimizer = adamx.fused_adam(1e-3, b1=0.0, clip_global_norm=0.5)
    _, state = jax.jit(optimizer.step)(grads, params, optimizer.init(params))
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values()))
    for name, g in grads.items():
        np.testing.assert_allclose(adam_of(state).mu[name], g * (0.5 / norm), rtol=4e-7)


def test_leaves_that_are_not_trained():
    params = {"a": jnp.ones(3), "b": None, "c": {"d": jnp.ones((2, 2))}, "e": 2.0}
    grads = {"a": jnp.ones(3), "b": None, "c": {"d": None}, "e": 0.5}
    for packed in (False, True):
        optimizer = adamx.fused_adam(0.1, packed=packed)
        state = optimizer.init(params)
        after, state = jax.jit(optimizer.step)(grads, params, state)
        np.testing.assert_allclose(after["a"], 0.9, rtol=1e-6)
        np.testing.assert_array_equal(after["c"]["d"], 1.0)
        np.testing.assert_allclose(after["e"], 1.9, rtol=1e-6)
        assert after["b"] is None
        state = adamx.unpack(state, params) if packed else state
        np.testing.assert_array_equal(state[0].mu["c"]["d"], 0.0)
        np.testing.assert_allclose(state[0].mu["a"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_none_for_a_whole_subtree(packed):
    params = {"a": {"w": jnp.ones(3), "b": jnp.ones(2)}, "c": jnp.ones(4)}
    optimizer = adamx.fused_adam(0.1, packed=packed)
    grads = {"a": None, "c": jnp.ones(4)}
    after, _ = jax.jit(optimizer.step)(grads, params, optimizer.init(params))
    np.testing.assert_array_equal(after["a"]["w"], 1.0)
    np.testing.assert_allclose(after["c"], 0.9, rtol=1e-6)


def test_a_mask_whose_class_can_be_called():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Layer:
        w: jax.Array
        b: jax.Array

        def __call__(self, x):
            return self.w * x + self.b

    params = Layer(jnp.ones(3), jnp.ones(3))
    optimizer = adamx.fused_adamw(0.1, weight_decay=0.5, mask=Layer(True, False))
    tx = adamx.adamw(0.1, weight_decay=0.5, mask=Layer(True, False))
    state = tx.init(params)
    updates, _ = tx.update(params, state, params)
    expected = optax.apply_updates(params, updates)
    found, _ = jax.jit(optimizer.step)(params, params, optimizer.init(params))
    np.testing.assert_allclose(found.w, expected.w, rtol=1e-6)
    np.testing.assert_allclose(found.b, expected.b, rtol=1e-6)
    assert not np.allclose(found.w, found.b)


@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_tree(packed):
    optimizer = adamx.fused_adam(1e-3, packed=packed, clip_global_norm=1.0)
    params, state = jax.jit(optimizer.step)({}, {}, optimizer.init({}))
    assert params == {}
    assert int(adam_of(state).count) == 1


def test_dtypes_that_the_kernel_does_not_know():
    """Complex and 8-bit numbers, beside others that it does."""
    rng = np.random.default_rng(0)
    params = {
        "complex": jnp.asarray(rng.standard_normal(9) + 1j * rng.standard_normal(9), "complex64"),
        "8 bits": jnp.asarray(rng.standard_normal(9), "float8_e4m3fn"),
        "real": jnp.asarray(rng.standard_normal(9), "float32"),
    }
    widened = jax.tree.map(lambda p: p if p.dtype.itemsize > 1 else p.astype("float32"), params)
    grads = jax.tree.map(lambda p: 0.5 * p, widened)
    arguments = {"mu_dtype": "float32", "convention": "keras"}
    tx = adamx.adamw(0.1, weight_decay=0.1, **arguments)
    optimizer = adamx.fused_adamw(0.1, weight_decay=0.1, **arguments)
    state = tx.init(params)
    after, found = jax.jit(optimizer.step)(grads, params, optimizer.init(params))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    updates, expected = jax.jit(tx.update)(grads, state, widened)
    expected_params = optax.apply_updates(widened, updates)
    for name, p in params.items():
        assert after[name].dtype == p.dtype
        np.testing.assert_allclose(after[name], expected_params[name].astype(p.dtype), rtol=3e-7)
        np.testing.assert_allclose(found[0].nu[name], expected[0].nu[name], rtol=3e-7)


def test_states_of_optax():
    """One with a bfloat16 second moment, or a complex one, goes on in its own dtypes."""
    for params in ({"w": jnp.ones(5, jnp.bfloat16)}, {"w": jnp.ones(5, jnp.complex64)}):
        state = optax.adam(0.1).init(params)
        optimizer = adamx.fused_adam(0.1)
        after, found = jax.jit(optimizer.step)(params, params, state)
        assert [x.dtype for x in jax.tree.leaves(found)] == [
            x.dtype for x in jax.tree.leaves(state)
        ]
        updates, _ = jax.jit(optax.adam(0.1).update)(params, state, params)
        np.testing.assert_allclose(after["w"], optax.apply_updates(params, updates)["w"], rtol=1e-6)
