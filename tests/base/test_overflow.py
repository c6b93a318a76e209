"""Gradients so large that their square is infinite: steps are finite wherever Optax's are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.numerics import moving_average

PROMOTES = True  # Optax's parts do

LARGEST = float(np.finfo(np.float32).max)
GRADIENTS = {
    "a square overflows": [1.0, 1e20, 1.0, 1.0, 1e20],
    "the largest number": [LARGEST] * 3,
    "opposite": [LARGEST, -LARGEST, LARGEST, -LARGEST],
    "nearly opposite": [-3e38, 3e38, -2e38, 1e38],
    "zeros after": [1e38, 0.0, -1.0, 0.0],
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("b1", "b2"), [(0.0, 0.0), (0.1, 0.1), (0.5, 0.5), (0.9, 0.4), (0.4, 0.999), (0.9, 0.999)]
)
def test_steps_are_finite(b1, b2):
    """Optax's own are NaN for some of these gradients, and 0 for most."""
    kinds = itertools.product(("optax", "torch", "keras"), (False, True), (False, True))
    for convention, amsgrad, nesterov in kinds:
        arguments = {"b1": b1, "b2": b2, "convention": convention, "amsgrad": amsgrad}
        fused = adamx.fused_adam(1.0, **arguments)
        if nesterov and convention == "optax":
            arguments |= {"nesterov": True}
        tx = adamx.scale_by_adam(**arguments)
        update, step = jax.jit(tx.update), jax.jit(fused.step)
        grads = jnp.zeros(len(GRADIENTS))
        state, fused_state = tx.init(grads), fused.init(grads)
        theirs = optax.scale_by_adam(b1, b2)
        their_state = theirs.init(grads)
        for row in itertools.zip_longest(*GRADIENTS.values(), fillvalue=0.0):
            grads = jnp.array(row)
            direction, state = update(grads, state)
            params, fused_state = step(grads, jnp.zeros_like(grads), fused_state)
            expected, their_state = theirs.update(grads, their_state)
            # Divided by eps, where only the last gradient counts and is 0, m is beyond all numbers.
            allowed = jnp.isinf(expected) | ((grads == 0) & (b2 == 0))
            assert bool((jnp.isfinite(direction) | allowed).all())
            assert bool((jnp.isfinite(params) | allowed).all())
            assert bool(jnp.isfinite(state.mu).all() & ~jnp.isnan(state.nu).any())
            if b2 >= 0.5:
                np.testing.assert_array_equal(jnp.isinf(state.nu), jnp.isinf(their_state.nu))
            if b2 > 0:  # with 0, XLA knows the root of g^2 as |g|
                np.testing.assert_array_equal(jnp.where(jnp.isinf(state.nu), direction, 0), 0)


def test_infinite_gradients_show():
    tx = adamx.scale_by_adam()
    for g in (np.inf, -np.inf, np.nan):
        direction, _ = tx.update(jnp.full(1, g), tx.init(jnp.zeros(1)))
        assert bool(jnp.isnan(direction).all())


@pytest.mark.parametrize("b", [0.0, 0.3, 0.5, 0.9])
def test_the_average_of_opposite_numbers(b):
    x, mean = np.float32([1, -1, 0.5, 1]) * LARGEST, np.float32([-1, 1, -1, 1]) * LARGEST
    expected = b * mean.astype(float) + (1 - b) * x.astype(float)
    for decay in (b, jnp.float32(b)):
        found = moving_average(jnp.asarray(mean), jnp.asarray(x), decay, 1 - decay)
        found = np.asarray(found, float)
        np.testing.assert_allclose(found, expected, rtol=2**-23, atol=2**-24 * LARGEST)
