"""Parameters whose lost bits are kept, beside float32 and double precision in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.eight_bit import EightBit, moment_keys
from adamx.base.random_bits import fold_in, key_data, leaf_keys
from adamx.base.residual import split
from adamx.transforms.adam import nu_keys
from tests.low_precision.rounded_runs import apply_updates, as_bits, make_step

DTYPES = ["bfloat16", "float16"]


def run_all(tx, params, updates):
    """Parameters and state after the steps with these updates, compiled as one loop."""

    def step(carry, u):
        return make_step(tx)(*carry, u), None

    run = jax.jit(lambda start, updates: jax.lax.scan(step, start, updates)[0])
    return run((params, tx.init(params)), updates)


# ---- 16 bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_16_bits_are_a_run_in_float32(dtype):
    """400 steps of 500 weights, bit for bit; updates from 1e-7 of a weight to all of it."""
    rng = np.random.default_rng(0)
    steps, size = 400, 500
    scale = 2.0 ** rng.uniform(-3, 3, size)
    relative = rng.choice([1e-7, 1e-5, 1e-3, 1e-1, 1.0], (steps, 1))
    updates = (rng.standard_normal((steps, size)) * relative * scale).astype(np.float32)
    params = jnp.asarray(rng.standard_normal(size) * scale, dtype)
    w = np.asarray(params, np.float32)
    for u in updates:
        w = w + u
    after = run_all(adamx.residual_params(16), params, jnp.asarray(updates))
    np.testing.assert_array_equal(adamx.full_params(*after), w)
    np.testing.assert_array_equal(as_bits(after[0]), as_bits(w.astype(dtype)))


def test_adam_with_16_bits_is_adam_in_float32():
    rng = np.random.default_rng(1)
    grads = jnp.asarray(rng.standard_normal((100, 300)), jnp.float32)
    params = jnp.asarray(rng.standard_normal(300), jnp.bfloat16)
    adam = adamx.adam(1e-3, mu_dtype="float32")
    wide, _ = run_all(adam, params.astype(jnp.float32), grads)
    after = run_all(optax.chain(adam, adamx.residual_params(16)), params, grads)
    np.testing.assert_array_equal(adamx.full_params(*after), wide)


def test_a_weight_that_crosses_zero_and_almost_vanishes():
    """The parameter is rounded up to 1/4; no float32 added to it is w'. The bound is reached."""
    w, u = np.float32(-0.24999778), np.float32(0.25000027)
    tx = adamx.residual_params(16)
    start = jnp.asarray([w], jnp.bfloat16)
    params, state = adamx.split_params(jnp.asarray([w]), start, tx.init(start))
    after = make_step(tx)(params, state, jnp.asarray([u]))
    found = np.asarray(adamx.full_params(*after))
    assert 0 < abs(found - (w + u)) <= 2.0**-24 * abs(w) * (1 + 2.0**-16)
    np.testing.assert_array_equal(found, after[0].astype(jnp.float32))


# ---- 8 bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "mantissa"), [("bfloat16", 15), ("float16", 18)])
def test_8_bits_are_off_by_less_than_a_unit_and_the_parameter_is_nearest(dtype, mantissa):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(20_000).astype(np.float32)
    tx, narrow = adamx.residual_params(8), jnp.asarray(weights, dtype)
    params, state = adamx.split_params(jnp.asarray(weights), narrow, tx.init(narrow))
    before = np.asarray(adamx.full_params(params, state))
    updates = (rng.standard_normal(20_000) * 1e-3).astype(np.float32)
    params, state = jax.jit(make_step(tx))(params, state, jnp.asarray(updates))
    found, exact = np.asarray(adamx.full_params(params, state)), before + updates
    unit = 2.0 ** (np.frexp(np.abs(exact))[1] - 1 - mantissa)
    error = np.abs(found.astype(np.float64) - exact)
    assert np.all(error < np.maximum(unit, 2.0**-32))
    assert np.mean(error > unit / 2) > 0.1  # at random, not to nearest
    pairs = (np.asarray(params), found.astype(dtype))
    own, nearest = (np.abs(x.astype(np.float64) - found) for x in pairs)
    np.testing.assert_array_equal(own, nearest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_of_a_millionth_survive(dtype):
    """They move 10,000 weights by the right mean; each is below a unit and below half an ulp."""
    steps, size, u = 100, 10_000, 1e-6
    mantissa = 15 if dtype == "bfloat16" else 18
    params = jnp.ones(size, dtype)
    updates = jnp.full((steps, size), u)
    nearest = run_all(optax.identity(), params, updates)[0]
    np.testing.assert_array_equal(nearest, params)
    moved = np.asarray(adamx.full_params(*run_all(adamx.residual_params(), params, updates)), float)
    u = float(np.float32(1 + np.float64(u))) - 1  # what float32 makes of 1 + u
    share = u / 2.0**-mantissa
    deviation = 2.0**-mantissa * np.sqrt(steps * share * (1 - share) / size)
    assert abs((moved - 1).mean() - steps * u) < 3 * deviation < 0.02 * steps * u


def test_small_weights_of_float16_move_by_the_right_mean():
    """Below 2**-14, where the units are 2**-32 in any size; from 0 across 0 and back."""
    steps, size, unit = 60, 10_000, 2.0**-32
    signs = np.repeat([1, -1, 1], steps // 3)
    updates = jnp.asarray(np.broadcast_to(0.3 * unit * signs[:, None], (steps, size)), jnp.float32)
    after = run_all(adamx.residual_params(), jnp.zeros(size, jnp.float16), updates)
    weights = np.asarray(adamx.full_params(*after), np.float64)
    deviation = unit * np.sqrt(steps * 0.3 * 0.7 / size)
    assert abs(weights.mean() - 0.3 * unit * signs.sum()) < 3 * deviation < 0.15 * unit


def test_the_bits_are_those_of_the_documented_keys():
    """And no other stream with the same seed has the same keys."""
    params = [jnp.linspace(0.5, 1, 300, dtype=jnp.bfloat16)] * 2
    updates = [jnp.full(300, 1e-4)] * 2
    tx = adamx.residual_params(key=7)
    state = tx.init(params)._replace(count=jnp.int32(4))
    _, after = tx.update(updates, state, params)
    key = jax.random.key(7)
    for number in (2**32 - 3, 4):
        key = jax.random.fold_in(key, np.uint32(number))
    for i, r in enumerate(after.residual):
        own = jax.random.key_data(jax.random.fold_in(key, i))
        w = params[i].astype(jnp.float32) + updates[i]
        np.testing.assert_array_equal(r, split(w, jnp.dtype("bfloat16"), 8, own)[1])
    assert np.any(after.residual[0] != after.residual[1])
    streams = [leaf_keys(key_data(7), 4, 2), nu_keys(7, jnp.int32(4), 2)]
    streams += [moment_keys(EightBit(key=7), 4, 2)]
    streams += [leaf_keys(fold_in(key_data(7), np.uint32(2**32 - 3)), 4, 2)]
    assert len({tuple(row) for rows in streams for row in np.asarray(rows).tolist()}) == 8


# ---- What is not a finite number -----------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_and_nan_are_those_of_float32(dtype, bits):
    starts = np.float32([1, -2, 0, np.nan, np.inf, -np.inf, np.inf, 1, -0.0, 0.5])
    updates = np.float32([np.inf, -np.inf, np.nan, 1, 1, 0, -np.inf, 0, -0.0, -0.0])
    params = jnp.asarray(starts, dtype)
    for _ in range(2):
        with np.errstate(invalid="ignore"):
            starts = starts + updates
    after = run_all(adamx.residual_params(bits), params, jnp.asarray([updates] * 2))
    for found in (after[0], adamx.full_params(*after)):
        np.testing.assert_array_equal(found.astype(jnp.float32), starts)
        if dtype == "bfloat16":  # float16 has one zero
            np.testing.assert_array_equal(np.signbit(found), np.signbit(starts))


def test_weights_beyond_the_range_of_their_dtype():
    """In bfloat16 p is infinite and w is not; in float16 both are. p cannot return."""
    tx = adamx.residual_params(16)
    params = jnp.asarray([3.38e38, -3.38e38], jnp.bfloat16)
    update = jnp.asarray([0.02e38, -0.02e38], jnp.float32)
    w = np.asarray(params, np.float32) + np.asarray(update)
    params, state = make_step(tx)(params, tx.init(params), update)
    np.testing.assert_array_equal(adamx.full_params(params, state), w)
    assert np.all(np.isinf(np.asarray(params, np.float32)))
    params, state = make_step(tx)(params, state, -update)
    assert np.all(np.isnan(np.asarray(params, np.float32)))
    assert np.all(np.isnan(adamx.full_params(params, state)))
    params = jnp.asarray([65504, -65504], jnp.float16)
    after = make_step(tx)(params, tx.init(params), jnp.asarray([16.0, -16.0]))
    np.testing.assert_array_equal(adamx.full_params(*after), [np.inf, -np.inf])
    after = make_step(tx)(params, tx.init(params), jnp.asarray([15.0, -15.0]))
    np.testing.assert_array_equal(adamx.full_params(*after), [65519, -65519])


def test_where_subnormal_differences_are_flushed_the_weight_is_the_parameter():
    """Some lose r, all below 2**-118 in size; the others are those of float32, compiled too."""
    rng, size, tx = np.random.default_rng(0), 400_000, adamx.residual_params(16)
    signs, sizes = rng.choice([-1, 1], (2, size)), rng.uniform([[-126], [-130]], -112, (2, size))
    weights, updates = jnp.asarray(signs * 2.0**sizes, jnp.float32)
    narrow = weights.astype(jnp.bfloat16)
    params, state = adamx.split_params(weights, narrow, tx.init(narrow))
    params, state = jax.jit(make_step(tx))(params, state, updates)
    expected, found = jax.jit(jnp.add)(weights, updates), adamx.full_params(params, state)
    other = np.asarray(found != expected)
    assert 0 < other.sum() < size / 10_000
    assert np.all(np.abs(expected)[other] < 2.0**-118)
    np.testing.assert_array_equal(found[other], params.astype(jnp.float32)[other])


# ---- Trees and derivatives -----------------------------------------------------------------------


def test_other_leaves_pass():
    params = {
        "none": None,
        "wide": jnp.ones(3),
        "complex": jnp.ones(3, jnp.complex64),
        "number": 1.0,
        "narrow": jnp.ones(3, jnp.bfloat16),
        "frozen": jnp.ones((3, 2), jnp.float16),
    }
    updates = params | {"narrow": jnp.full(3, 1e-3, jnp.bfloat16), "frozen": None}
    tx = adamx.residual_params(16)
    state = tx.init(params)
    found, after = tx.update(updates, state, params)
    for name in ("none", "wide", "complex", "number", "frozen"):
        assert found[name] is updates[name]
    for residual in (state.residual, after.residual):
        assert all(residual[name] is None for name in ("none", "wide", "complex", "number"))
        assert (residual["narrow"].dtype, residual["frozen"].dtype) == ("int16", "int16")
        assert (residual["narrow"].shape, residual["frozen"].shape) == ((3,), (3, 2))
    assert found["narrow"].dtype == "float32"
    assert after.count == 1
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_bits_depend_on_the_place_in_the_tree_alone():
    """A leaf that does not train for a step leaves the others' bits as they are."""
    tx = adamx.residual_params()
    params = [jnp.zeros(100, jnp.bfloat16)] * 3
    updates = [jnp.full(100, 1.00301)] * 3
    _, whole = tx.update(updates, tx.init(params), params)
    _, part = tx.update([None, updates[1], None], tx.init(params), params)
    np.testing.assert_array_equal(whole.residual[1], part.residual[1])
    np.testing.assert_array_equal(part.residual[0], 0)
    for mine, other in itertools.combinations(whole.residual, 2):
        assert np.any(mine != other)


def test_derivatives_are_those_of_the_sum():
    params, gradient = jnp.array([1.0, -2.0, 0.5], jnp.bfloat16), jnp.array([0.3, 0.2, -0.7])

    def after(rate, params):
        tx = optax.chain(optax.scale(-rate), adamx.residual_params())
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(gradient, state, params)
            params = apply_updates(params, updates)
        return jnp.sum(adamx.full_params(params, state))

    by_rate, by_params = jax.jit(jax.grad(after, (0, 1)))(jnp.float32(1e-3), params)
    np.testing.assert_allclose(by_rate, -2 * np.sum(np.asarray(gradient)), rtol=1e-2)  # of bfloat16
    np.testing.assert_array_equal(np.asarray(by_params, float), 1.0)


# ---- A training ----------------------------------------------------------------------------------


def final_loss(dtype, after):
    """Of a logistic regression on 200 points, after 1,000 steps of Adam."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((200, 40)), jnp.float32)
    noise = 3 * rng.standard_normal(200)
    y = jnp.asarray(x @ rng.standard_normal(40).astype(np.float32) + noise > 0, jnp.float32)
    cast = optax.stateless(lambda grads, _: optax.tree.cast(grads, "float32"))
    tx = optax.chain(cast, adamx.adam(1e-3, mu_dtype="float32"), after)

    def loss(params):
        logits = x @ params.astype(jnp.float32)
        return jnp.mean(jnp.logaddexp(0, logits) - y * logits)

    def step(carry, _):
        params, state = carry
        return make_step(tx)(params, state, jax.grad(loss)(params)), None

    params = jnp.asarray(rng.standard_normal(40), dtype)
    run = jax.jit(lambda start: jax.lax.scan(step, start, None, 1000)[0])
    params, state = run((params, tx.init(params)))
    is_residual = isinstance(state[-1], adamx.ResidualState)
    return float(loss(adamx.full_params(params, state) if is_residual else params))


@pytest.mark.slow
def test_a_training_ends_where_it_does_in_float32():
    wide = final_loss("float32", optax.identity())
    for bits in (8, 16):
        assert abs(final_loss("bfloat16", adamx.residual_params(bits)) - wide) < 1e-3
    assert final_loss("bfloat16", optax.identity()) > wide + 1  # where each update is rounded
