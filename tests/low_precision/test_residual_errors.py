"""Bad input to what keeps residuals: an error that says what to do, and nothing changed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.low_precision.rounded_runs import apply_updates

TX = adamx.residual_params()
PARAMS = {"dense": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}, "norm": jnp.ones(3)}


@pytest.mark.parametrize("bits", [0, 4, 32, 8.0, True, "8", None])
def test_bits(bits):
    with pytest.raises(ValueError, match=r"bits: expected 8 or 16, found "):
        adamx.residual_params(bits)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_parameters_in_8_bits(dtype):
    params = PARAMS | {"w": jnp.ones(3, dtype)}
    message = rf"w: expected a parameter of bfloat16 or float16.* found {dtype}; adamx.stoch"
    with pytest.raises(TypeError, match=message):
        TX.init(params)
    with pytest.raises(TypeError, match="step: expected a floating-point"):
        TX.init({"step": jnp.int32(0)})


def test_arguments_of_update():
    state = TX.init(PARAMS)
    with pytest.raises(ValueError, match=r"params: expected the parameters, .* found None; call"):
        TX.update(PARAMS, state)
    with pytest.raises(TypeError, match=r"state: expected ResidualState, .* found EmptyState"):
        TX.update(PARAMS, optax.EmptyState(), PARAMS)
    with pytest.raises(ValueError, match=r"norm: expected a gradient of shape \(3,\)"):
        TX.update(PARAMS | {"norm": jnp.ones(1)}, state, PARAMS)
    with pytest.raises(ValueError, match="missing: norm"):
        TX.update({"dense": PARAMS["dense"]}, state, PARAMS)


@pytest.mark.parametrize("is_jitted", [False, True])
def test_parameters_that_were_widened(is_jitted):
    update = jax.jit(TX.update) if is_jitted else TX.update
    updates, state = update(PARAMS, TX.init(PARAMS), PARAMS)
    wide = jax.tree.map(lambda p, u: p.astype(u.dtype) + u, PARAMS, updates)  # as Equinox does
    message = (
        r"params: expected the dtypes given to init, 1 of bfloat16, found none narrower .*apply"
    )
    with pytest.raises(ValueError, match=message):
        update(wide, state, wide)
    half = optax.tree.cast(PARAMS, "float16")
    with pytest.raises(ValueError, match=r"1 of bfloat16, found 2 of float16"):
        update(half, state, half)
    with pytest.raises(
        TypeError, match=r"dense/kernel: expected a parameter in bfloat16 .*float32"
    ):
        adamx.full_params(wide, state)
    narrow = apply_updates(PARAMS, updates)
    update(narrow, state, narrow)


def test_states_of_other_parameters():
    state = TX.init(PARAMS)
    with pytest.raises(TypeError, match=r"residual: dense/kernel: expected int16.* found int8. To"):
        adamx.residual_params(16).update(PARAMS, state, PARAMS)
    # The same number of narrow leaves, but others.
    turned = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": jnp.ones(3, jnp.bfloat16)}
    with pytest.raises(TypeError, match=r"residual: dense/kernel: expected None.* found int8"):
        TX.update(turned, state, turned)
    taller = {"dense": {"kernel": jnp.ones((4, 3), jnp.bfloat16)}, "norm": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"dense/kernel: expected shape \(4, 3\).* found \(2, 3\)"):
        TX.update(taller, state, taller)
    renamed = {"layer": PARAMS["dense"], "norm": PARAMS["norm"]}
    with pytest.raises(ValueError, match=r"state: residual: the structure differs"):
        TX.update(renamed, state, renamed)
    narrow, other = PARAMS | {"norm": jnp.ones(3, jnp.bfloat16)}, state._replace(narrow=None)
    with pytest.raises(TypeError, match=r"residual: norm: expected int8.* found NoneType"):
        TX.update(narrow, other, narrow)


@pytest.mark.parametrize("after", [adamx.adam(1e-3), adamx.stochastic_round(0), TX])
def test_what_is_rounded_comes_last(after):
    chain = optax.chain(adamx.residual_params(16), after)
    if isinstance(chain.init(PARAMS)[1], adamx.StochasticRoundState):
        chain = optax.chain(after, adamx.residual_params(16))
    for update in (chain.update, jax.jit(chain.update)):
        with pytest.raises(ValueError, match=r"kernel: .* or residual_params .* the last transf"):
            update(PARAMS, chain.init(PARAMS), PARAMS)
    wide = optax.tree.cast(PARAMS, "float32")
    chain.update(wide, chain.init(wide), wide)  # nothing is rounded


def test_states_without_one_residual():
    with pytest.raises(
        ValueError, match=r"state: expected one ResidualState.* found none in tuple"
    ):
        adamx.full_params(PARAMS, adamx.adam(1e-3).init(PARAMS))
    mask = {"dense": True, "norm": False}
    labels = {"dense": "a", "norm": "b"}
    several = optax.partition({"a": TX, "b": TX}, labels)
    with pytest.raises(
        ValueError, match=r"found 2 of them; chain one .* after the optax.partition"
    ):
        adamx.full_params(PARAMS, several.init(PARAMS))
    adamx.full_params(PARAMS, optax.masked(TX, mask).init(PARAMS))


def test_full_params_of_other_parameters():
    state = TX.init(PARAMS)
    with pytest.raises(
        ValueError, match=r"params: .* found none for the residuals of dense/kernel"
    ):
        adamx.full_params({"norm": PARAMS["norm"]}, state)
    taller = {"dense": {"kernel": jnp.ones((4, 3), jnp.bfloat16)}, "norm": jnp.ones(3)}
    message = r"state: residual: dense/kernel: .*shape \(4, 3\).* found int8 of shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        adamx.full_params(taller, state)
    with pytest.raises(ValueError, match=r"a/b: two parameters have this path"):
        adamx.full_params({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, TX.init({}))


def test_weights_of_another_tree():
    state = TX.init(PARAMS)
    weights = optax.tree.cast(PARAMS, "float32")
    with pytest.raises(ValueError, match=r"weights: .* missing: norm"):
        adamx.split_params({"dense": weights["dense"]}, PARAMS, state)
    with pytest.raises(ValueError, match=r"weights: norm: expected shape \(3,\).* found \(4,\)"):
        adamx.split_params(weights | {"norm": jnp.ones(4)}, PARAMS, state)
    with pytest.raises(TypeError, match=r"weights: norm: expected a real weight.* found int32"):
        adamx.split_params(weights | {"norm": jnp.ones(3, jnp.int32)}, PARAMS, state)


def test_weights_go_where_the_parameters_are():
    device = jax.devices()[1]
    params = jax.device_put({"w": jnp.ones(2, jnp.bfloat16), "norm": jnp.ones(2)}, device)
    state = jax.device_put(TX.init(params), device)
    weights = {"w": np.float64([0.1, 0.2]), "norm": np.float32([1, 2])}
    found, after = adamx.split_params(weights, params, state)
    for leaf in (found["w"], found["norm"], after.residual["w"]):
        assert leaf.devices() == {device}
    assert (found["w"].dtype, found["norm"].dtype) == ("bfloat16", "float32")
    np.testing.assert_array_equal(found["norm"], weights["norm"])
    wide = adamx.full_params(found, after)["w"]
    np.testing.assert_allclose(wide, weights["w"], rtol=2.0**-16)  # half a unit of 2**-15
