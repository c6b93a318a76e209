"""What bad input gets from the fused step: before anything is changed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.errors import InvalidType

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
OPTIMIZER = adamx.fused_adam(1e-3)
STATE = OPTIMIZER.init(PARAMS)


@pytest.mark.parametrize("build", [adamx.fused_adam, adamx.fused_adamw])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": -1e-3}, ValueError, "learning_rate: .* found -0.001"),
        ({"b1": 1.0}, ValueError, "b1: .* found 1.0"),
        ({"eps": -1.0}, ValueError, "eps: .* found -1.0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay: .* found -0.1"),
        ({"clip_global_norm": 0}, ValueError, "clip_global_norm: .* above 0 or None, found 0"),
        ({"clip_global_norm": -1.0}, ValueError, "clip_global_norm: .* found -1.0"),
        ({"convention": "pytorch"}, ValueError, "convention: .* found 'pytorch'"),
        ({"mu_dtype": "int32"}, TypeError, "mu_dtype: expected a floating-point dtype"),
        ({"b2": np.array([0.9])}, ValueError, "b2: .*"),
        ({"epsilon": 1e-8}, TypeError, r"no argument 'epsilon': it is called eps here"),
        (
            {"global_clipnorm": 1.0},
            TypeError,
            r"no argument .*: it is called clip_global_norm here",
        ),
        (
            {"nesterov": True, "convention": "torch"},
            ValueError,
            'nesterov: .*convention="optax" with it',
        ),
        ({"nu_key": 0}, ValueError, 'nu_key: expected nu_dtype="bfloat16" with it'),
    ],
)
def test_arguments(build, arguments, error, message):
    with pytest.raises(error, match=message):
        build(**{"learning_rate": 1e-3} | arguments)


def test_integer_parameters():
    with pytest.raises(TypeError, match="w: expected a floating-point or complex parameter"):
        OPTIMIZER.init({"w": jnp.arange(3)})


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"dense": {"kernel": jnp.ones((2, 3))}}, ValueError, "missing: dense/bias"),
        (
            {"dense": jnp.ones(3)},
            ValueError,
            "structure of the gradients differs from that of the param",
        ),
        (
            {"dense": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(3)}},
            ValueError,
            r"dense/kernel: expected a gradient of shape \(2, 3\).* found \(2, 1\)",
        ),
        (
            {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.arange(3)}},
            TypeError,
            "dense/bias: expected a real floating-point gradient",
        ),
    ],
)
def test_gradients(grads, error, message):
    for step in (OPTIMIZER.step, jax.jit(OPTIMIZER.step)):
        with pytest.raises(error, match=message):
            step(grads, PARAMS, STATE)


class Layer(NamedTuple):
    kernel: Any
    bias: Any


LAYER = Layer(jnp.ones((2, 3)), jnp.ones(3))
TREES = {
    "dictionary": PARAMS,
    "array": jnp.ones(3),
    "tuple": tuple(LAYER),
    "named tuple": LAYER,
    "tuple of tuples": (LAYER, (jnp.ones(2), LAYER)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_order_of_arguments(params, amsgrad, packed):
    """A state is told by its type, wherever it stands and whatever the other two are."""
    optimizer = adamx.fused_adamw(1e-3, amsgrad=amsgrad, packed=packed, clip_global_norm=1.0)
    grads, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
    misplaced = {
        "params": [(grads, state, params), (None, state, params), (grads, state, state)],
        "grads": [(state, grads, params), (state, params, grads), (state, params, state)],
    }
    for step in (optimizer.step, jax.jit(optimizer.step), optimizer.jit()):
        for name, calls in misplaced.items():
            for arguments in calls:
                with pytest.raises(InvalidType, match=r"order changed in adamx 0\.1\.0") as raised:
                    step(*arguments)
                error = raised.value
                assert (error.where, error.found) == ("step", f"an optimizer's state as {name}")
                assert error.expected == "gradients, parameters and state, in this order"
                assert "params, state = optimizer.step(grads, params, state)" in error.remedy
        after, _ = step(*jax.tree.map(jnp.copy, (grads, params, state)))
        assert jax.tree.structure(after) == jax.tree.structure(params)
    assert not any(x.is_deleted() for x in jax.tree.leaves((grads, params, state)))


def test_states():
    packed = adamx.fused_adam(1e-3, packed=True)
    with pytest.raises(TypeError, match=r"part adam: expected PackedAdamState.* adamx.pack"):
        packed.step(PARAMS, PARAMS, STATE)
    with pytest.raises(TypeError, match=r"part adam: expected ScaleByAdamState.* adamx.unpack"):
        OPTIMIZER.step(PARAMS, PARAMS, packed.init(PARAMS))
    with pytest.raises(
        TypeError, match=r"part adam: expected ScaleByAmsgradState, .* found ScaleByAdam"
    ):
        adamx.fused_adam(1e-3, amsgrad=True).step(PARAMS, PARAMS, STATE)
    with pytest.raises(TypeError, match=r"expected a tuple of 2 parts \(adam, rate\).* found 3"):
        OPTIMIZER.step(PARAMS, PARAMS, adamx.fused_adamw(1e-3).init(PARAMS))
    with pytest.raises(TypeError, match="part rate: expected ScaleByScheduleState"):
        adamx.fused_adam(optax.constant_schedule(0.1)).step(PARAMS, PARAMS, STATE)
    other = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}}
    with pytest.raises(
        ValueError, match=r"state: mu/dense/kernel: expected shape \(3, 2\), .* found \(2, 3\)"
    ):
        OPTIMIZER.step(other, other, STATE)
    with pytest.raises(
        ValueError, match=r"state: mu: the structure differs from that of the parameters"
    ):
        OPTIMIZER.step(PARAMS["dense"], PARAMS["dense"], STATE)
    with pytest.raises(ValueError, match=r"mu: expected buffers of .* packed for other parameters"):
        packed.step([jnp.ones(99)], [jnp.ones(99)], packed.init(PARAMS))


def test_dtypes_of_parameters_and_moments():
    whole = {"w": jnp.arange(3)}
    with pytest.raises(TypeError, match="w: expected a floating-point or complex parameter"):
        OPTIMIZER.step(whole, whole, STATE)
    params = jnp.ones(3)
    both: Any = OPTIMIZER.init(params)
    adam, rate = both
    for field, moment in (("mu", jnp.ones(3, "complex64")), ("nu", jnp.arange(3))):
        state = (adam._replace(**{field: moment}), rate)
        with pytest.raises(TypeError, match=f"state: {field}: expected floating-p"):
            OPTIMIZER.step(params, params, state)


def test_float64_outside_of_its_mode():
    with jax.enable_x64(True):
        params = jnp.ones(3, "float64")
        state = OPTIMIZER.init(params)
    with pytest.raises(ValueError, match="expected jax_enable_x64 for arrays of float64"):
        OPTIMIZER.step(params, params, state)
