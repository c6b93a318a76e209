"""What bad input gets: the message says where, what was expected, what was found."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

PROMOTES = True  # Optax's wrappers do

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"learning_rate": -1e-3},
            "learning_rate: expected a number from 0 to below infinity, found -0.001",
        ),
        ({"learning_rate": float("nan")}, "learning_rate: .* found nan"),
        ({"learning_rate": np.float32("inf")}, r"learning_rate: .* found np.float32\(inf\)"),
        ({"b1": 1.0}, "b1: expected a number from 0 to below 1, found 1.0"),
        ({"b1": -0.1}, "b1: expected a number from 0 to below 1, found -0.1"),
        ({"b2": 1}, "b2: expected a number from 0 to below 1, found 1"),
        ({"b2": np.array(1.5)}, r"b2: .* found array\(1.5\)"),
        ({"eps": -1e-8}, "eps: expected a number from 0 to below infinity, found -1e-08"),
        ({"eps_root": -1.0}, "eps_root: expected a number from 0 .* found -1.0"),
        (
            {"convention": "pytorch"},
            "convention: expected one of 'optax', 'torch', 'keras', found 'pytorch'",
        ),
        (
            {"nesterov": True, "convention": "keras"},
            "nesterov: expected convention .optax. .* found 'keras'",
        ),
        ({"nesterov": True, "convention": "torch"}, "nesterov: .* found 'torch'"),
    ],
)
def test_values_out_of_range(arguments, message):
    for build in (adamx.adam, adamx.adamw):
        with pytest.raises(ValueError, match=message):
            build(**{"learning_rate": 1e-3} | arguments)
    if "learning_rate" not in arguments:
        with pytest.raises(ValueError, match=message):
            adamx.scale_by_adam(**arguments)


def test_weight_decay_out_of_range():
    with pytest.raises(ValueError, match=r"weight_decay: expected a number from 0 .* found -0.1"):
        adamx.adamw(1e-3, weight_decay=-0.1)


@pytest.mark.parametrize("name", ["init_value", "decay_rate"])
def test_schedule_values_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number from 0 .* found -1"):
        adamx.inverse_time_decay(**{"init_value": 1.0, "decay_rate": 1.0} | {name: -1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate: expected a real number .* found str 'fast'"),
        ({"b1": None}, "b1: expected a real number or a scalar array, found NoneType None"),
        ({"b2": 0.9 + 0j}, "b2: expected a real number .* found complex"),
        ({"eps": True}, "eps: expected a real number .* found bool True"),
        (
            {"b1": optax.constant_schedule(0.9)},
            "b1: .*; for a schedule wrap .* optax.inject_hyperparams",
        ),
        (
            {"b2": jnp.bfloat16(0.999)},
            "b2: expected .* float32 or wider, found bfloat16.* static_args",
        ),
        ({"mu_dtype": "int32"}, "mu_dtype: expected a floating-point dtype or None, found 'int32'"),
        (
            {"mu_dtype": "float7"},
            "mu_dtype: expected a floating-point dtype or None, found 'float7'",
        ),
        (
            {"nu_dtype": "complex64"},
            "nu_dtype: expected a real floating-point dtype .* 'complex64'",
        ),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        adamx.adamw(**{"learning_rate": 1e-3} | arguments)


@pytest.mark.parametrize(
    ("argument", "here"),
    [
        ("lr", "learning_rate"),
        ("beta_1", "b1"),
        ("beta2", "b2"),
        ("betas", "b1 and b2"),
        ("epsilon", "eps"),
        ("decay", "learning_rate=adamx.inverse_time_decay(learning_rate, decay)"),
        ("clipnorm", "optax.chain(optax.clip_by_global_norm(...), adamx.adam(...))"),
        ("clipvalue", "optax.chain(optax.clip(...), adamx.adam(...))"),
        ("weight_decay", "an argument of adamx.adamw"),
    ],
)
def test_renamed_arguments(argument, here):
    message = (
        re.escape(f"adam() has no argument '{argument}'; here it is ") + ".*" + re.escape(here)
    )
    with pytest.raises(TypeError, match=message):
        adamx.adam(**{argument: 0.5})


def test_unknown_argument():
    message = re.escape(
        "adamw() has no argument 'speed'. Its arguments: learning_rate, b1, b2, eps"
    )
    with pytest.raises(TypeError, match=message):
        adamx.adamw(1e-3, speed=11)


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        (jnp.arange(3), "int32"),
        (3, "int32"),
        (True, "bool"),
        (np.zeros(2, bool), "bool"),
        ("text", "str"),
        (jax.random.key(0), "key<fry>"),
    ],
)
def test_parameters_that_are_not_floating_point(leaf, found):
    message = (
        f"dense/bias: expected a floating-point or complex parameter, found {found}; .*optax.masked"
    )
    with pytest.raises(TypeError, match=message):
        adamx.adam(1e-3).init({"dense": {"kernel": jnp.ones(2), "bias": leaf}})


def fails(updates, message, error=ValueError, params=PARAMS):
    """`update` raises, jitted or not, and the state can be used afterwards."""
    tx = adamx.adam(1e-3)
    state = tx.init(params)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(error, match=message):
            update(updates, state, params)
    assert tx.update(params, state, params)[1][0].count == 1


def test_gradient_of_another_shape():
    updates = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(1)}}
    fails(updates, r"dense/bias: expected a gradient of shape \(3,\), .* found \(1,\)")
    fails(jnp.ones((2, 1)), r"the only leaf .* shape \(2,\), .* found \(2, 1\)", params=jnp.ones(2))


def test_gradients_of_another_structure():
    kernel = PARAMS["dense"]["kernel"]
    fails({"dense": {"kernel": kernel}}, "structure .* missing: dense/bias")
    fails({"dense": {**PARAMS["dense"], "scale": kernel}}, "unexpected: dense/scale")
    fails(
        {"dense": {"weight": kernel, "bias": kernel}},
        "missing: dense/kernel; unexpected: dense/weight",
    )
    fails(
        {"dense": [kernel, kernel]},
        "missing: dense/bias, dense/kernel; unexpected: dense/0, dense/1",
    )
    fails([kernel], r"expected PyTreeDef\(\(\*,\)\), found PyTreeDef\(\[\*\]\)", params=(kernel,))
    fails({"a": kernel}, "unexpected: a", params={"a": None})


def test_gradients_of_another_kind():
    for leaf, found in ((jnp.ones(3, int), "int32"), (jnp.ones(3, jnp.complex64), "complex")):
        updates = {"dense": {**PARAMS["dense"], "bias": leaf}}
        fails(
            updates,
            f"dense/bias: expected a real floating-point gradient, .* found {found}",
            TypeError,
        )
    params = jnp.ones(2, jnp.complex64)
    message = "the only leaf of the tree: expected a complex floating-point gradient, .* found real"
    fails(jnp.ones(2), message, TypeError, params)


def test_state_of_another_transformation():
    params = jnp.ones(2)
    plain, amsgrad = adamx.scale_by_adam(), adamx.scale_by_adam(amsgrad=True)
    with pytest.raises(TypeError, match=r"expected ScaleByAmsgradState, .* found ScaleByAdamState"):
        amsgrad.update(params, plain.init(params))
    with pytest.raises(TypeError, match=r"expected ScaleByAdamState, .* found ScaleByAmsgradState"):
        plain.update(params, amsgrad.init(params))
    with pytest.raises(TypeError, match=r"expected ScaleByAdamState, .* found tuple"):
        plain.update(params, adamx.adam(1e-3).init(params))


def test_injected_hyperparameters_in_bfloat16():
    """Optax rounds 0.999 to 1 there, and its own Adam goes on with NaN."""
    params = jnp.ones(2, jnp.bfloat16)
    with pytest.raises(TypeError, match=r"b1: expected .* found bfloat16"):
        optax.inject_hyperparams(adamx.adam)(1e-3).init(params)
    for arguments in (
        {"hyperparam_dtype": "float32"},
        {"static_args": ("b1", "b2", "eps", "eps_root")},
    ):
        tx = optax.inject_hyperparams(adamx.adam, **arguments)(1e-3)
        updates, _ = tx.update(params, tx.init(params), params)
        assert bool(jnp.isfinite(updates).all())
