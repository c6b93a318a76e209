"""`AdamConfig` against recorded runs, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamx import AdamConfig
from adamx.transforms.foreign import clip_each_norm
from tests.test_golden import CLOSE, OUTER, TIGHT, check, recorded

PROMOTES = True  # Optax's clipping does

TF11 = ["defaults", "betas", "decay", "clipnorm", "clipvalue", "clip_both", "large_epsilon"]
TF11 += ["sparse_gradients", "tiny_gradients", "nonneg_bias", "maxnorm_kernel"]
LEGACY = ["defaults", "decay", "amsgrad", "clipnorm", "clipvalue", "global_clipnorm"]
KERAS3 = ["defaults", "amsgrad", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm"]
TORCH = ["adam_defaults", "adam_amsgrad", "adam_l2"]
TORCH += ["adamw_defaults", "adamw_amsgrad", "adamw_weight_decay"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", TF11)
def test_tf11(case):
    config = recorded(f"tf11_{case}")[0]["config"]
    tx = AdamConfig.from_keras(config).transformation()
    # Clipped gradients of 1e8 are as good as their norm; the constrained runs have a rate of 0.05.
    params = TIGHT if case in ("clip_both", "nonneg_bias", "maxnorm_kernel") else CLOSE
    check(f"tf11_{case}", tx, config, params=params, moments=2.5e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", LEGACY)
def test_tf_keras_legacy(case):
    config = recorded(f"tfkeras_legacy_{case}")[0]["config"]
    tx = AdamConfig.from_keras(config).transformation()
    check(f"tfkeras_legacy_{case}", tx, config, params=CLOSE, moments=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", KERAS3)
def test_keras3(case):
    config = recorded(f"keras3_{case}")[0]["config"]
    tx = AdamConfig.from_keras(config).transformation()
    order = {"scalars": 2, "interleaved": True}
    check(f"keras3_{case}", tx, config, params=OUTER, moments=1e-6, **order)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", TORCH)
def test_torch(case):
    group = recorded(f"torch_{case}")[0]["config"]
    tx = AdamConfig.from_torch(group).transformation()
    params = OUTER if case in ("adamw_defaults", "adamw_amsgrad") else TIGHT
    check(f"torch_{case}", tx, group, params=params, moments=8e-6, counted=False)


def test_ema_raises():
    config = recorded("keras3_ema")[0]["config"]
    with pytest.raises(ValueError, match=r"use_ema: .* average the parameters with optax.ema"):
        AdamConfig.from_keras(config)


RECORDED = [
    *(("tf1", f"tf11_{case}") for case in TF11),
    *(("tf_keras_legacy", f"tfkeras_legacy_{case}") for case in LEGACY),
    *(("keras3", f"keras3_{case}") for case in KERAS3),
]


@pytest.mark.parametrize(("generation", "name"), RECORDED)
def test_back_to_keras(generation, name):
    """The recorded configuration comes back, but for the object's name."""
    config = recorded(name)[0]["config"]
    before = json.dumps(config)
    back = AdamConfig.from_keras(config).to_keras(generation)
    assert json.dumps(config) == before
    ignored = {"name", "ema_momentum"}
    assert {k: back[k] for k in back.keys() - ignored} == {
        k: config[k] for k in config.keys() - ignored
    }
    assert json.loads(json.dumps(back)) == back


@pytest.mark.parametrize("name", TORCH)
def test_back_to_torch(name):
    group = recorded(f"torch_{name}")[0]["config"]
    back = AdamConfig.from_torch(group).to_torch()
    assert back | {"betas": list(back["betas"])} == group


def test_generation_is_told_by_the_keys():
    for generation, name in RECORDED:
        config = recorded(name)[0]["config"]
        assert AdamConfig.from_keras(config) == AdamConfig.from_keras(config, generation)
    current = {"jit_compile": False, "is_legacy_optimizer": False, "clipnorm": 1.0}
    assert AdamConfig.from_keras(current) == AdamConfig.from_keras(current, "tf_keras")
    assert AdamConfig.from_keras({"class_name": "Custom>Adam", "config": current}).clip_norm == 1


def test_clipnorm_alone_tells_nothing():
    with pytest.raises(
        ValueError, match=r"generation: expected one of tf1, .* clipnorm, for example, has"
    ):
        AdamConfig.from_keras({"clipnorm": 1.0, "learning_rate": 0.1})
    config = {"clipnorm": 1.0}
    assert AdamConfig.from_keras(config, "tf1").clip_global_norm == 1
    assert AdamConfig.from_keras(config, "keras3").clip_norm == 1


def test_torch_rounds_the_decay_of_float32_alone():
    """torch.optim.AdamW, zero gradients: p is multiplied by 1 - 1e-5 * 1e-2 in each step."""
    config = AdamConfig(learning_rate=1e-5, weight_decay=1e-2, convention="torch")
    with jax.enable_x64(True):
        tx, params = config.transformation(), {"w": jnp.ones(1), "v": jnp.ones(1, jnp.float32)}
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -1e-7, rtol=1e-9)
    np.testing.assert_allclose(updates["v"], np.float32(1 - 1e-7) - 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_each_norm_is_clipped(dtype):
    """To a norm of 1, whatever the dtype; below that nothing changes."""
    tx = clip_each_norm(1.0)
    grads = [jnp.full(4, 300, dtype), jnp.full(4, 0.25, dtype), jnp.zeros(4, dtype)]
    clipped, _ = tx.update(grads, tx.init(grads))
    assert {str(x.dtype) for x in jax.tree.leaves(clipped)} == {dtype}
    np.testing.assert_allclose(np.asarray(clipped[0], complex), 0.5, rtol=4e-3)
    np.testing.assert_array_equal(clipped[1], grads[1])
    np.testing.assert_array_equal(clipped[2], grads[2])


def test_complex_gradients_have_no_order():
    tx = AdamConfig(clip_value=1.0).transformation()
    params = {"w": jnp.ones(2, jnp.complex64)}
    with pytest.raises(TypeError, match="w: expected a real gradient for clipping by value, found"):
        tx.update(params, tx.init(params), params)


def test_values_that_are_written_are_plain():
    numbers = {"learning_rate": np.float64(1), "b1": jnp.float32(0.5), "amsgrad": np.bool_(True)}
    config = AdamConfig(convention="keras", **numbers).to_keras("keras3")
    assert json.loads(json.dumps(config)) == config
    assert type(config["learning_rate"]) is float
    group = AdamConfig(convention="torch", **numbers | {"learning_rate": 1}).to_torch()
    assert type(group["lr"]) is type(group["betas"][0]) is float
    with pytest.raises(
        ValueError, match="b1: expected a number with a known value, found a traced"
    ):
        jax.jit(lambda b1: AdamConfig(convention="keras", b1=b1).to_keras("keras3"))(0.5)


def test_values_are_checked():
    with pytest.raises(TypeError, match="amsgrad: expected True or False, found 'no'"):
        AdamConfig(amsgrad="no")
    with pytest.raises(ValueError, match='nesterov: expected convention="optax" with it'):
        AdamConfig(nesterov=True, convention="keras")
    with pytest.raises(ValueError, match="clip_norm: expected a number above 0 or None, found 0"):
        AdamConfig(clip_norm=0)
    with pytest.raises(ValueError, match="decay: expected a finite number of at least 0"):
        AdamConfig(decay=-1.0)
    with pytest.raises(ValueError, match="convention: expected one of"):
        AdamConfig(convention="pytorch")


def test_decay_becomes_a_schedule_where_keras_has_none():
    config = AdamConfig(learning_rate=0.1, decay=0.5, convention="keras")
    for generation in ("tf_keras", "keras3"):
        back = AdamConfig.from_keras(config.to_keras(generation))
        np.testing.assert_allclose(back.learning_rate(8), 0.1 / (1 + 0.5 * 8), rtol=1e-6)


def test_float32_becomes_the_doubles_that_it_is():
    """TF 1.1 to Keras 3: its clipnorm is global, its beta_2 the double 0.99900001..."""
    old = AdamConfig.from_keras({"lr": 0.01, "clipnorm": 1.0})
    new = old.to_keras("keras3")
    assert new["global_clipnorm"] == 1
    assert new["clipnorm"] is None
    assert new["beta_2"] == float(np.float32(0.999))


def test_schedules_round_trip():
    learning_rate = {
        "module": "keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": {
            "initial_learning_rate": 0.1,
            "decay_steps": 10,
            "decay_rate": 0.5,
            "staircase": True,
            "name": "ExponentialDecay",
        },
        "registered_name": None,
    }
    config = AdamConfig.from_keras({"learning_rate": learning_rate}, "keras3")
    np.testing.assert_allclose(config.learning_rate(25), 0.1 * 0.5**2, rtol=1e-6)
    assert config == AdamConfig.from_keras(config.to_keras("keras3"), "keras3")
    decayed = AdamConfig.from_keras({"learning_rate": learning_rate, "decay": 0.5})
    assert decayed.decay == 0.5
    assert decayed.learning_rate == config.learning_rate


@pytest.mark.parametrize("decoupled", [True, False])
def test_without_bias_correction(decoupled):
    """Against the formula in float64: m / (sqrt(v) + eps), without factors of the step."""
    config = AdamConfig(
        learning_rate=0.1,
        convention="keras",
        bias_correction=False,
        weight_decay=0.01,
        decoupled=decoupled,
    )
    random = np.random.default_rng(0)
    p, m, v = random.normal(size=(3, 5)) * [[1.0], [0.0], [0.0]]
    tx = config.transformation()
    params = jnp.asarray(p, jnp.float32)
    state = tx.init(params)
    for _ in range(20):
        g = random.normal(size=5)
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        g = g if decoupled else g + 0.01 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - 0.1 * (m / (np.sqrt(v) + 1e-8) + (0.01 * p if decoupled else 0))
    np.testing.assert_allclose(params, p, rtol=0, atol=4e-6)


def test_a_convention_that_has_no_form_without_bias_correction():
    with pytest.raises(ValueError, match='bias_correction: expected convention="keras" with it'):
        AdamConfig(bias_correction=False)
    config = AdamConfig(bias_correction=False, convention="keras")
    for write in (config.to_torch, lambda: config.to_keras("keras3")):
        with pytest.raises(ValueError, match=r"cannot express (convention|bias_correction)"):
            write()
