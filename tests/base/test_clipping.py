"""Clipping by norm beside Optax's, and in 16 bits beside float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.clipping import clip_array, clip_to_norm, global_norm
from adamx.keras import Adam

PROMOTES = True  # Optax's clipping does


def random(shape, dtype, scale=1.0):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape) * scale).astype(dtype)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_float32_equals_optax(max_norm):
    grads = [random((3, 4), "float32"), random(7, "float32")]
    ours = [clip_to_norm(g, global_norm(grads), max_norm) for g in grads]
    clip = optax.clip_by_global_norm(max_norm)
    theirs, _ = clip.update(grads, clip.init(grads))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_16_bits_are_rounded_once(dtype, scale):
    """Squares of 1e3 overflow float16, and factors of 1e-6 underflow it."""
    grads = [random(50, dtype, scale), random((4, 5), dtype, scale)]
    exact = [np.asarray(g, np.float64) for g in grads]
    norm = np.sqrt(sum(np.sum(g**2) for g in exact))
    max_norm = 0.1 * float(norm)
    places = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).smallest_subnormal)
    for g, x in zip(grads, exact, strict=True):
        error = np.abs(
            np.asarray(clip_to_norm(g, global_norm(grads), max_norm), np.float64) - x / 10
        )
        assert np.all(error <= 0.51 * places[0] * np.abs(x / 10) + 0.51 * places[1])
        own = np.sqrt(np.sum(x**2))
        error = np.abs(np.asarray(clip_array(g, 0.1 * float(own)), np.float64) - x / 10)
        assert np.all(error <= 0.51 * places[0] * np.abs(x / 10) + 0.51 * places[1])


@pytest.mark.parametrize("beside", [[], ["float32"], ["bfloat16"]])
def test_float64_is_clipped_in_double_precision(beside):
    """And so is a sum with arrays of less precision in it."""
    with jax.enable_x64(True):
        grads = [random((3, 4), dtype) for dtype in ["float64", *beside]]
        exact = [np.asarray(g, np.float64) for g in grads]
        norm = np.sqrt(sum(np.sum(x**2) for x in exact))
        found = global_norm(grads)
        assert found.dtype == "float64"
        if not beside:  # whose squares are added up in its own precision
            np.testing.assert_allclose(found, norm, rtol=1e-15)
        clipped = clip_to_norm(grads[0], jnp.asarray(norm), 0.1)
        np.testing.assert_allclose(clipped, exact[0] * (0.1 / norm), rtol=1e-15)
        own = np.sqrt(np.sum(exact[0] ** 2))
        np.testing.assert_allclose(clip_array(grads[0], 0.1), exact[0] * (0.1 / own), rtol=1e-15)


@pytest.mark.parametrize("limit", ["clip_norm", "clip_global_norm"])
def test_large_gradients_in_float16(limit):
    """They became 0: the norm was infinite."""
    tx = adamx.AdamConfig(**{limit: 1.0}, b1=0.0).transformation()
    g = jnp.full(100, 300.0, jnp.float16)  # of norm 3,000
    _, state = tx.update(g, tx.init(g), g)
    np.testing.assert_allclose(adamx.to_numpy(state)["mu"].astype(np.float64), 0.1, rtol=1e-3)


def test_large_gradients_in_float16_in_keras():
    optimizer = Adam(clipnorm=1.0)
    params = jnp.ones(100, jnp.float16)
    found = optimizer.get_gradients(lambda p: jnp.sum(p * jnp.float16(300)), params)
    np.testing.assert_allclose(np.asarray(found, np.float64), 0.1, rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_no_number_shows(bad):
    """As in Optax: one gradient that is NaN makes all of them NaN, and is not lost."""
    grads = {"good": jnp.ones(3), "bad": jnp.array([1.0, bad])}
    expected, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    clip = adamx.AdamConfig(clip_global_norm=1.0).clipping()[0]
    found, _ = clip.update(grads, clip.init(grads))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    fused = adamx.fused_adam(1.0, clip_global_norm=1.0)
    params, _ = jax.jit(fused.step)(grads, grads, fused.init(grads))
    assert bool(jnp.isnan(params["good"]).all()) == bool(jnp.isnan(expected["good"]).all())
    assert bool(jnp.isnan(params["bad"]).any())
