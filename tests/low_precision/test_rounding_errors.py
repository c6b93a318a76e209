"""Bad input to what is rounded at random: an error that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from tests.low_precision.rounded_runs import apply_updates
from tests.tensors import Tensor


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (None, TypeError, "expected an int, a jax.random key .*, found NoneType"),
        (True, TypeError, "found bool"),
        (0.5, TypeError, "found float"),
        (jnp.float32(0), TypeError, "found an array of float32. .* static_args="),
        (jnp.zeros(3, jnp.uint32), ValueError, r"uint32\[2\], found shape \(3,\)"),
        (
            jax.random.PRNGKey(0, impl="rbg"),
            ValueError,
            r"found shape \(4,\), as of another generator",
        ),
        (np.zeros((4, 2), np.uint32), ValueError, r"found \(4, 2\); .* jax.vmap"),
        (jax.random.split(jax.random.key(0)), ValueError, r"of shape \(\), found \(2,\)"),
        (jax.random.key(0, impl="rbg"), ValueError, "expected a Threefry key, found a key of rbg"),
    ],
)
def test_bad_keys(key, error, message):
    with pytest.raises(error, match=f"^key: .*{message}"):
        adamx.stochastic_round(key)
    with pytest.raises(error, match=f"^key: .*{message}"):
        adamx.residual_params(key=key)
    if key is not None:
        with pytest.raises(error, match=f"^nu_key: .*{message}"):
            adamx.adamw(1e-3, nu_dtype="bfloat16", nu_key=key)


@pytest.mark.parametrize("nu_dtype", [None, "float32", jnp.float16, "float8_e5m2"])
@pytest.mark.parametrize("build", [adamx.scale_by_adam, adamx.adam, adamx.adamw])
def test_nu_key_without_bfloat16(build, nu_dtype):
    arguments = {} if build is adamx.scale_by_adam else {"learning_rate": 1e-3}
    message = "nu_key: expected nu_dtype=.bfloat16. with it, found .*; set that"
    with pytest.raises(ValueError, match=message):
        build(**arguments, nu_dtype=nu_dtype, nu_key=0)


def test_bad_updates():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = adamx.stochastic_round(0)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"params: expected the parameters, .* found None; call"):
        tx.update(params, state)
    with pytest.raises(
        TypeError, match=r"state: expected StochasticRoundState, .* found EmptyState"
    ):
        tx.update(params, optax.EmptyState(), params)
    with pytest.raises(ValueError, match="missing: w; unexpected: v"):
        tx.update({"v": params["w"]}, state, params)
    with pytest.raises(ValueError, match=r"w: expected a gradient of shape \(3,\)"):
        tx.update({"w": jnp.ones(1)}, state, params)


def widen(params, updates):
    """What `equinox.apply_updates` does."""
    return jax.tree.map(lambda p, u: p.astype(u.dtype) + u, params, updates)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("is_jitted", [False, True])
def test_parameters_that_were_widened(dtype, is_jitted):
    tx = optax.chain(adamx.adam(1e-3), adamx.stochastic_round(0))
    params = {"a": jnp.ones(3, dtype), "b": jnp.ones(2), "c": jnp.ones(4, dtype)}
    state = tx.init(params)
    update = jax.jit(tx.update) if is_jitted else tx.update
    updates, state = update(params, state, params)
    wide = widen(params, updates) | {"c": params["c"]}  # which was not trained
    message = (
        f"params: expected the dtypes given to init, 2 of {dtype}, found 1 of {dtype}; .*apply"
    )
    with pytest.raises(ValueError, match=message):
        update(wide, state, wide)
    narrow = apply_updates(params, updates)
    update(narrow, state, narrow)


def test_a_state_of_an_earlier_version_is_taken():
    tx, params = adamx.stochastic_round(0), jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    old = adamx.StochasticRoundState(state.count, state.key)
    expected, _ = tx.update(params, state, params)
    found, after = tx.update(params, old, params)
    np.testing.assert_array_equal(found, expected)
    assert after.narrow is None


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "after",
    [
        lambda: adamx.adam(1e-3),
        lambda: adamx.adamw(1e-3),
        lambda: adamx.AdamConfig(weight_decay=0.1, decoupled=False).transformation(),
        lambda: optax.masked(adamx.scale_by_adam(), True),
    ],
)
def test_what_is_rounded_comes_last(after):
    params = {"dense": {"kernel": jnp.ones(3, jnp.bfloat16), "bias": jnp.ones(3)}}
    wrong = optax.chain(adamx.stochastic_round(0), after())
    for update in (wrong.update, jax.jit(wrong.update)):
        with pytest.raises(
            ValueError, match=r"dense/kernel: .* the last transformation of the chain"
        ):
            update(params, wrong.init(params), params)
    right = optax.chain(after(), adamx.stochastic_round(0))
    for _ in range(2):
        jax.jit(right.update)(params, right.init(params), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)  # nothing is rounded
    wrong.update(wide, wrong.init(wide), wide)


def test_a_tensor_is_no_key():
    for build in (
        adamx.stochastic_round,
        lambda key: adamx.scale_by_adam(nu_dtype="bfloat16", nu_key=key),
    ):
        with pytest.raises(
            TypeError, match=r"key: expected an int, a jax.random key .*, found torch.Tensor"
        ):
            build(Tensor())
