"""Bad input to `adamx.keras.Adam`: a clear error, and all is as it was."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamx.keras import Adam
from tests.keras.keras_network import (
    LAYERS,
    X,
    Y,
    assert_same,
    nonneg,
    square_loss,
    train,
    unchanged,
)
from tests.tensors import Parameter, Tensor

SCHEDULE = optax.constant_schedule(0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "^lr: expected a finite number of at least 0, found -1.0"),
        ({"lr": np.nan}, ValueError, "^lr: .* found nan"),
        ({"lr": 1e39}, ValueError, "^lr: .* below inf when rounded to float32, .* found 1e"),
        (
            {"beta_1": 1.0},
            ValueError,
            "^beta_1: expected a finite number of at least 0 and below 1",
        ),
        (
            {"beta_2": 1 - 1e-9},
            ValueError,
            "^beta_2: .* below 1 when rounded to float32, .* 0.999999999",
        ),
        ({"epsilon": -1e-8}, ValueError, "^epsilon: .* found -1e-08"),
        ({"decay": -0.1}, ValueError, "^decay: .* found -0.1"),
        ({"clipnorm": -1.0}, ValueError, "^clipnorm: .* found -1.0"),
        ({"clipvalue": -1.0}, ValueError, "^clipvalue: .* found -1.0"),
        ({"lr": "fast"}, TypeError, "^lr: expected a real number .* found str"),
        ({"lr": Tensor()}, TypeError, r"^lr: .* found Tensor .*; convert it with float"),
        ({"epsilon": [1e-8]}, TypeError, "^epsilon: .* found list"),
        ({"decay": np.ma.masked_array(0.1)}, TypeError, "^decay: .* found MaskedArray"),
        ({"beta_1": np.array(None)}, TypeError, "^beta_1: .* found ndarray"),
        ({"clipnorm": jax.random.key(0)}, TypeError, "^clipnorm: .* found PRNGKeyArray"),
        ({"lr": 10**400}, ValueError, "^lr: expected a finite number"),
        ({"lr": SCHEDULE}, TypeError, "^lr: .* schedule .* Set optimizer.lr .* pass decay="),
        ({"decay": SCHEDULE}, TypeError, "^decay: .* With a number .* Set optimizer.lr between"),
        ({"beta_2": SCHEDULE}, TypeError, "^beta_2: .* schedule .* Set optimizer.beta_2 between"),
        ({"clipvalue": SCHEDULE}, TypeError, "^clipvalue: .* It must be the same in all steps"),
        ({"lr": {"class_name": "CosineDecay"}}, TypeError, "^lr: .* a schedule .*AdamConfig"),
        ({"lr": jnp.ones(2)}, ValueError, "^lr: expected a scalar, found an array of shape"),
        ({"learning_rate": 0.1}, TypeError, "no argument 'learning_rate': it is called lr here"),
        ({"b1": 0.1}, TypeError, "'b1': it is called beta_1 here"),
        ({"b2": 0.1}, TypeError, "'b2': it is called beta_2 here"),
        ({"eps": 0.1}, TypeError, "'eps': it is called epsilon here"),
        ({"global_clipnorm": 1.0}, TypeError, "'global_clipnorm': it is called clipnorm here"),
        ({"amsgrad": True}, TypeError, "'amsgrad': TensorFlow 1.1 .* adamx.AdamConfig"),
        ({"weight_decay": 0.1}, TypeError, "'weight_decay': TensorFlow 1.1 .* adamx.adamw"),
        (
            {"class_name": "Adam"},
            TypeError,
            "'class_name': from_config takes only the mapping under",
        ),
        (
            {"speed": 11},
            TypeError,
            "no argument 'speed'. Its arguments are lr, beta_1, .*, clipvalue$",
        ),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Adam(**arguments)
    with pytest.raises(error, match=message):
        Adam.from_config(arguments)


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
        ("iterations", np.ma.masked, ValueError, "^iterations: .* found masked"),
        ("lr", SCHEDULE, TypeError, "^lr: .* Set optimizer.lr between steps"),
        ("decay", Tensor(), TypeError, "^decay: .* found Tensor"),
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
        (Unhashable(), TypeError, "^loss: expected a function, .* found an Unhashable"),
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
    message = "^in/bias: .* complex parameter, found int32; convert it, or pass it as an argument"
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


FOREIGN = [
    (Tensor(), "an array of JAX or NumPy, found a torch.Tensor; .* x.detach"),
    (Parameter(), "an array of JAX or NumPy, found a torch.Parameter"),
    (np.ma.masked_array([1.0, 2.0], [0, 1]), "an array without a mask, found a masked array"),
    (np.array([None]), "an array of a dtype that JAX supports, found one of object"),
    (np.array(["a"]), "an array of a dtype that JAX supports, found one of <U1"),
    (np.ones(2, ">f4"), "an array of a dtype that JAX supports, found one of >f4"),
    (jax.ShapeDtypeStruct((2,), jnp.float32), "an array with values, found a ShapeDtypeStruct"),
]


@pytest.mark.parametrize(("array", "message"), FOREIGN)
def test_arrays_that_jax_does_not_take(array, message):
    optimizer = Adam()
    params = train(optimizer, steps=2)
    mixed = params | {"in": {"kernel": array, "bias": jnp.ones(3)}}

    def bias_loss(params, *_):
        return jnp.sum(params["in"]["bias"])

    for where, call in [
        ("^in/kernel", lambda: optimizer.build(mixed)),
        ("^params", lambda: optimizer.build(array)),
        ("^in/kernel", lambda: optimizer.get_updates(mixed, None, bias_loss)),
        ("^in/kernel", lambda: optimizer.get_gradients(bias_loss, mixed)),
        ("^args: 1/x", lambda: optimizer.get_updates(params, None, bias_loss, 1, {"x": array})),
        ("^loss: arguments/0", lambda: optimizer.get_gradients(partial(bias_loss, array), params)),
    ]:
        unchanged(optimizer, TypeError, f"{where}: expected {message}", call)

    message = f"expected {message.partition(';')[0]}; compute it with jax.numpy"
    returning = {"in/bias": lambda _: array}
    for where, constraints, loss in [
        ("^loss", None, lambda _: array),
        ("^constraints: in/bias", returning, bias_loss),
    ]:
        call = partial(optimizer.get_updates, params, constraints, loss)
        unchanged(optimizer, TypeError, f"{where}: {message}", call)


@pytest.mark.parametrize(
    ("params", "found"),
    [(None, "an empty tree"), ({}, "an empty tree"), ("w", "only str"), ([[1.0, 2]], "only float")],
)
def test_no_parameters(params, found):
    optimizer = Adam()
    message = f"^params: expected a tree with arrays to train, found {found}"
    unchanged(optimizer, TypeError, message, lambda: optimizer.build(params))
    call = partial(optimizer.get_updates, params, None, lambda _: 0.0)
    unchanged(optimizer, TypeError, message, call)


UPDATES = r"write get_updates\(params, None, loss, ...\)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.get_updates(LAYERS, square_loss, X, Y), f"^constraints: .* {UPDATES}"),
        (lambda x: x.get_updates(LAYERS, square_loss), f"^constraints: .* {UPDATES}"),
        (lambda x: x.get_updates(LAYERS, X, square_loss), f"^constraints: .* {UPDATES}"),
        (lambda x: x.get_updates(square_loss, LAYERS), f"^loss: .* found none; {UPDATES}"),
        (lambda x: x.get_updates(LAYERS), f"^loss: .* found none; {UPDATES}"),
        (lambda x: x.get_updates(LAYERS, {}, X), f"^loss: .* {UPDATES}"),
        (lambda x: x.get_gradients(LAYERS, square_loss), r"^loss: .* write get_gradients\(loss,"),
    ],
)
def test_arguments_in_another_order(call, message):
    optimizer = Adam()
    unchanged(optimizer, TypeError, message, lambda: call(optimizer))


def test_constraints_are_none_by_default():
    def loss(params):
        return square_loss(params, X, Y)

    expected = Adam().get_updates(LAYERS, None, loss)
    assert_same(Adam().get_updates(LAYERS, loss=loss), expected)
