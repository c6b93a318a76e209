"""What bad input gets: the message says where, what was expected, what was found."""

import copy
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx

PROMOTES = True  # Optax's wrappers do

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"learning_rate": -1e-3},
            "learning_rate: expected a finite number of at least 0, found -0.001",
        ),
        ({"learning_rate": float("nan")}, "learning_rate: .* found nan"),
        ({"learning_rate": np.float32("inf")}, r"learning_rate: .* found np.float32\(inf\)"),
        ({"b1": 1.0}, "b1: expected a finite number of at least 0 and below 1, found 1.0"),
        ({"b1": -0.1}, "b1: expected a finite number of at least 0 and below 1, found -0.1"),
        ({"b2": 1}, "b2: expected a finite number of at least 0 and below 1, found 1"),
        ({"b2": np.array(1.5)}, r"b2: .* found array\(1.5\)"),
        ({"eps": -1e-8}, "eps: expected a finite number of at least 0, found -1e-08"),
        ({"eps_root": -1.0}, "eps_root: expected a finite number .* found -1.0"),
        (
            {"convention": "pytorch"},
            "convention: expected one of 'optax', 'torch', 'keras', found 'pytorch'",
        ),
        (
            {"nesterov": True, "convention": "keras"},
            "nesterov: expected convention=.optax. with it, found 'keras'",
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
    with pytest.raises(ValueError, match=r"weight_decay: expected a finite number .* found -0.1"):
        adamx.adamw(1e-3, weight_decay=-0.1)


@pytest.mark.parametrize("name", ["init_value", "decay_rate"])
def test_schedule_values_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name}: expected a finite number .* found -1"):
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


@pytest.mark.parametrize("value", [np.array([0.9, 0.99]), jnp.ones((1,))])
def test_arrays_that_are_no_scalars(value):
    for name in ("learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"):
        message = f"{name}: expected a scalar, found an array of shape {value.shape}"
        with pytest.raises(ValueError, match=re.escape(message)):
            adamx.adamw(**{"learning_rate": 1e-3} | {name: value})


@pytest.mark.parametrize(
    ("build", "argument", "hint"),
    [
        (adamx.adam, "lr", "it is called learning_rate here"),
        (adamx.adam, "beta_1", "it is called b1 here"),
        (adamx.adamw, "beta2", "it is called b2 here"),
        (adamx.scale_by_adam, "epsilon", "it is called eps here"),
        (adamx.scale_by_adam, "lr", "the learning rate is an argument of adamx.adam"),
        (adamx.adam, "betas", "b1 and b2 are two arguments"),
        (adamx.adam, "decay", "as learning_rate, pass adamx.inverse_time_decay("),
        (adamx.adamw, "clipnorm", "in TensorFlow 1.1 this is the norm of all gradients"),
        (adamx.adam, "clipvalue", "chain optax.clip before"),
        (
            adamx.adam,
            "weight_decay",
            "for decoupled weight decay use adamx.adamw; for weight decay as in torch",
        ),
    ],
)
def test_arguments_of_other_frameworks(build, argument, hint):
    message = re.escape(f"{build.__name__}() has no argument '{argument}': {hint}")
    with pytest.raises(TypeError, match=message):
        build(**{argument: 0.5})


def test_unknown_argument():
    message = "adamw() has no argument 'speed'. Its arguments are learning_rate, b1, b2, eps"
    with pytest.raises(TypeError, match=re.escape(message)):
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
    """`update` raises, jitted or not, and leaves its arguments alone: NumPy arrays here."""
    tx = adamx.adam(1e-3)
    state = jax.device_get(tx.init(params))
    before = copy.deepcopy(state)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(error, match=message):
            update(updates, state, params)
    chex.assert_trees_all_equal(state, before)


def test_gradient_of_another_shape():
    updates = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(1)}}
    fails(updates, r"dense/bias: expected a gradient of shape \(3,\), .* found \(1,\)")
    fails(jnp.ones((2, 1)), r"the only leaf .* shape \(2,\), .* found \(2, 1\)", params=jnp.ones(2))
    fails({"dense": {"bias": None, "kernel": jnp.ones(3)}}, r"dense/kernel: .* found \(3,\)")


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
    kinds = {
        "int32": jnp.ones(3, int),
        "complex": jnp.ones(3, jnp.complex64),
        "float0, the gradient of an integer": np.zeros(3, jax.dtypes.float0),
    }
    for found, leaf in kinds.items():
        updates = {"dense": {**PARAMS["dense"], "bias": leaf}}
        fails(
            updates,
            f"dense/bias: expected a real floating-point gradient, .* found {found}",
            TypeError,
        )
    params = jnp.ones(2, jnp.complex64)
    message = "the only leaf of the tree: expected a complex floating-point gradient, .* found real"
    fails(jnp.ones(2), message, TypeError, params)


WRONG_LEAVES = {
    "longer": lambda g: np.stack([g, g]),
    "integers": lambda g: g.astype(int),
    "complex": lambda g: g + np.complex64(1j),
    "text": lambda _: "x",
    "branch": lambda g: {"inner": g},
}


@given(
    sizes=st.lists(st.sampled_from([(), (1,), (3,), (2, 3)]), min_size=1, max_size=4),
    place=st.integers(0, 3),
    fault=st.sampled_from(sorted([*WRONG_LEAVES, "missing", "unexpected"])),
    amsgrad=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_malformed_gradients_raise_and_change_nothing(sizes, place, fault, amsgrad):
    params = {f"p{i}": np.ones(size, np.float32) for i, size in enumerate(sizes)}
    name = f"p{place % len(sizes)}"
    tx = adamx.scale_by_adam(amsgrad=amsgrad)
    state = jax.device_get(tx.init(params))
    before = copy.deepcopy(state)
    updates = dict(params)
    if fault == "missing":
        del updates[name]
    elif fault == "unexpected":
        updates[f"{name}x"] = updates[name]
    else:
        updates[name] = WRONG_LEAVES[fault](updates[name])
    with pytest.raises((ValueError, TypeError), match=name):
        tx.update(updates, state)
    chex.assert_trees_all_equal(state, before)


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


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            {"dense": {"kernel": True}},
            ValueError,
            "^mask: .* a different structure; missing: dense/bias",
        ),
        (
            {"dense": {"kernel": True, "bias": False, "scale": True}},
            ValueError,
            "^mask: .*; unexpected: dense/scale",
        ),
        (lambda _: {"other": True}, ValueError, "^mask: .*; missing: .*; unexpected: other"),
        (
            {"dense": {"kernel": "decay", "bias": False}},
            TypeError,
            "^mask: dense/kernel: expected True or False, found str 'decay'; .*optax.partition",
        ),
        ({"dense": jnp.array([True, False])}, TypeError, "^mask: dense: expected True or False"),
        ({"dense": 0.5}, TypeError, "^mask: dense: .* found float 0.5"),
    ],
)
def test_masks_that_are_none(mask, error, message):
    tx, fused = adamx.adamw(0.1, mask=mask), adamx.fused_adamw(0.1, mask=mask)
    coupled = adamx.fused_adam(0.1, weight_decay=0.1, decoupled=False, mask=mask, packed=True)
    for call in (
        lambda: tx.init(PARAMS),
        lambda: fused.init(PARAMS),
        lambda: coupled.init(PARAMS),
        lambda: jax.jit(fused.step)(PARAMS, PARAMS, adamx.adamw(0.1, mask=True).init(PARAMS)),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("truth", [np.array, jnp.array, np.bool_])
def test_masks_of_arrays(truth):
    masks = {"dense": {"kernel": truth(True), "bias": truth(False)}}
    expected = {"dense": {"kernel": True, "bias": False}}
    results = [
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]
        for tx in (adamx.adamw(0.1, mask=mask) for mask in (masks, expected))
    ]
    chex.assert_trees_all_equal(*results)


def test_precise_numbers_of_numpy():
    """Its float16 has no 1e-8, whatever became of it."""
    for number in (np.float16(1e-8), np.array(1e-8, jnp.bfloat16), jnp.float16(1e-8)):
        with pytest.raises(TypeError, match=r"^eps: expected .* float32 or wider, found b?float16"):
            adamx.scale_by_adam(eps=number)
