"""A small network, trained through the Keras facade."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def nonneg(w):
    return w * (w >= 0).astype(w.dtype)


def max_norm_1(w):
    """Keras's MaxNorm(1.0)."""
    norms = jnp.sqrt(jnp.sum(jnp.square(w), axis=0, keepdims=True))
    return w * (jnp.clip(norms, 0, 1) / (1e-7 + norms))


# A network in nested dictionaries, as Flax has them.
LAYERS = {
    "in": {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.zeros(3)},
    "out": {"kernel": jnp.linspace(-0.5, 1, 6).reshape(3, 2), "bias": jnp.full(2, 0.1)},
}
X = jnp.sin(jnp.arange(20.0)).reshape(5, 4)
Y = jnp.cos(jnp.arange(10.0)).reshape(5, 2)
DENSE = {"in/kernel": max_norm_1}
EVERYTHING = {"lr": 0.02, "decay": 0.01, "clipnorm": 0.5, "clipvalue": 0.2, "beta_2": 0.99}


def square_loss(params, x, y):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    return jnp.mean((hidden @ params["out"]["kernel"] + params["out"]["bias"][None] - y) ** 2)


def train(optimizer, params=LAYERS, steps=20, constraints=DENSE):
    for _ in range(steps):
        params = optimizer.get_updates(params, constraints, square_loss, X, Y)
    return params


def assert_same(a, b):
    """The same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def unchanged(optimizer, error, message, call):
    """`call` raises and leaves the optimizer as it was."""
    before = (optimizer.get_config(), optimizer.iterations, optimizer.get_weights())
    with pytest.raises(error, match=message):
        call()
    assert_same((optimizer.get_config(), optimizer.iterations, optimizer.get_weights()), before)
