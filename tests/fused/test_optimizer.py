"""`FusedOptimizer` as an object: pickles and copies, and what it says where it does not fit."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import adamx
from adamx.base.errors import InvalidType

PROMOTES = True  # Optax's wrappers do

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.ones(3)}


def linear_decay(count):
    return 0.1 / (1 + count)


OPTIMIZERS = [
    adamx.fused_adam(0.1),
    adamx.fused_adam(None, packed=True, amsgrad=True, nu_dtype="bfloat16"),
    adamx.fused_adam(0.1, weight_decay=0.1, decoupled=False, mask={"w": True, "b": False}),
    adamx.fused_adamw(linear_decay, 0.8, weight_decay=linear_decay, clip_global_norm=0.5),
    adamx.fused_adamw(jnp.float32(0.1), convention="keras", mu_dtype=jnp.bfloat16),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda x, n=n: pickle.loads(pickle.dumps(x, n)) for n in (2, 5)),
        lambda x: adamx.FusedOptimizer(*pickle.loads(pickle.dumps(tuple(x)))),
    ],
)
def test_copies(optimizer, duplicate):
    results = []
    for each in (optimizer, duplicate(optimizer)):
        assert isinstance(each, adamx.FusedOptimizer)
        params, state = PARAMS, each.init(PARAMS)
        for _ in range(2):
            params, state = each.step(PARAMS, params, state)
        results.append((params, state))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_pair_of_other_functions_stays_what_it_is():
    optimizer = OPTIMIZERS[0]._replace(init=linear_decay)
    assert pickle.loads(pickle.dumps(optimizer)).init is linear_decay


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(2))


def update_nnx(optimizer):
    model = Model()
    nnx.Optimizer(model, optimizer, wrt=nnx.Param).update(model, nnx.state(model))


def update_train_state(optimizer):
    TrainState.create(apply_fn=None, params=PARAMS, tx=optimizer).apply_gradients(grads=PARAMS)


WRAPPERS = {
    "chain": lambda inner: optax.chain(optax.clip(1.0), inner),
    "named_chain": lambda inner: optax.named_chain(("adam", inner)),
    "masked": lambda inner: optax.masked(inner, True),
    "partition": lambda inner: optax.partition({"a": inner}, "a"),
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 2),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 2),
    "itself": lambda inner: inner,
    "inject_hyperparams": lambda _: optax.inject_hyperparams(adamx.fused_adam)(0.1),
}


def wrapped(wrap):
    def update(optimizer):
        tx = wrap(optimizer)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)

    return update


UPDATES = {name: wrapped(wrap) for name, wrap in WRAPPERS.items()}
UPDATES |= {"nnx": update_nnx, "TrainState": update_train_state}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("packed", [False, True])
def test_within_what_calls_update(update, packed):
    message = r"update: expected an Optax.*\.step\(grads, params, state\).* use adamx\.adam or"
    with pytest.raises(InvalidType, match=message):
        update(adamx.fused_adam(0.1, packed=packed))


@pytest.mark.parametrize("build", [adamx.fused_adam, adamx.fused_adamw])
@pytest.mark.parametrize("name", ["b1", "b2", "eps", "eps_root", "clip_global_norm"])
def test_a_schedule_of_what_takes_none(build, name):
    """The advice is one that can be followed here, and so it is."""
    with pytest.raises(TypeError, match=rf"{name}: .* argument of the function that you jit") as e:
        build(0.1, **{name: optax.constant_schedule(0.9)})
    assert "inject_hyperparams" not in str(e.value)

    @jax.jit
    def step(number, params, state):
        return build(0.1, **{name: number}).step(PARAMS, params, state)

    optimizer = build(0.1, **{name: 0.5})
    state = optimizer.init(PARAMS)
    found, expected = step(0.5, PARAMS, state), jax.jit(optimizer.step)(PARAMS, PARAMS, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_numbers_of_too_little_precision():
    with pytest.raises(TypeError, match=r"b2: .*found bfloat16.* pass a Python number$"):
        adamx.fused_adamw(0.1, b2=jnp.bfloat16(0.9))


@pytest.mark.parametrize("packed", [False, True])
def test_leaves_that_do_not_train(packed):
    """The advice for an integer: None in its place."""
    optimizer = adamx.fused_adamw(0.1, packed=packed)
    tree = {"steps": jnp.arange(3), "w": jnp.ones(2)}
    message = "steps: expected a floating-point .* found int32; .* replace it by None"
    with pytest.raises(TypeError, match=message):
        optimizer.init(tree)
    state = optimizer.init(tree | {"steps": None})
    with pytest.raises(TypeError, match=message):
        optimizer.step(tree, tree, state)
    trained = tree | {"steps": None}
    after, _ = optimizer.step(trained, trained, state)
    np.testing.assert_allclose(after["w"], 0.9 - 0.1 * 1e-4, rtol=1e-6)
