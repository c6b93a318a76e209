"""Keras's learning-rate schedules against their formulas in double precision."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.keras import KerasSchedule

KEYS = {"initial_learning_rate": 0.05, "decay_steps": 7, "decay_rate": 0.6}
COSINE = {"initial_learning_rate": 0.02, "decay_steps": 49, "alpha": 0.1}
RESTARTS = {"initial_learning_rate": 0.05, "first_decay_steps": 8, "m_mul": 0.8, "alpha": 0.01}


def cosine(done, alpha, amplitude=1.0):
    return (1 - alpha) * amplitude * 0.5 * (1 + np.cos(np.pi * done)) + alpha


def warm_cosine(t, warmup_steps=11, start=0.02, target=0.3):
    warm = start + (target - start) * t / max(warmup_steps, 1)
    decayed = target * cosine(np.minimum((t - warmup_steps) / 49, 1), 0.1)
    return np.where(t < warmup_steps, warm, decayed)


def restarts(counts, t_mul):
    """Period by period, without logarithms."""
    values = []
    for count in counts:
        start, length, amplitude = 0.0, 8.0, 1.0
        while count >= start + length:
            start, length, amplitude = start + length, length * t_mul, amplitude * 0.8
        values.append(0.05 * cosine((count - start) / length, 0.01, amplitude))
    return np.array(values)


def cycles(t, steps=7):
    return np.maximum(np.ceil(t / steps), 1) * steps


# A class of Keras, its arguments, and what it returns after t steps (a float64 array).
SCHEDULES = {
    "exponential": ("ExponentialDecay", KEYS, lambda t: 0.05 * 0.6 ** (t / 7)),
    "exponential, staircase": (
        "ExponentialDecay",
        KEYS | {"decay_steps": 49, "staircase": True},
        lambda t: 0.05 * 0.6 ** (t.astype(int) // 49),
    ),
    "inverse time": ("InverseTimeDecay", KEYS, lambda t: 0.05 / (1 + 0.6 * t / 7)),
    "inverse time, staircase": (
        "InverseTimeDecay",
        KEYS | {"staircase": True},
        lambda t: 0.05 / (1 + 0.6 * (t.astype(int) // 7)),
    ),
    "piecewise": (
        "PiecewiseConstantDecay",
        {"boundaries": [7, 49, 490], "values": [0.5, 0.1, 0.2, 0.01]},
        lambda t: np.select([t <= 7, t <= 49, t <= 490], [0.5, 0.1, 0.2], 0.01),
    ),
    "polynomial, defaults": (
        "PolynomialDecay",
        {"initial_learning_rate": 0.05, "decay_steps": 7},
        lambda t: 0.0499 * (1 - np.minimum(t, 7) / 7) + 0.0001,
    ),
    "polynomial": (
        "PolynomialDecay",
        {"initial_learning_rate": 0.05, "decay_steps": 49, "end_learning_rate": 0.2, "power": 2.5},
        lambda t: -0.15 * (1 - np.minimum(t, 49) / 49) ** 2.5 + 0.2,
    ),
    "polynomial, cycle": (
        "PolynomialDecay",
        {"initial_learning_rate": 0.05, "decay_steps": 7, "power": 2, "cycle": True},
        lambda t: 0.0499 * (1 - t / cycles(t)) ** 2 + 0.0001,
    ),
    "cosine": ("CosineDecay", COSINE, lambda t: 0.02 * cosine(np.minimum(t, 49) / 49, 0.1)),
    "cosine, warmup": (
        "CosineDecay",
        COSINE | {"warmup_target": 0.3, "warmup_steps": 11},
        warm_cosine,
    ),
    "cosine, warmup of no steps": (
        "CosineDecay",
        COSINE | {"warmup_target": 0.3},
        lambda t: warm_cosine(t, warmup_steps=0),
    ),
    "cosine, warmup without target": (
        "CosineDecay",
        COSINE | {"warmup_target": None, "warmup_steps": 11},
        lambda t: 0.02 * cosine(np.minimum(t, 49) / 49, 0.1),
    ),
    "restarts": ("CosineDecayRestarts", RESTARTS, lambda t: restarts(t, 2)),
    "restarts, 1.5": ("CosineDecayRestarts", RESTARTS | {"t_mul": 1.5}, lambda t: restarts(t, 1.5)),
    "restarts, one length": (
        "CosineDecayRestarts",
        RESTARTS | {"t_mul": 1.0},
        lambda t: restarts(t, 1),
    ),
}


def keras_schedule(class_name, arguments):
    return KerasSchedule.from_config({"class_name": class_name, "config": arguments})


# The boundaries of all schedules, one step before and one after; periods of 8 that double begin at
# 8, 24, 56, ..., 8 * 2^k - 8, and those of 1.5 at 8, 20, 38.
BOUNDARIES = [0, 7, 8, 11, 20, 24, 38, 49, 56, 60, 70, 98, 147, 490, 504, 1016, 8184, 65528]
COUNTS = sorted({max(b + d, 0) for b in BOUNDARIES for d in (-1, 0, 1)})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_formulas_of_keras(name, jit):
    """Within 5e-6 of the value; where it comes near zero, of the largest: cos has lost it there."""
    class_name, arguments, formula = SCHEDULES[name]
    schedule = keras_schedule(class_name, arguments)
    schedule = jax.jit(schedule) if jit else schedule
    expected = np.asarray(formula(np.array(COUNTS, np.float64)))
    values = schedule(jnp.asarray(COUNTS))
    assert values.shape == expected.shape
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=5e-6, atol=2e-7 * expected.max())
    one_by_one = [schedule(count) for count in COUNTS[:12]]
    np.testing.assert_allclose(one_by_one, expected[:12], rtol=5e-6, atol=2e-7 * expected.max())


@pytest.mark.parametrize("name", SCHEDULES)
def test_formulas_of_keras_in_double_precision(name):
    class_name, arguments, formula = SCHEDULES[name]
    with jax.enable_x64(True):
        values = keras_schedule(class_name, arguments)(jnp.asarray(COUNTS))
        assert values.dtype == jnp.float64
    np.testing.assert_allclose(values, formula(np.array(COUNTS, np.float64)), rtol=1e-12)


@pytest.mark.parametrize("steps", [3, 7, 49, 1000])
def test_stairs_have_no_step_too_many(steps):
    """In float32, `k * steps * (1 / steps)` is below k for many k."""
    arguments = KEYS | {"decay_steps": steps, "decay_rate": 1.0, "staircase": True}
    schedule = keras_schedule("InverseTimeDecay", arguments | {"initial_learning_rate": 1.0})
    k = np.arange(1, 1000)
    values = jax.jit(schedule)(jnp.asarray(k * steps))
    np.testing.assert_array_equal(np.round(1 / np.asarray(values)) - 1, k)


@pytest.mark.parametrize("name", SCHEDULES)
def test_round_trip(name):
    class_name, arguments, _ = SCHEDULES[name]
    written = {
        "module": "keras.optimizers.schedules",
        "class_name": class_name,
        "config": arguments | {"name": class_name},
        "registered_name": None,
    }
    schedule = KerasSchedule.from_config(written)
    config = json.loads(json.dumps(schedule.to_config()))
    assert config == written
    again = KerasSchedule.from_config(config)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again(3) == schedule(3)


def test_tf_keras_and_numpy():
    """tf_keras writes `name: None`, which Keras 3 does not take back."""
    config = {
        "module": "tf_keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": KEYS | {"name": None, "staircase": False, "decay_steps": np.int64(7)},
        "registered_name": None,
    }
    schedule = KerasSchedule.from_config(config)
    assert schedule.to_config()["config"] == KEYS | {"staircase": False}
    assert json.loads(json.dumps(schedule.to_config())) == schedule.to_config()
    assert schedule == KerasSchedule("ExponentialDecay", ((*KEYS.items(), ("staircase", False))))
    assert config["config"]["name"] is None


def test_drives_an_optimizer():
    """A schedule is static: it can be an argument of jit by its hash."""
    schedule = keras_schedule("ExponentialDecay", KEYS)

    @functools.partial(jax.jit, static_argnums=0)
    def first_update(schedule):
        tx = adamx.adam(schedule)
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0]

    np.testing.assert_allclose(first_update(schedule), [-0.05, -0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("class_name", "arguments", "error", "message"),
    [
        ("LinearCosineDecay", KEYS, ValueError, "one of ExponentialDecay, .*'LinearCosineDecay'"),
        ("ExponentialDecay", {"decay_steps": 7}, ValueError, "missing: initial_learning_rate, dec"),
        ("ExponentialDecay", KEYS | {"rate": 1}, ValueError, "unknown: rate; .*decay_rate, stairc"),
        ("CosineDecay", KEYS, ValueError, "CosineDecay: unknown: decay_rate"),
        ("ExponentialDecay", KEYS | {"decay_steps": 0}, ValueError, "decay_steps: .*above 0.*0"),
        ("CosineDecay", COSINE | {"decay_steps": -1}, ValueError, "decay_steps: expected .*-1"),
        ("ExponentialDecay", KEYS | {"decay_rate": "1"}, TypeError, "decay_rate: .*number.*'1'"),
        (
            "ExponentialDecay",
            KEYS | {"decay_rate": np.nan},
            ValueError,
            "decay_rate: .*finite.*nan",
        ),
        ("ExponentialDecay", KEYS | {"decay_rate": True}, TypeError, "decay_rate: .*number.*True"),
        ("ExponentialDecay", KEYS | {"staircase": 1}, TypeError, "staircase: expected True or Fal"),
        ("ExponentialDecay", KEYS | {"name": 1}, TypeError, "name: expected a string, found 1"),
        (
            "CosineDecay",
            COSINE | {"warmup_steps": -1},
            ValueError,
            "warmup_steps: .*of at least 0.*-1",
        ),
        ("CosineDecay", COSINE | {"warmup_target": "1"}, TypeError, "warmup_target: .*number"),
        (
            "CosineDecayRestarts",
            RESTARTS | {"t_mul": 0.5},
            ValueError,
            "t_mul: .*of at least 1.*0.5",
        ),
        (
            "PiecewiseConstantDecay",
            {"boundaries": [1, 2], "values": [1.0, 2.0]},
            ValueError,
            "values: expected 3 numbers, one more than boundaries, found 2",
        ),
        (
            "PiecewiseConstantDecay",
            {"boundaries": [2, 1], "values": [1.0, 2.0, 3.0]},
            ValueError,
            r"boundaries: expected increasing numbers, found \(2, 1\)",
        ),
        (
            "PiecewiseConstantDecay",
            {"boundaries": 1, "values": [1.0, 2.0]},
            TypeError,
            "boundaries: expected a list of numbers, found 1",
        ),
    ],
)
def test_bad_arguments(class_name, arguments, error, message):
    with pytest.raises(error, match=f"learning_rate: .*{message}"):
        keras_schedule(class_name, arguments)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (0.1, TypeError, "mapping with class_name and config.*0.1"),
        ({"class_name": "CosineDecay"}, TypeError, "mapping with class_name and config"),
        ({"config": COSINE}, ValueError, "one of ExponentialDecay.*found 'None'"),
        (
            {"class_name": "CosineDecay", "config": COSINE, "build_config": {}},
            ValueError,
            "unknown key 'build_config'; expected class_name, config, module, registered_name",
        ),
        (
            {"class_name": "CosineDecay", "config": COSINE, "module": "mine.optimizers"},
            ValueError,
            "found CosineDecay of mine.optimizers. Write it as an Optax schedule with "
            "the same values",
        ),
        (
            {"class_name": "CosineDecay", "config": COSINE, "registered_name": "mine>CosineDecay"},
            ValueError,
            "found CosineDecay of mine>CosineDecay",
        ),
    ],
)
def test_bad_configurations(config, error, message):
    with pytest.raises(error, match=f"learning_rate: .*{message}"):
        KerasSchedule.from_config(config)
