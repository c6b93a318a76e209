"""Numbers that a user hands over: of Python, NumPy, JAX and a schedule; and what is none."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.tensors import Tensor

PROMOTES = True  # Optax's parts do

RATE, DECAY, LIMIT = 0.125, 0.25, 0.5  # every dtype here has them, so that results are the same


def adam(number):
    return adamx.adam(number(RATE))


def adamw(number):
    return adamx.adamw(number(RATE), weight_decay=number(DECAY))


def clipped(number):
    clipping = {"clip_norm": number(LIMIT), "clip_global_norm": number(LIMIT)}
    return adamx.AdamConfig(learning_rate=number(RATE), **clipping).transformation()


def clipped_by_value(number):
    return adamx.AdamConfig(learning_rate=RATE, clip_value=number(LIMIT)).transformation()


def of_torch(number):
    decay = {"weight_decay": number(DECAY), "decoupled": False, "decay": number(LIMIT)}
    return adamx.AdamConfig(
        learning_rate=number(RATE), convention="torch", **decay
    ).transformation()


def scheduled(number):
    return adamx.adamw(lambda _: number(RATE), weight_decay=lambda _: number(DECAY))


def scheduled_config(number):
    return adamx.AdamConfig(
        learning_rate=lambda _: number(RATE), weight_decay=number(DECAY), decay=number(LIMIT)
    ).transformation()


@pytest.mark.sampled(7)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("number", [np.float32, np.longdouble, np.array, jnp.float32])
@pytest.mark.parametrize(
    "build",
    [adam, adamw, clipped, clipped_by_value, of_torch, scheduled, scheduled_config],
)
def test_numbers_promote_no_update(build, number, dtype):
    """Its dtype is that of the gradient, and its value that of Python's number."""
    if build is clipped_by_value and dtype == "complex64":
        pytest.skip("complex numbers have no order")
    params = {"w": jnp.array([0.5, -1.0, 2.0], dtype)}
    expected_tx, tx = build(float), optax.apply_if_finite(build(number), 2)
    expected, _ = jax.jit(expected_tx.update)(params, expected_tx.init(params), params)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["w"].dtype == dtype
    np.testing.assert_array_equal(updates["w"], expected["w"])


@pytest.mark.slow
def test_numbers_promote_no_update_in_double_precision():
    with jax.enable_x64(True):
        params = jnp.ones(3, "float32")
        for number in (np.float64, jnp.float64):
            for build in (adam, adamw, clipped, of_torch, scheduled, scheduled_config):
                tx = build(number)
                assert tx.update(params, tx.init(params), params)[0].dtype == "float32"


def test_a_number_of_numpy_is_one_of_python():
    config = adamx.AdamConfig(learning_rate=np.float32(RATE), eps=np.array(1e-7), clip_norm=1)
    assert config == adamx.AdamConfig(learning_rate=RATE, eps=1e-7, clip_norm=1.0)
    assert hash(config) == hash(adamx.AdamConfig(learning_rate=RATE, eps=1e-7, clip_norm=1.0))
    assert all(type(x) is float for x in (config.learning_rate, config.eps, config.clip_norm))


NO_NUMBERS = {
    "tensor": (Tensor(), TypeError, "a real number or a scalar array, found .*Tensor"),
    "none": (None, TypeError, "found NoneType None"),
    "text": ("0.1", TypeError, "found str '0.1'"),
    "tuple": ((0.1,), TypeError, "found tuple"),
    "masked": (np.ma.masked_array(0.1, mask=True), TypeError, "found numpy.*masked"),
    "truth": (True, TypeError, "found bool True"),
    "vector": (np.ones(1), ValueError, r"expected a scalar, found an array of shape \(1,\)"),
    "integer beyond floats": (10**400, ValueError, "a finite number"),
}


@pytest.mark.parametrize("name", ["learning_rate", "b1", "eps", "weight_decay", "clip_global_norm"])
@pytest.mark.parametrize("case", NO_NUMBERS)
def test_what_is_no_number(name, case):
    value, error, message = NO_NUMBERS[case]
    if case == "none" and name in ("learning_rate", "clip_global_norm"):
        pytest.skip("it means none of it")
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        adamx.fused_adam(**{"learning_rate": 1e-3} | {name: value})
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        adamx.AdamConfig(**{name: value})
    if name != "clip_global_norm":
        with pytest.raises(error, match=f"^{name}: .*{message}"):
            adamx.adamw(**{"learning_rate": 1e-3} | {name: value})


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (adamx.scale_by_adam, "wrap the optimizer in optax.inject_hyperparams"),
        (adamx.AdamConfig, "accepts a schedule only as learning_rate"),
        (
            lambda **given: adamx.fused_adam(0.1, **given),
            "an argument of the function that you jit",
        ),
    ],
)
def test_a_schedule_where_none_is_taken(build, advice):
    with pytest.raises(TypeError, match=f"^b1: expected a real number .*{advice}"):
        build(b1=optax.constant_schedule(0.9))


RETURNED = NO_NUMBERS | {"negative": (-0.1, ValueError, r"at least 0, found -0\.1")}


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("case", RETURNED)
def test_what_a_schedule_returns(name, case):
    value, error, _ = RETURNED[case]
    arguments = {"learning_rate": 0.1, name: lambda _: value}
    is_number = case in ("negative", "integer beyond floats")
    message = f"^{name}: expected {'a finite number' if is_number else 'a .*scalar'}"
    params = {"scalar": jnp.ones(()), "vector": jnp.ones(2)}
    tx, fused = adamx.adamw(**arguments), adamx.fused_adam(**arguments)
    with pytest.raises(error, match=message):
        jax.jit(tx.update)(params, tx.init(params), params)
    with pytest.raises(error, match=message):
        jax.jit(fused.step)(params, params, fused.init(params))
    if name == "learning_rate":
        for decay in (0.0, 0.5):
            tx = adamx.AdamConfig(learning_rate=lambda _: value, decay=decay).transformation()
            with pytest.raises(error, match=message):
                tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        (Tensor(), "torch.Tensor"),
        (np.ma.masked_array([1.0, 2.0], mask=[0, 1]), "numpy.ma.MaskedArray"),
        (np.ones(2, np.longdouble), str(np.dtype(np.longdouble))),
        (np.ones(2, object), "object"),
        (np.array(["a"]), "<U1"),
        ("text", "str"),
    ],
)
def test_leaves_that_are_no_arrays(leaf, found):
    good = {"a": {"w": jnp.ones(2)}}
    bad = {"a": {"w": leaf}}
    message = f"^a/w: expected a .*floating-point .*, found .*{re.escape(found.split('.')[-1])}"
    tx, fused = adamx.adam(0.1), adamx.fused_adam(0.1)
    state = tx.init(good)
    for call in (
        lambda: tx.init(bad),
        lambda: tx.update(bad, state),
        lambda: fused.init(bad),
        lambda: adamx.fused_adam(0.1, packed=True).init(bad),
        lambda: fused.step(bad, good, state),
        lambda: fused.step(good, bad, state),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    moments = adamx.AdamState(jnp.int32(0), bad, good["a"])
    with pytest.raises(TypeError, match=r"^state: mu/a/w: expected floating-point numbers"):
        adamx.scale_by_adam().update(good, moments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("eps", 1e-39), ("eps", 1e-46), ("eps_root", 1e-40), ("clip_global_norm", 1e-40)],
)
def test_numbers_that_are_zero_to_xla(name, value):
    message = rf"^{name}: expected 0 or a number of at least 2\.351e-38, found {value}; .*float32"
    for build in (adamx.fused_adam, adamx.AdamConfig):
        with pytest.raises(ValueError, match=message):
            build(learning_rate=0.1, **{name: value})


def test_a_tiny_eps_is_refused_where_the_step_is_in_float32():
    with jax.enable_x64(True):
        tx = adamx.scale_by_adam(eps=1e-39)
        wide, narrow = jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0], jnp.float32)
        assert bool(jnp.isfinite(tx.update(wide, tx.init(wide))[0]).all())
        with pytest.raises(ValueError, match=r"^eps: expected 0 or a number .* float32"):
            tx.update(narrow, tx.init(narrow))


def test_a_decay_rate_that_is_one_as_a_double():
    almost = 1 - np.longdouble(2) ** -60
    if almost == 1:
        pytest.skip("NumPy has no wider floating-point dtype here")
    for name in ("b1", "b2"):
        with pytest.raises(ValueError, match=f"^{name}: expected .* below 1"):
            adamx.scale_by_adam(**{name: almost})


@pytest.mark.parametrize(
    ("spelling", "meant"), [("bf16", "bfloat16"), ("fp16", "float16"), ("f16", "float16")]
)
def test_spellings_of_dtypes(spelling, meant):
    for name in ("mu_dtype", "nu_dtype"):
        with pytest.raises(TypeError, match=f'^{name}: .* found {spelling!r}; write "{meant}"'):
            adamx.scale_by_adam(**{name: spelling})
