"""`adamx.keras.Adam` against recorded runs of TensorFlow 1.1, and what it promises beyond them."""

import copy
import json
import pickle
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.keras import Adam, program
from tests.golden import inputs
from tests.keras.keras_network import (
    EVERYTHING,
    LAYERS,
    X,
    Y,
    assert_same,
    max_norm_1,
    nonneg,
    square_loss,
    train,
)
from tests.test_golden import CLOSE, TIGHT, TRAJECTORIES, recorded

TF11 = sorted(path.stem for path in TRAJECTORIES.glob("tf11_*.npz"))

# Those with a learning rate of 0.02 and 0.05 move by far more than the others.
FAR = {"tf11_clip_both", "tf11_maxnorm_kernel", "tf11_nonneg_bias"}


class Params(NamedTuple):
    """The parameters of the recorded runs, in their order."""

    kernel: Any
    bias: Any
    conv: Any


def assert_close(name, params, data, t, lr):
    """Like the recorded ones after step t."""
    relative, absolute, of_lr = TIGHT if name in FAR else CLOSE
    for ours, path in zip(params, inputs.SHAPES, strict=True):
        theirs = data[f"step{t}.params.{path}"]
        bound = relative * np.abs(theirs) + absolute + of_lr * lr
        np.testing.assert_array_less(np.abs(ours - theirs), bound, f"{path}, step {t}")


CONSTRAINTS = {"nonneg": nonneg, "max_norm_1": max_norm_1}


def linear(params, grads):
    """A loss with these gradients."""
    return sum(jnp.sum(p * g) for p, g in zip(params, grads, strict=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", TF11)
def test_recorded_runs_of_tensorflow(name):
    meta, data = recorded(name)
    case = meta["case"]
    optimizer = Adam(**case["config"])
    config = optimizer.get_config()
    assert config.keys() == meta["config"].keys()
    for key, value in meta["config"].items():
        assert config[key] == case["config"].get(key, config[key])
        assert np.float32(config[key]) == np.float32(value)
    assert len(optimizer.get_weights()) == meta["weights_before_get_updates"]

    constraints = {k: CONSTRAINTS[v] for k, v in case.get("constraints", {}).items()}
    params = Params(*map(jnp.asarray, inputs.initial_params(case["seed"])))
    gradients = inputs.gradients(case["seed"], case["kind"])
    for t, grads in enumerate(gradients, start=1):
        params = optimizer.get_updates(params, constraints, linear, grads)
        if t not in inputs.STEPS:
            continue
        assert_close(name, params, data, t, optimizer.lr)
        weights = optimizer.get_weights()
        assert [list(w.shape) for w in weights] == meta["weight_shapes"]
        assert optimizer.iterations == weights[0] == data[f"step{t}.weights.0"] == t
        for i, ours in enumerate(weights[1:], start=1):
            theirs = data[f"step{t}.weights.{i}"]
            assert np.abs(ours - theirs).max() <= 2.5e-6 * np.abs(theirs).max(), f"{i}, step {t}"


def test_all_recorded_runs_are_here():
    assert len(TF11) == 11


@pytest.mark.parametrize("name", ["tf11_decay", "tf11_clip_both"])
def test_continues_from_weights_that_tensorflow_wrote(name):
    meta, data = recorded(name)
    case, start, end = meta["case"], 100, 1000
    params = Params(*(jnp.asarray(data[f"step{start}.params.{path}"]) for path in inputs.SHAPES))
    optimizer = Adam.from_config(meta["config"])
    optimizer.build(params)
    optimizer.set_weights([data[f"step{start}.weights.{i}"] for i in range(7)])
    assert optimizer.iterations == start
    for grads in list(inputs.gradients(case["seed"], case["kind"]))[start:]:
        params = optimizer.get_updates(params, None, linear, grads)
    assert_close(name, params, data, end, optimizer.lr)


def test_clipped_gradients():
    grads = Params(jnp.full((3, 4), 2.0), jnp.zeros(5), jnp.full((2, 2, 3, 4), -2.0))
    norm = np.sqrt(4.0 * (12 + 48))
    params = jax.tree.map(jnp.ones_like, grads)
    for config, expected in [
        ({}, 2.0),
        ({"clipnorm": 3.0}, 2.0 * 3.0 / norm),
        ({"clipnorm": 1e3}, 2.0),
        ({"clipvalue": 0.7}, 0.7),
        ({"clipnorm": 3.0, "clipvalue": 0.3}, 0.3),  # the norm first: its result is 0.387
        ({"clipnorm": None, "clipvalue": 0}, 2.0),
    ]:
        optimizer = Adam(**config)
        clipped = optimizer.get_gradients(linear, params, grads)
        assert type(clipped) is Params
        np.testing.assert_allclose(clipped.kernel, np.full((3, 4), expected), rtol=1e-6)
        np.testing.assert_allclose(clipped.conv, np.full((2, 2, 3, 4), -expected), rtol=1e-6)
        assert optimizer.state is None


@pytest.mark.slow
def test_same_as_its_transformation():
    optimizer = Adam(**EVERYTHING)
    through_facade = train(optimizer, steps=200, constraints=None)

    tx = optimizer.transformation
    params, state = LAYERS, tx.init(LAYERS)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p))
    for _ in range(200):
        updates, state = step(jax.grad(square_loss)(params, X, Y), state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=5e-7), through_facade, params)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, LAYERS)
    assert min(jax.tree.leaves(moved)) > 0.05


def test_one_compilation_whatever_is_set():
    traces = []

    def loss(params, x, y):
        traces.append(None)
        return square_loss(params, x, y)

    optimizer, params, constraints = Adam(lr=0.01), LAYERS, {}
    compiled = program.step._cache_size()
    for t in range(500):
        if t in (100, 300):
            optimizer.lr = optimizer.lr / 2
        if t == 400:
            optimizer.beta_1, optimizer.beta_2, optimizer.decay = 0.8, 0.99, 0.1
            optimizer.iterations = 7
        constraints = dict(reversed(list({"in/kernel": nonneg, "out/bias": nonneg}.items())))
        params = optimizer.get_updates(params, constraints, loss, X, Y)
    assert len(traces) == 1
    assert program.step._cache_size() - compiled == 1
    other = copy.deepcopy(optimizer)
    other.get_updates(params, constraints, loss, X, Y)
    Adam().get_updates(LAYERS, constraints, loss, X, Y)
    assert len(traces) == 1


@pytest.mark.parametrize("kind", ["numpy", "weak", "committed"])
def test_one_compilation_whatever_the_arrays(kind):
    make = {
        "numpy": lambda: np.ones(3, np.float32),
        "weak": lambda: jnp.full(3, 0.5),
        "committed": lambda: jax.device_put(jnp.ones(3), jax.devices()[1]),
    }[kind]
    traces = []

    def loss(params, _):
        traces.append(None)
        return jnp.sum(params["w"] ** 2)

    optimizer, params = Adam(), {"w": make()}
    compiled = program.step._cache_size()
    for t in range(3):
        params = optimizer.get_updates(params, None, loss, float(t))
    assert (len(traces), program.step._cache_size() - compiled) == (1, 1)
    assert params["w"].devices() == {jax.devices()[1 if kind == "committed" else 0]}


def test_what_is_set_takes_effect():
    """Against the formula: with constant gradients of 1 every step is the learning rate."""
    optimizer, params = Adam(lr=0.5), {"w": jnp.zeros(2)}

    def step(params):
        return optimizer.get_updates(params, None, lambda p: jnp.sum(p["w"]))

    after = step(params)
    np.testing.assert_allclose(after["w"], -0.5, rtol=1e-6)
    optimizer.lr = np.float32(0.125)
    np.testing.assert_allclose(step(after)["w"], -0.625, rtol=1e-6)
    assert optimizer.get_config()["lr"] == optimizer.lr == 0.125
    optimizer.lr = jnp.asarray(0.25)
    optimizer.decay = 0.5
    optimizer.iterations = 6
    assert optimizer.iterations == optimizer.state.count == optimizer.get_weights()[0] == 6
    # All moments that matter are those of gradients of 1, after two steps and not after six.
    m, v = 1 - 0.9**3, 1 - 0.999**3
    size = 0.25 / (1 + 0.5 * 6) * np.sqrt(1 - 0.999**7) / (1 - 0.9**7) * m / np.sqrt(v)
    np.testing.assert_allclose(step(after)["w"], -0.5 - size, rtol=1e-5)
    assert optimizer.get_config() == Adam(lr=0.25, decay=0.5).get_config()


def test_config_round_trip():
    optimizer = Adam(**EVERYTHING)
    config = optimizer.get_config()
    assert config == {"beta_1": 0.9, "epsilon": 1e-8} | EVERYTHING
    through_json = json.loads(json.dumps(config))
    kept = dict(through_json)
    again = Adam.from_config(through_json)
    assert through_json == kept
    assert again.get_config() == config
    assert_same(train(optimizer), train(again))
    config["lr"] = 5.0
    assert optimizer.lr == 0.02
    assert repr(Adam(0.5, clipnorm=1)) == (
        "Adam(lr=0.5, beta_1=0.9, beta_2=0.999, decay=0.0, epsilon=1e-08, clipnorm=1.0)"
    )
    assert type(Adam(lr=np.float32(0.5)).get_config()["lr"]) is float


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_independent(duplicate):
    optimizer = Adam(**EVERYTHING)
    params = train(optimizer)
    other = duplicate(optimizer)
    before = other.get_weights()
    expected = train(optimizer, params)
    optimizer.lr, optimizer.iterations = 0.5, 3
    assert other.lr == 0.02
    assert other.iterations == 20
    assert_same(other.get_weights(), before)
    assert_same(train(other, params), expected)
    assert duplicate(Adam()).state is None


def test_what_is_handed_out_is_not_the_state():
    optimizer = Adam()
    params = train(optimizer, steps=2)
    before = optimizer.get_weights()
    for weight in optimizer.get_weights():
        weight[...] = 7
    optimizer.state.mu["in"]["kernel"] = None
    optimizer.get_config()["lr"] = 7.0
    assert_same(optimizer.get_weights(), before)
    assert isinstance(optimizer.state, adamx.AdamState)
    assert jax.tree.structure(optimizer.state.mu) == jax.tree.structure(params)


RESUME = """
import pickle, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from adamx.keras import Adam
from tests.keras.test_optimizer import train
with open(sys.argv[1] + "/saved.pickle", "rb") as file:
    pickled, config, weights, params = pickle.load(file)
again = Adam.from_config(config)
again.build(params)
again.set_weights(weights)
results = [(train(x, params), x.get_weights()) for x in (pickled, again)]
with open(sys.argv[1] + "/resumed.pickle", "wb") as file:
    pickle.dump(jax.tree.map(np.asarray, results), file)
"""


@pytest.mark.slow
def test_restored_in_a_new_process(tmp_path):
    optimizer = Adam(**EVERYTHING)
    params = jax.tree.map(np.asarray, train(optimizer))
    saved = (optimizer, optimizer.get_config(), optimizer.get_weights(), params)
    (tmp_path / "saved.pickle").write_bytes(pickle.dumps(saved))
    subprocess.run([sys.executable, "-c", RESUME, str(tmp_path)], check=True)
    results = pickle.loads((tmp_path / "resumed.pickle").read_bytes())
    expected = jax.tree.map(np.asarray, (train(optimizer, params), optimizer.get_weights()))
    for result in results:
        assert_same(result, expected)
