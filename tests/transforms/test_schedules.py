import jax
import jax.numpy as jnp
import numpy as np

import adamx


def test_equals_keras():
    """`lr * (1 / (1 + decay * iterations))`, in `get_updates` of TensorFlow 1.1's Adam."""
    counts = np.array([0, 1, 7, 1000, 10**6])
    expected = 0.05 * (1.0 / (1.0 + 1e-3 * counts))
    schedule = adamx.inverse_time_decay(0.05, 1e-3)
    np.testing.assert_allclose(schedule(jnp.asarray(counts)), expected, rtol=3e-7)
    np.testing.assert_allclose([schedule(int(c)) for c in counts], expected, rtol=3e-7)


def test_no_decay_is_constant():
    assert adamx.inverse_time_decay(0.1, 0.0)(12345) == np.float32(0.1)


def test_traced_arguments():
    derivative = jax.grad(lambda rate: adamx.inverse_time_decay(2.0, rate)(3))(0.5)
    np.testing.assert_allclose(derivative, -2.0 * 3 / (1 + 0.5 * 3) ** 2, rtol=1e-6)


def test_double_precision():
    with jax.enable_x64(True):
        value = adamx.inverse_time_decay(0.05, 1e-3)(jnp.asarray(7))
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, 0.05 / 1.007, rtol=1e-15)
