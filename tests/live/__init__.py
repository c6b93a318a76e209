"""Comparison with other frameworks as they are installed; not among the tests that always run.

Both sides get the same gradients, whatever the parameters are, so that a difference of one step
does not grow by itself.
"""

import jax
import numpy as np
import optax

STEPS = 500
SHAPES = ((4, 3), (5,))


def parameters(seed):
    """Float32 parameters, normal."""
    rng = np.random.default_rng([seed, 0])
    return [rng.standard_normal(shape, np.float32) for shape in SHAPES]


def gradients(seed, scale):
    """Float32 gradients, normal times `scale`, with a leading axis of steps."""
    rng = np.random.default_rng([seed, 1])
    return [np.float32(scale) * rng.standard_normal((STEPS, *s), np.float32) for s in SHAPES]


def trajectory(tx, params, grads):
    """The parameters after each step of an Optax transformation."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])(params, grads)


def assert_close(ours, theirs, lr, bound):
    """Every parameter at every step, within a part of itself, an absolute and one of `lr`."""
    relative, absolute, of_lr = bound
    for x, y in zip(ours, theirs, strict=True):
        assert x.shape == y.shape
        excess = np.abs(x - y) - (relative * np.abs(y) + absolute + of_lr * lr)
        assert excess.max() <= 0, f"step {np.argmax((excess > 0).any(axis=(1, *range(2, x.ndim))))}"
