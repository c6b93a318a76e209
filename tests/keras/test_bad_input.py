"""Bad input to `adamx.keras.Adam`: a clear error, and all is as it was."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.keras import Adam
from tests.keras.keras_network import LAYERS, X, Y, assert_same, nonneg, square_loss, train


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "^lr: expected a finite number of at least 0, found -1.0"),
        ({"lr": np.nan}, ValueError, "^lr: .* found nan"),
        ({"lr": 1e39}, ValueError, "^lr: .* below inf in float32 too, .* found 1e"),
        ({"beta_1": 1.0}, ValueError, "^beta_1: expected a finite number from 0 to below 1"),
        ({"beta_2": 1 - 1e-9}, ValueError, "^beta_2: .* below 1 in float32 too, .* 0.999999999"),
        ({"epsilon": -1e-8}, ValueError, "^epsilon: .* found -1e-08"),
        ({"decay": -0.1}, ValueError, "^decay: .* found -0.1"),
        ({"clipnorm": -1.0}, ValueError, "^clipnorm: .* found -1.0"),
        ({"clipvalue": -1.0}, ValueError, "^clipvalue: .* found -1.0"),
        ({"lr": "fast"}, TypeError, "^lr: expected a real number .* found str"),
        ({"lr": jnp.ones(2)}, ValueError, "^lr: expected a scalar, found an array of shape"),
        ({"learning_rate": 0.1}, TypeError, "no argument 'learning_rate': .* it is lr"),
        ({"b1": 0.1}, TypeError, "'b1': here it is beta_1"),
        ({"b2": 0.1}, TypeError, "'b2': here it is beta_2"),
        ({"eps": 0.1}, TypeError, "'eps': here it is epsilon"),
        ({"global_clipnorm": 1.0}, TypeError, "'global_clipnorm': here it is clipnorm"),
        ({"amsgrad": True}, TypeError, "'amsgrad': TensorFlow 1.1 .* adamx.AdamConfig"),
        ({"weight_decay": 0.1}, TypeError, "'weight_decay': TensorFlow 1.1 .* adamx.adamw"),
        ({"class_name": "Adam"}, TypeError, "'class_name': from_config takes what stands beside"),
        ({"speed": 11}, TypeError, "no argument 'speed'. It has lr, beta_1, .*, clipvalue$"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Adam(**arguments)
    with pytest.raises(error, match=message):
        Adam.from_config(arguments)


def unchanged(optimizer, error, message, call):
    """`call` raises and leaves the optimizer as it was."""
    before = (optimizer.get_config(), optimizer.iterations, optimizer.get_weights())
    with pytest.raises(error, match=message):
        call()
    assert_same((optimizer.get_config(), optimizer.iterations, optimizer.get_weights()), before)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("lr", -1, ValueError, "^lr: .* found -1"),
        ("beta_1", 1.0, ValueError, "^beta_1: .* found 1.0"),
        ("beta_2", None, TypeError, "^beta_2: .* found NoneType"),
        ("decay", float("inf"), ValueError, "^decay: .* found inf"),
        ("iterations", -1, ValueError, "^iterations: expected a whole number .* found -1"),
        ("iterations", 1.5, ValueError, "^iterations: .* found 1.5"),
        ("iterations", 2**31, ValueError, "^iterations: .* found 2147483648"),
        ("iterations", "2", ValueError, "^iterations: .* found '2'"),
        ("learning_rate", 0.1, AttributeError, "learning_rate"),
        ("epsilon", 0.1, AttributeError, "epsilon"),
        ("state", None, AttributeError, "state"),
    ],
)
def test_setting_attributes(name, value, error, message):
    optimizer = Adam()
    train(optimizer, steps=2)
    unchanged(optimizer, error, message, lambda: setattr(optimizer, name, value))


def test_weights_of_another_model():
    optimizer = Adam()
    train(optimizer, steps=2)
    good = optimizer.get_weights()
    wrong_shape = [*good[:2], good[2].T, *good[3:]]
    for weights, message in [
        (good[:-1], r"expected 9 arrays .*count, mu/in/bias.* found 8"),
        ([*good, good[-1]], "expected 9 arrays .* found 10"),
        ([], "expected 9 arrays .* found 0"),
        (wrong_shape, r"mu/in/kernel: expected shape \(4, 3\), found \(3, 4\)"),
        ([np.float32(-1), *good[1:]], "count: expected whole numbers .* found -1"),
    ]:
        unchanged(optimizer, ValueError, message, partial(optimizer.set_weights, weights))
    fresh = Adam()
    assert fresh.get_weights() == []
    assert (fresh.iterations, fresh.state) == (0, None)
    unchanged(fresh, ValueError, r"call build\(params\)", partial(fresh.set_weights, good))
    unchanged(fresh, ValueError, r"call build\(params\)", lambda: setattr(fresh, "iterations", 3))
    fresh.build(LAYERS)
    assert [w.shape for w in fresh.get_weights()] == [w.shape for w in good]
    fresh.set_weights(good)
    assert_same(fresh.get_weights(), good)


@pytest.mark.parametrize(
    ("constraints", "error", "message"),
    [
        (
            {"in/kernl": nonneg},
            ValueError,
            "'in/kernl': expected paths .* 'in/bias', 'in/kernel', 'out/bias', 'out/kernel'",
        ),
        (
            {"in/kernel": jnp.sum},
            ValueError,
            r"^in/kernel: .* keep shape \(4, 3\) and float32, found shape \(\) and float32",
        ),
        (
            {"in/kernel": lambda w: w.astype(jnp.bfloat16)},
            ValueError,
            r"^in/kernel: .* found shape \(4, 3\) and bfloat16",
        ),
        ({"in/kernel": lambda _: None}, ValueError, "^in/kernel: .* found NoneType"),
        ({"in/kernel": 1.0}, TypeError, "in/kernel: expected a function, found float"),
        (square_loss, TypeError, "constraints: expected a mapping .* found function"),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_constraints_that_do_not_fit(constraints, error, message, steps):
    optimizer = Adam()
    params = train(optimizer, steps=steps)
    kept = jax.tree.map(np.array, params)
    call = partial(optimizer.get_updates, params, constraints, square_loss, X, Y)
    for _ in range(2):
        unchanged(optimizer, error, message, call)
    assert_same(jax.tree.map(np.array, params), kept)


class Unhashable:
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __call__(self, params):
        """A loss."""
        return jnp.sum(params["in"]["kernel"])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda p: p["in"]["bias"], ValueError, r"^loss: expected a scalar, .* shape \(3,\)"),
        (lambda p: (jnp.sum(p["in"]["bias"]), 1), TypeError, "^loss: .* found tuple"),
        (lambda _: None, TypeError, "^loss: .* found NoneType"),
        (lambda p: p["in"]["bias"].sum().astype(int), TypeError, "^loss: .* found int32"),
        (
            lambda p: p["in"]["bias"].sum().astype(jnp.complex64),
            TypeError,
            "^loss: .* found complex64",
        ),
        (3.0, TypeError, "^loss: expected a function, found float"),
        (Unhashable(), TypeError, "^loss: expected something hashable"),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_losses_that_do_not_fit(loss, error, message, steps):
    optimizer = Adam()
    params = train(optimizer, steps=steps)
    unchanged(optimizer, error, message, lambda: optimizer.get_updates(params, None, loss))
    unchanged(optimizer, error, message, lambda: optimizer.get_gradients(loss, params))


def test_parameters_that_do_not_fit():
    optimizer = Adam()
    integers = {"in": {"kernel": jnp.ones(2), "bias": jnp.arange(3)}}
    message = "in/bias: expected a floating-point or complex parameter, found int32"
    for call in (
        lambda: optimizer.build(integers),
        lambda: optimizer.get_updates(integers, None, Unhashable.__call__),
        lambda: optimizer.get_gradients(len, integers),
    ):
        unchanged(optimizer, TypeError, message, call)
    unchanged(
        optimizer, TypeError, "params: .* arrays to train", lambda: optimizer.build({"w": 1.0})
    )
    unhashable = {"w": jnp.ones(2), "note": {1, 2}}
    unchanged(optimizer, TypeError, "params: note: .* set", lambda: optimizer.build(unhashable))

    params = train(optimizer, steps=2)
    other = params | {"in": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros((1, 3))}}

    def loss(params, x, y):
        bias = params["in"]["bias"].reshape(-1)
        return square_loss(params | {"in": params["in"] | {"bias": bias}}, x, y)

    unchanged(
        optimizer,
        ValueError,
        r"^in/bias: expected a gradient of shape \(3,\)",
        lambda: optimizer.get_updates(other, None, loss, X, Y),
    )
    unchanged(
        optimizer,
        ValueError,
        "missing: in/bias, in/kernel",
        lambda: optimizer.get_updates(
            {"out": params["out"]}, None, lambda p: jnp.sum(p["out"]["bias"])
        ),
    )


@pytest.mark.parametrize("steps", [0, 2])
def test_a_traced_step(steps):
    optimizer = Adam()
    params = train(optimizer, steps=steps)

    @jax.jit
    def step(params):
        return optimizer.get_updates(params, None, square_loss, X, Y)

    unchanged(optimizer, ValueError, "expected a call outside of jit", lambda: step(params))
    gradients = jax.jit(lambda p: Adam().get_gradients(square_loss, p, X, Y))(params)
    expected = jax.grad(square_loss)(params, X, Y)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), gradients, expected)
