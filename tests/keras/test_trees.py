"""Trees of parameters that `adamx.keras.Adam` trains."""

import dataclasses
import pickle
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adamx.keras import Adam
from tests.keras.keras_network import (
    X,
    Y,
    assert_same,
    nonneg,
)


@partial(
    jax.tree_util.register_dataclass, data_fields=["kernel", "bias"], meta_fields=["activation"]
)
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    activation: Any


def test_registered_dataclass_is_a_dictionary():
    def loss(layer, x, y):
        return jnp.mean((layer.activation(x @ layer.kernel + layer.bias[None]) - y) ** 2)

    def loss_of_dictionary(layer, x, y):
        return loss(Layer(layer["kernel"], layer["bias"], jnp.tanh), x, y)

    arrays = {"kernel": jnp.linspace(-1, 1, 8).reshape(4, 2), "bias": jnp.zeros(2)}
    layer, one, two = Layer(**arrays, activation=jnp.tanh), Adam(0.1), Adam(0.1)
    for _ in range(5):
        layer = one.get_updates(layer, {"bias": nonneg}, loss, X, Y)
        arrays = two.get_updates(arrays, {"bias": nonneg}, loss_of_dictionary, X, Y)
    assert isinstance(layer, Layer)
    assert_same({"kernel": layer.kernel, "bias": layer.bias}, arrays)


class Net(eqx.Module):
    """An Equinox module with leaves that are functions and Python numbers."""

    mlp: eqx.nn.MLP
    scale: float
    is_scaled: bool

    def __call__(self, x):
        """Scaled, if so."""
        return self.mlp(x) * (self.scale if self.is_scaled else 1.0)


def net_loss(net, x, y):
    return jnp.mean((jax.vmap(net)(x) - y) ** 2)


@pytest.mark.slow
def test_equinox_module():
    net = Net(eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0)), 2.0, True)
    tx = Adam(0.01).transformation
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    state = tx.init(params)
    optimizer = Adam(0.01)
    traced = net
    for _ in range(20):
        grads = eqx.filter_grad(net_loss)(eqx.combine(params, rest), X, Y)
        updates, state = tx.update(grads, state, params)
        params = eqx.apply_updates(params, updates)
        traced = optimizer.get_updates(traced, None, net_loss, X, Y)
    assert traced.mlp.activation is net.mlp.activation
    assert (traced.scale, traced.is_scaled) == (2.0, True)
    ours, theirs = (eqx.filter(x, eqx.is_inexact_array) for x in (traced, params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), ours, theirs)
    assert len(optimizer.get_weights()) == 1 + 2 * 4

    # Its path is the attributes'; a copy's state is restored; what is static counts.
    traced = optimizer.get_updates(traced, {"mlp/layers/0/bias": nonneg}, net_loss, X, Y)
    assert float(traced.mlp.layers[0].bias.min()) >= 0
    assert pickle.loads(pickle.dumps(optimizer)).iterations == 21
    other = eqx.tree_at(lambda net: net.is_scaled, net, False)
    a, b = (optimizer.get_gradients(net_loss, x, X, Y).mlp.layers[0].weight for x in (net, other))
    assert float(jnp.abs(a - b).max()) > 1e-3

    # Functions within the arguments pass as well.
    def distil(student, teacher, x):
        return net_loss(student, x, jax.vmap(teacher)(x))

    assert optimizer.get_updates(traced, {}, distil, net, X).mlp.activation is net.mlp.activation


def test_equal_leaves_of_other_types_are_others():
    def loss(params):
        return jnp.sum(params["w"]) * (1.0 if isinstance(params["scale"], int) else 3.0)

    for scale, expected in [(1, 1.0), (1.0, 3.0), (True, 1.0)]:
        gradients = Adam().get_gradients(loss, {"w": jnp.ones(2), "scale": scale})
        assert gradients["scale"] is None
        np.testing.assert_array_equal(gradients["w"], np.float32([expected, expected]))


def test_flax_module():
    graph, state = nnx.split(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))

    def loss(state, x, y):
        return jnp.mean((nnx.merge(graph, state)(x) - y) ** 2)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        optimizer, before = Adam(0.05), loss(state, X, Y)
        for _ in range(50):
            state = optimizer.get_updates(state, None, loss, X, Y)
        assert type(state) is nnx.State
        assert loss(state, X, Y) < 0.5 * before


def test_complex_parameters_descend():
    optimizer, params = Adam(0.1), {"z": jnp.array([1 + 2j, -1 - 1j], jnp.complex64)}

    def loss(params):
        return jnp.sum(jnp.abs(params["z"] - (1 - 1j)) ** 2)

    for _ in range(300):
        params = optimizer.get_updates(params, None, loss)
    np.testing.assert_allclose(params["z"], 1 - 1j, atol=1e-2)


def test_low_precision_parameters():
    optimizer, params = Adam(0.1, clipnorm=1.0), {"w": jnp.ones(3, jnp.bfloat16)}
    params = optimizer.get_updates(params, {"w": nonneg}, lambda p: jnp.sum(p["w"]))
    assert params["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(params["w"].astype(float), 0.9, atol=4e-3)
    assert optimizer.state.nu["w"].dtype == jnp.float32
