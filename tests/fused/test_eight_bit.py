"""Moments in 8 bits in the fused step: the codes of the chain, bit for bit."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

PARAMS = {"kernel": (64, 100), "bias": (3,), "wide": (128, 64)}

# By name: arguments of the fused step, and the chain that computes the same.
FORMS = {
    "adam": (adamx.fused_adam(1e-2, moments="8bit"), adamx.adam(1e-2, moments="8bit")),
    "adamw": (
        adamx.fused_adamw(1e-2, weight_decay=0.1, moments="8bit", clip_global_norm=1.0),
        optax.chain(
            optax.clip_by_global_norm(1.0), adamx.adamw(1e-2, weight_decay=0.1, moments="8bit")
        ),
    ),
    "nesterov": (
        adamx.fused_adam(1e-2, nesterov=True, moments="8bit"),
        adamx.adam(1e-2, nesterov=True, moments="8bit"),
    ),
    "keras": (
        adamx.fused_adam(optax.linear_schedule(1e-2, 0, 9), convention="keras", moments="8bit"),
        adamx.adam(optax.linear_schedule(1e-2, 0, 9), convention="keras", moments="8bit"),
    ),
    "coupled": (
        adamx.fused_adam(1e-2, weight_decay=0.1, decoupled=False, moments="8bit"),
        optax.chain(optax.add_decayed_weights(0.1), adamx.adam(1e-2, moments="8bit")),
    ),
}


def gradients(step):
    keys = jax.random.split(jax.random.key(step), len(PARAMS))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, PARAMS.items(), strict=True)
    }


def codes_of(state):
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, adamx.EightBitMoment))
    return [x for x in found if isinstance(x, adamx.EightBitMoment)]


@pytest.mark.parametrize("name", FORMS)
def test_the_step_has_the_codes_of_the_chain(name):
    """And parameters within two units in the last place of 1, where codes have been the same."""
    fused, chain = FORMS[name]
    ours = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    theirs = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    state, chained = fused.init(ours), chain.init(theirs)
    step, update = fused.jit(), jax.jit(chain.update)
    for i in range(6):
        grads = gradients(i) if name != "coupled" else gradients(0)
        ours, state = step(grads, ours, state)
        updates, chained = update(grads, chained, theirs)
        theirs = optax.apply_updates(theirs, updates)
    assert len(codes_of(state)) == 4
    if name in ("adamw", "coupled"):
        # Gradients differ in their last places, by the norm and by parameters: codes hardly do.
        for found, expected in zip(codes_of(state), codes_of(chained), strict=True):
            differ = np.asarray(found.codes, int) - np.asarray(expected.codes, int)
            assert np.mean(differ != 0) < 0.001
    else:
        chex.assert_trees_all_equal(codes_of(state), codes_of(chained))
    for key in PARAMS:
        far = np.abs(np.asarray(ours[key], np.float64) - theirs[key]) > 2.5e-7
        assert np.mean(far) <= (0.001 if name in ("adamw", "coupled") else 0)
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=2e-4)  # a level of 1e-2


def test_a_leaf_without_a_gradient_is_left_alone():
    fused = adamx.fused_adamw(1e-2, moments="8bit")
    params = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    state = fused.init(params)
    params, state = fused.step(gradients(0), params, state)
    after, later = fused.step({**gradients(1), "kernel": None}, params, state)
    chex.assert_trees_all_equal(after["kernel"], params["kernel"])
    chex.assert_trees_all_equal(later[0].mu["kernel"], state[0].mu["kernel"])
    assert np.any(later[0].mu["wide"].codes != state[0].mu["wide"].codes)


def test_low_precision_parameters():
    """Of bfloat16 parameters and gradients, moments in 8 bits: computed in float32."""
    fused = adamx.fused_adam(1e-2, moments="8bit")
    params = jnp.ones((64, 64), jnp.bfloat16)
    grads = jax.random.normal(jax.random.key(0), (64, 64), jnp.bfloat16)
    after, state = fused.jit()(grads, jnp.copy(params), fused.init(params))
    assert after.dtype == jnp.bfloat16
    direction, other = adamx.scale_by_adam(moments="8bit").update(grads, fused.init(params)[0])
    chex.assert_trees_all_equal(state[0], other)
    expected = 1 - 1e-2 * np.asarray(direction, np.float64)
    np.testing.assert_allclose(np.asarray(after, np.float64), expected, rtol=2**-8)


def test_a_state_in_8_bits_needs_the_argument():
    params = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    state = adamx.fused_adam(1e-2, moments="8bit").init(params)
    with pytest.raises(TypeError, match=re.escape('pass moments="8bit" to continue in 8 bits')):
        adamx.fused_adam(1e-2).step(gradients(0), params, state)
    with pytest.raises((TypeError, ValueError), match="8 bits"):
        adamx.pack(state, params)


def test_double_precision_parameters_keep_theirs():
    """If a state was converted for them: moments are rounded, parameters are not."""
    with jax.enable_x64(True):
        params = jnp.full((64, 64), 1 + 1e-12)
        plain, coded = (
            adamx.fused_adam(0.0, mu_dtype="float32"),
            adamx.fused_adam(0.0, moments="8bit"),
        )
        state = adamx.quantize_moments(plain.init(params))
        assert len(codes_of(state)) == 2
        after, _ = jax.jit(coded.step)(jnp.ones_like(params), params, state)
        assert after.dtype == np.float64
        np.testing.assert_array_equal(after, params)
