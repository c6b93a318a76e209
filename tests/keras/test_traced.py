"""Calls of `adamx.keras.Adam` within a traced function: an error, and no state is lost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.keras import Adam
from tests.keras.keras_network import (
    LAYERS,
    X,
    Y,
    square_loss,
    train,
    unchanged,
)

CHANGES = {
    "build": lambda optimizer, params: optimizer.build(params),
    "get_updates": lambda optimizer, params: optimizer.get_updates(params, {}, square_loss, X, Y),
    "set_weights": lambda optimizer, params: optimizer.set_weights([1, *jax.tree.leaves(params)]),
    "set_weights_of_generator": lambda optimizer, params: optimizer.set_weights(
        iter([1, *jax.tree.leaves(params)])
    ),
    "iterations": lambda optimizer, params: setattr(optimizer, "iterations", sum_as_int(params)),
    "build_by_constants": lambda optimizer, _: optimizer.build(LAYERS),
}
TRANSFORMATIONS = {
    "jit": lambda f, params: jax.jit(f)(params),
    "grad": lambda f, params: jax.grad(f)(params),
    "vmap": lambda f, params: jax.vmap(f)(jax.tree.map(lambda x: jnp.stack([x, x]), params)),
    "scan": lambda f, params: jax.lax.scan(lambda x, _: (x, f(x)), params, length=2),
    "eval_shape": jax.eval_shape,
}
# They do not depend on what is traced, or JAX knows their values already.
KNOWN = {("grad", "iterations"), ("grad", "build_by_constants"), ("vmap", "build_by_constants")}


def sum_as_int(params):
    return sum(jnp.sum(x).astype(int) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_traced_changes(transformation, change):
    if (transformation, change) in KNOWN:
        return
    optimizer = Adam()
    params = train(optimizer, steps=2)

    def changing(params):
        CHANGES[change](optimizer, params)
        return jnp.sum(params["in"]["bias"])

    name = change.partition("_of_")[0].partition("_by_")[0]
    message = f"^{name}: expected a call outside of jit"
    call = partial(TRANSFORMATIONS[transformation], changing, params)
    unchanged(optimizer, ValueError, message, call)
    train(optimizer, params, steps=1)
    assert optimizer.iterations == 3


def test_a_traced_learning_rate():
    optimizer = Adam()
    message = "^lr: .* found a traced array"
    call = partial(jax.jit(lambda x: setattr(optimizer, "lr", x)), 0.5)
    unchanged(optimizer, TypeError, message, call)


def test_traced_gradients():
    gradients = jax.jit(lambda p: Adam().get_gradients(square_loss, p, X, Y))(LAYERS)
    expected = jax.grad(square_loss)(LAYERS, X, Y)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), gradients, expected)
