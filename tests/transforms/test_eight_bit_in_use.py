"""Moments in 8 bits under JAX's transformations, and in trees and programs of other kinds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.transforms.test_eight_bit import EIGHT, directions, noise


def test_under_transformations():
    """Jit, scan, vmap and donation change no bit; the derivative is that of float32 moments."""
    grads = jnp.asarray(noise(4, 1.0, size=256)).reshape(4, 2, 128)
    tx = adamx.scale_by_adam(moments=EIGHT)
    state, expected = tx.init(grads[0]), []
    for g in grads:
        direction, state = tx.update(g, state)
        expected.append(direction)
    scanned, last = directions(tx, grads)
    np.testing.assert_array_equal(scanned, np.stack(expected))
    chex.assert_trees_all_equal(last, state)
    step = jax.jit(tx.update, donate_argnums=1)
    donated = tx.init(grads[0])
    for g in grads:
        _, donated = step(g, donated)
    chex.assert_trees_all_equal(donated, state)
    members = jax.vmap(tx.init)(jnp.stack([grads[0], 2 * grads[0]]))
    both, _ = jax.vmap(lambda g, s: tx.update(g, s))(jnp.stack([grads[0], 2 * grads[0]]), members)
    np.testing.assert_array_equal(both[0], expected[0])

    def last_direction(tx, g):
        return jnp.sum(tx.update(g, tx.init(g))[0] ** 2)

    # With an eps of the size of the gradients: far below, the derivative is what rounding leaves.
    tx = adamx.scale_by_adam(eps=1e-3, moments=EIGHT)
    ours = jax.grad(lambda g: last_direction(tx, g))(grads[0])
    theirs = jax.grad(lambda g: last_direction(adamx.scale_by_adam(eps=1e-3), g))(grads[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * float(jnp.abs(theirs).max()))


def test_hyperparameters_do_not_recompile():
    tx = optax.inject_hyperparams(adamx.adamw, static_args=("moments",))(
        learning_rate=1e-3, moments="8bit"
    )
    params = jnp.ones((64, 64))
    state, step = tx.init(params), jax.jit(tx.update)
    for rate in (1e-3, 1e-4):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        updates, state = step(params, state, params)
    assert step._cache_size() == 1
    np.testing.assert_allclose(updates, -1e-4 * (1 + 1e-4), rtol=0.02)


def test_parameters_called_as_the_parts_of_a_moment():
    """A dictionary with the keys "codes" and "scales" is a tree of parameters like any other."""
    params = {"q": {"codes": jnp.ones((64, 64)), "scales": jnp.ones((64, 64))}}
    for moments in (None, "8bit"):
        tx = adamx.adam(1e-3, moments=moments)
        updates, state = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates["q"]["codes"], -1e-3, rtol=1e-2)
        assert "mu/q/codes" in adamx.to_numpy(state)


def test_under_shard_map():
    """Parts of whole groups have the directions of one device; others are an error."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4], axis_types=auto)
    tx, spec = adamx.scale_by_adam(moments=EIGHT), jax.P(None, "d")

    def step(size):
        g = jnp.asarray(noise(1, 1.0, size=8 * size)).reshape(8, size)
        specs = optax.ScaleByAdamState(jax.P(), spec, spec)
        update = jax.shard_map(
            lambda g, s: tx.update(g, s), mesh=mesh, in_specs=(spec, specs), out_specs=(spec, specs)
        )
        return g, jax.jit(update)(g, tx.init(g))[0]

    g, found = step(256)
    np.testing.assert_allclose(found, tx.update(g, tx.init(g))[0], rtol=1e-6)
    with pytest.raises(ValueError, match="shard_map: expected parts of whole groups of 32"):
        step(100)
