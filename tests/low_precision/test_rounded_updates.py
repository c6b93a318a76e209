"""Parameters rounded at random, as the last part of a chain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx
from adamx.base import random_bits
from tests.low_precision.rounded_runs import (
    apply_updates,
    finite,
    make_step,
    neighbours,
    rounded_update,
)


@jax.jit
def rounded_and_applied(key, updates, params):
    """The program that people run: XLA sees the difference and the sum together."""
    return apply_updates(params, rounded_update(key, updates, params))


rows = st.tuples(finite, finite, st.floats(0, 2**-6, width=32), st.booleans())


@pytest.mark.slow
@given(
    rows=st.lists(rows, min_size=8, max_size=8),
    dtype=st.sampled_from(["bfloat16", "float16"]),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=300, deadline=None)
def test_apply_updates_gives_the_rounded_sum(rows, dtype, seed):
    """Exactly; also where the update cancels all but a small part of the parameter."""
    p, u, part, cancels = (np.array(column) for column in zip(*rows, strict=True))
    with np.errstate(over="ignore"):
        p = p.astype(np.float32).astype(dtype)
        wide = np.where(np.isfinite(p) & (np.abs(p) > 2.0**-100), p.astype(np.float32), 0)
        u = np.where(cancels, -wide * (1 - part), u).astype(np.float32)
        u = np.where(np.abs(u) > 2.0**-100, u, 0)  # XLA takes the smallest for 0
        s = wide + u
        nearest = s.astype(dtype)
    params, key = jnp.asarray(wide.astype(dtype)), jax.random.key(seed)
    updates = rounded_update(key, jnp.asarray(u), params)
    assert updates.dtype == "float32"
    found = np.asarray(apply_updates(params, updates)).astype(np.float32)
    in_one = np.asarray(rounded_and_applied(key, jnp.asarray(u), params)).astype(np.float32)
    np.testing.assert_array_equal(found, in_one)

    leaf_key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    data = jax.random.key_data(leaf_key)
    rounded = random_bits.round_at_random(jnp.asarray(s), data, jnp.dtype(dtype))
    np.testing.assert_array_equal(found, np.asarray(rounded, np.float32))
    below, above = neighbours(s, dtype)
    small = np.abs(s) <= float(jnp.finfo(dtype).max)
    assert np.all(np.where(small, (found == below) | (found == above), found == nearest))


@pytest.mark.slow
def test_a_stalled_parameter_moves_by_the_right_mean():
    """1 + 1e-4 is 1 in bfloat16. At random it moves; 10,000 parameters, 20 steps, one key."""
    steps, size, u = 20, 10_000, 1e-4
    params = {"at_random": jnp.ones(size, jnp.bfloat16), "nearest": jnp.ones(size, jnp.bfloat16)}
    tx = adamx.stochastic_round(0)
    state, step = tx.init(params["at_random"]), jax.jit(tx.update)
    updates = jnp.full(size, u)
    for _ in range(steps):
        rounded, state = step(updates, state, params["at_random"])
        params["at_random"] = apply_updates(params["at_random"], rounded)
        params["nearest"] = apply_updates(params["nearest"], updates)
    np.testing.assert_array_equal(np.asarray(params["nearest"], float), 1.0)
    moved = np.asarray(params["at_random"], float) - 1
    # Each step is by 2**-7 with probability u / 2**-7, whatever came before (all stay below 2).
    place = 2.0**-7
    deviation = place * np.sqrt(steps * size * (u / place) * (1 - u / place)) / size
    assert abs(moved.mean() - steps * u) < 3 * deviation


@pytest.mark.slow
def test_around_a_wrapper_that_computes_the_parameters():
    """The mean of 4,000 parameters is that of the run in float32; inside a third would be lost."""
    size, steps, grads = 4000, 60, jnp.full(4000, 0.1)
    lookahead = optax.lookahead(adamx.adam(1e-3), 3, 0.5)

    def trained(dtype, tx):
        params = optax.LookaheadParams.init_synced(jnp.ones(size, dtype))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (apply_updates(params, updates), state), None

        with jax.numpy_dtype_promotion("standard"):
            (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, steps)
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]

    expected = trained("float32", lookahead)
    found = trained("bfloat16", optax.chain(lookahead, adamx.stochastic_round(0)))
    for mine, wide in zip(found, expected, strict=True):
        assert abs(mine.mean() - wide.mean()) < 3 * mine.std() / np.sqrt(size)
        assert 3 * mine.std() / np.sqrt(size) < 0.02 * (1 - wide.mean())


@pytest.mark.slow
def test_a_small_weight_decay_needs_gradients_in_float32():
    """The same run with and without decay; the difference is what the decay did."""
    size, steps, rate, decay, start = 20_000, 100, 1e-3, 0.01, 0.05
    draws = np.random.default_rng(0).standard_normal((steps, size)).astype(jnp.bfloat16)
    params = jnp.full(size, start, jnp.bfloat16)

    def trained_mean(grads, decay):
        tx = optax.chain(adamx.adamw(rate, weight_decay=decay), adamx.stochastic_round(0))
        carry = (params, tx.init(params))
        with jax.numpy_dtype_promotion("standard"):
            (after, _), _ = jax.lax.scan(lambda c, g: (make_step(tx)(*c, g), None), carry, grads)
        return np.asarray(after, np.float64).mean() / float(params[0])

    for dtype, low, high in (("float32", 0.97, 1.03), ("bfloat16", 0.65, 0.8)):
        grads = jnp.asarray(draws).astype(dtype)
        shrunk = trained_mean(grads, 0.0) - trained_mean(grads, decay)
        assert low < shrunk / (rate * decay * steps) < high


def test_other_leaves_pass():
    params = {
        "none": None,
        "wide": jnp.ones(3),
        "complex": jnp.ones(3, jnp.complex64),
        "number": 1.0,
        "narrow": jnp.ones(3, jnp.bfloat16),
        "frozen": jnp.ones(3, jnp.bfloat16),
    }
    updates = params | {"narrow": jnp.full(3, 1e-3, jnp.bfloat16), "frozen": None}
    tx = adamx.stochastic_round(0)
    found, state = tx.update(updates, tx.init(params), params)
    for name in ("none", "wide", "complex", "number", "frozen"):
        assert found[name] is updates[name]
    assert found["narrow"].dtype == "float32"
    assert state.count == 1
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_bits_depend_on_the_place_in_the_tree_alone():
    """A leaf that does not train for a step leaves the others' bits as they are."""
    tx = adamx.stochastic_round(0)
    params = [jnp.zeros(100, jnp.bfloat16)] * 3
    updates = [jnp.full(100, 1.003)] * 3
    whole, _ = tx.update(updates, tx.init(params), params)
    part, _ = tx.update([None, updates[1], None], tx.init(params), params)
    np.testing.assert_array_equal(whole[1], part[1])
    for mine, other in itertools.combinations(whole, 2):
        assert np.any(np.asarray(mine) != np.asarray(other))


def test_derivatives_are_those_of_the_sum():
    params, gradient = jnp.array([1.0, -2.0, 0.5], jnp.bfloat16), jnp.array([0.3, 0.2, -0.7])

    def after(rate, params):
        tx = optax.chain(optax.scale(-rate), adamx.stochastic_round(0))
        updates, _ = tx.update(gradient, tx.init(params), params)
        return jnp.sum(apply_updates(params, updates).astype(jnp.float32))

    by_rate, by_params = jax.jit(jax.grad(after, (0, 1)))(jnp.float32(1e-3), params)
    np.testing.assert_allclose(by_rate, -np.sum(np.asarray(gradient)), rtol=1e-2)  # of bfloat16
    np.testing.assert_array_equal(np.asarray(by_params, float), 1.0)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("nu_key", [None, 0])
def test_steps_are_exported_for_all_sizes(nu_key):
    adam = adamx.adam(0.1, nu_dtype="bfloat16", nu_key=nu_key)
    tx = optax.chain(adam, adamx.stochastic_round(0))

    def step(p):
        return tx.update(p, tx.init(p), p)[0]

    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(step))(jax.ShapeDtypeStruct((n,), jnp.bfloat16))
    params = jnp.linspace(-1, 1, 5, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(exported.call(params), jax.jit(step)(params))
