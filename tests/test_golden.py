"""Recorded runs of the original frameworks, see golden/README.md."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import adamx
from tests.golden import inputs
from tests.keras.keras_network import max_norm_1, nonneg

TRAJECTORIES = Path(__file__).parent / "golden" / "trajectories"

# What parameters may differ by: a part of themselves, an absolute one, one of the learning rate.
CLOSE = (5e-7, 2.5e-7, 1.25e-5)
TIGHT = (2e-6, 1e-6, 5e-5)
OUTER = (1e-5, 2e-6, 2e-4)

CONSTRAINTS = {None: lambda w: w, "nonneg": nonneg, "max_norm_1": max_norm_1}


def recorded(name):
    with np.load(TRAJECTORIES / f"{name}.npz") as file:
        data = dict(file)
    return json.loads(str(data.pop("meta"))), data


def trajectory(tx, case):
    """Parameters and state after each step, both with a leading axis of steps."""
    grads = [np.stack(g) for g in zip(*inputs.gradients(case["seed"], case["kind"]), strict=True)]
    params = [jax.numpy.asarray(p) for p in inputs.initial_params(case["seed"])]

    named = case.get("constraints", {})
    constraints = [CONSTRAINTS[named.get(name)] for name in inputs.SHAPES]

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        params = [constraint(p) for constraint, p in zip(constraints, params, strict=True)]
        return (params, state), (params, state)

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])(params, grads)


def float32(config):
    """The hyperparameters as the float32 variables in which Keras held them until version 2.10."""
    return {name: np.float32(value) for name, value in config.items()}


def tf11(config):
    config = {"lr": 1e-3, "decay": 0.0, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8} | config
    c = float32(config)
    schedule = adamx.inverse_time_decay(c["lr"], c["decay"])
    return adamx.adam(schedule, c["beta_1"], c["beta_2"], config["epsilon"], convention="keras")


def keras_legacy(arguments):
    defaults = {"learning_rate": 1e-3, "decay": 0.0, "epsilon": 1e-7, "amsgrad": False}
    a = defaults | arguments
    schedule = adamx.inverse_time_decay(np.float32(a["learning_rate"]), np.float32(a["decay"]))
    b1, b2 = np.float32(0.9), np.float32(0.999)
    return adamx.adam(schedule, b1, b2, a["epsilon"], amsgrad=a["amsgrad"], convention="keras")


def keras3(arguments):
    a = {"learning_rate": 1e-3, "epsilon": 1e-7, "weight_decay": 0.0, "amsgrad": False} | arguments
    return adamx.adamw(
        a["learning_rate"],
        eps=a["epsilon"],
        weight_decay=a["weight_decay"],
        amsgrad=a["amsgrad"],
        convention="keras",
    )


def torch_adam(arguments):
    a = {"lr": 1e-3, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False} | arguments
    return optax.chain(
        optax.add_decayed_weights(a["weight_decay"]),
        adamx.adam(a["lr"], eps=a["eps"], amsgrad=a["amsgrad"], convention="torch"),
    )


def torch_adamw(arguments):
    a = {"lr": 1e-3, "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False} | arguments
    # torch multiplies the parameters by 1 - lr * weight_decay, rounded to float32: with 1 - 1e-5
    # they are off by 2e-5 of themselves after 1,000 steps. This is the decay that it computes.
    factor = float(np.float32(1 - a["lr"] * a["weight_decay"]))
    return adamx.adamw(
        a["lr"],
        eps=a["eps"],
        weight_decay=(1 - factor) / a["lr"],
        amsgrad=a["amsgrad"],
        convention="torch",
    )


def in_order(weights, amsgrad, *, scalars=1, interleaved=False):
    """A framework's list of weights in the order mu, nu, nu_max, without its leading scalars."""
    arrays = weights[scalars:]
    n = len(inputs.SHAPES)
    if interleaved:
        arrays = arrays[0 : 2 * n : 2] + arrays[1 : 2 * n : 2] + arrays[2 * n :]
    assert len(arrays) == n * (3 if amsgrad else 2)
    return arrays


def check(name, tx, arguments, *, params, moments, counted=True, **order):
    """Compare a run with the recorded one.

    Parameters agree within `params`, and moments within `moments` of their largest entry.
    """
    relative, absolute, of_lr = params
    meta, data = recorded(name)
    lr = arguments.get("lr", arguments.get("learning_rate", 1e-3))
    ours_at, state = trajectory(tx, meta["case"])
    for t in inputs.STEPS:
        for ours, path in zip(ours_at, inputs.SHAPES, strict=True):
            theirs = data[f"step{t}.params.{path}"]
            bound = relative * np.abs(theirs) + absolute + of_lr * lr
            np.testing.assert_array_less(np.abs(ours[t - 1] - theirs), bound, f"{path}, step {t}")

        count = sum(key.startswith(f"step{t}.weights.") for key in data)
        weights = [data[f"step{t}.weights.{i}"] for i in range(count)]
        mine = adamx.get_weights(jax.tree.map(lambda x, t=t: x[t - 1], state))
        assert mine[0] == t
        assert weights[0] == t or not counted
        for ours, theirs in zip(mine[1:], in_order(weights, len(mine) == 10, **order), strict=True):
            assert np.abs(ours - theirs).max() <= moments * np.abs(theirs).max(), f"step {t}"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "case",
    ["defaults", "betas", "decay", "large_epsilon", "sparse_gradients", "tiny_gradients"],
)
def test_tf11(case):
    name = f"tf11_{case}"
    config = recorded(name)[0]["case"]["config"]
    check(name, tf11(config), config, params=CLOSE, moments=2e-6)


@pytest.mark.parametrize("case", ["defaults", "decay", "amsgrad"])
def test_tf_keras_legacy(case):
    name = f"tfkeras_legacy_{case}"
    arguments = recorded(name)[0]["arguments"]
    check(name, keras_legacy(arguments), arguments, params=CLOSE, moments=2e-7)


# Keras 3 takes the bias correction from float32 powers: at first its steps are off by up to 3e-5 of
# themselves, and with a learning rate of 0.01 that adds up to 5e-6.
@pytest.mark.parametrize(
    ("case", "params"), [("defaults", TIGHT), ("amsgrad", OUTER), ("weight_decay", OUTER)]
)
def test_keras3(case, params):
    arguments = recorded(f"keras3_{case}")[0]["arguments"]
    order = {"scalars": 2, "interleaved": True}
    check(f"keras3_{case}", keras3(arguments), arguments, params=params, moments=2e-7, **order)


# In torch's recorded runs the step counters are views of one counter: all show its last value. Its
# second moment is off by 7e-6, since it takes beta_2 in float32 and 1 - beta_2 in double precision.
TORCH = {"moments": 8e-6, "counted": False}


@pytest.mark.parametrize("case", ["defaults", "amsgrad", "l2"])
def test_torch_adam(case):
    arguments = recorded(f"torch_adam_{case}")[0]["arguments"]
    check(f"torch_adam_{case}", torch_adam(arguments), arguments, params=TIGHT, **TORCH)


# 1,000 roundings of parameters near 3 to float32, after the decay and after the step.
@pytest.mark.parametrize(
    ("case", "params"), [("defaults", OUTER), ("amsgrad", OUTER), ("weight_decay", TIGHT)]
)
def test_torch_adamw(case, params):
    arguments = recorded(f"torch_adamw_{case}")[0]["arguments"]
    check(f"torch_adamw_{case}", torch_adamw(arguments), arguments, params=params, **TORCH)
