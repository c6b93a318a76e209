import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests import reference

PROMOTES = True  # Optax multiplies bfloat16 by float32


def second_moment(tx, grads):
    state = tx.init(grads[0])
    step = jax.jit(
        lambda state, grads: jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), state, grads)[0]
    )
    return np.asarray(step(state, grads).nu, np.float64)


@pytest.mark.slow
def test_bfloat16_second_moment_does_not_stall():
    steps, size = 10_000, 64
    grads = np.random.default_rng(0).standard_normal((steps, size)).astype(jnp.bfloat16)
    *_, exact = reference.adam(grads)
    ours = second_moment(adamx.scale_by_adam(), jnp.asarray(grads))
    theirs = second_moment(optax.scale_by_adam(), jnp.asarray(grads))
    np.testing.assert_allclose(ours, exact.v.astype(np.float64), rtol=1e-5)
    assert np.median(theirs / exact.v) > 2  # what this is about: 2.6 times too large


@pytest.mark.sampled(3)
@pytest.mark.parametrize("convention", ["optax", "torch", "keras"])
def test_bfloat16_parameters_move(convention):
    """As far as the rounding of the parameters themselves lets them: 1 to 0 in steps of 2**-8."""
    params = jnp.ones(3, jnp.bfloat16)
    tx = adamx.adam(2.0**-8, convention=convention)
    state = tx.init(params)
    for _ in range(256):
        updates, state = tx.update(jnp.ones(3, jnp.bfloat16), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(np.asarray(params, float), 0, atol=2**-8)


def test_a_state_of_optax_keeps_its_dtypes():
    """Its bfloat16 second moment too, which goes on stalling: to widen it is up to the user."""
    params = jnp.ones(3, jnp.bfloat16)
    theirs, ours = optax.scale_by_adam(), adamx.scale_by_adam()
    state = theirs.init(params)
    _, state = ours.update(params, state)
    assert state.nu.dtype == jnp.bfloat16
    widened = adamx.set_weights(ours.init(params), adamx.get_weights(state))
    assert widened.nu.dtype == jnp.float32
    np.testing.assert_array_equal(widened.nu, np.asarray(state.nu, np.float32))


@pytest.mark.parametrize("convention", ["optax", "torch", "keras"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_zero_gradients_stay_finite(dtype, convention):
    params = jnp.ones(3, dtype)
    tx = adamx.adam(1e-3, convention=convention)
    state = tx.init(params)
    for g in (0.0, 0.0, 6e-8, 0.0):  # 6e-8 is float16's smallest number
        updates, state = tx.update(jnp.full(3, g, dtype), state, params)
        assert np.all(np.isfinite(updates))
    optax_state = optax.adam(1e-3).init(params)
    optax_updates, _ = optax.adam(1e-3).update(jnp.zeros(3, dtype), optax_state)
    assert bool(jnp.isnan(optax_updates).all()) == (dtype == "float16")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("options", [{}, {"mu_dtype": "float32"}, {"mu_dtype": "bfloat16"}])
@pytest.mark.parametrize("nu_dtype", [None, "float32", "bfloat16"])
def test_dtypes(dtype, options, nu_dtype):
    """Updates keep the gradients' dtype, and the state its own, through init and update."""
    params = {"w": jnp.ones(2, dtype), "z": jnp.ones(2, "complex64"), "s": 1.0}
    mu_dtype = options.get("mu_dtype")
    tx = adamx.scale_by_adam(**options, nu_dtype=nu_dtype, amsgrad=True)
    state = tx.init(params)
    for _ in range(2):
        assert state.mu["w"].dtype == (mu_dtype or dtype)
        assert state.mu["z"].dtype == "complex64"
        assert state.mu["s"].dtype == (mu_dtype or "float32")
        for tree in (state.nu, state.nu_max):
            assert {x.dtype.name for x in tree.values()} == {nu_dtype or "float32"}
        assert not any(x.weak_type for x in jax.tree.leaves(state))
        directions, state = tx.update(params, state)
        assert jax.tree.map(lambda x: x.dtype, directions) == {
            "w": dtype,
            "z": "complex64",
            "s": "float32",
        }
