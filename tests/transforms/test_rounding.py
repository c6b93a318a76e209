"""Stochastic rounding beside `jax.random`, NumPy's rounding and the binomial distribution."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx
from adamx.base import random_bits
from tests.transforms.rounded_runs import all_numbers, apply_updates, as_bits, make_step, neighbours

DTYPES = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)

# ---- The bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (1000,), (7, 5), (2, 0, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("x64", [False, True])
def test_bits_are_those_of_jax(shape, x64):
    with jax.enable_x64(x64):
        bits = jax.jit(random_bits.random_bits, static_argnums=1)
        for seed in (0, 1, 2**31 - 1, -3):
            key = jax.random.key(seed, impl="threefry2x32")
            expected = jax.random.bits(key, shape, "uint32")
            data = jax.random.key_data(key)
            for given_key in (seed, key, data, np.asarray(data)):
                found = bits(random_bits.key_data(given_key), shape)
                np.testing.assert_array_equal(found, expected, strict=True)


def test_keys_are_those_of_jax():
    key = jax.random.key(3)
    step = jax.random.fold_in(key, 11)
    expected = [jax.random.key_data(jax.random.fold_in(step, i)) for i in range(4)]
    found = random_bits.leaf_keys(jax.random.key_data(key), jnp.int32(11), 4)
    np.testing.assert_array_equal(found, np.stack(expected), strict=True)


@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 4), (2, 2, 2, 2), (1, 8), (8, 1)])
@pytest.mark.parametrize("limit", [1, 4, 8, 12, 2**32])
def test_no_two_elements_have_the_same_counters(shape, limit):
    first, second = (
        np.broadcast_to(x, shape).reshape(-1) for x in random_bits._counters(shape, limit=limit)
    )
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(pairs) == first.size
    if first.size <= limit:
        np.testing.assert_array_equal(second, np.arange(first.size))
        assert not first.any()


@pytest.mark.parametrize("shape", [(2**20, 2**15), (2, 2**32), (1, 2**32)])
def test_bits_of_huge_arrays(shape):
    found = jax.eval_shape(lambda: random_bits.random_bits(jnp.zeros(2, jnp.uint32), shape))
    assert (found.shape, found.dtype) == (shape, "uint32")


# ---- Rounding ------------------------------------------------------------------------------------


@given(x=finite, dtype=st.sampled_from(["bfloat16", "float16"]))
@settings(max_examples=200, deadline=None)
def test_probabilities_are_exact(x, dtype):
    """Over all random bits that matter, the share of each neighbour is what makes the mean x."""
    info = jnp.finfo(dtype)
    x = np.float32(x) if abs(x) <= float(info.max) else np.float32(np.frexp(x)[0])
    below, above = neighbours(x, dtype)
    every = np.arange(2**16, dtype=np.uint32)
    bits = every << 16 | every
    rounded = np.asarray(random_bits._round(jnp.full(2**16, x), bits, jnp.dtype(dtype)), np.float32)
    assert np.all((rounded == below) | (rounded == above))
    if above > below:
        share = Fraction(int(np.sum(rounded == above)), 2**16)
        exact = (Fraction(float(x)) - Fraction(float(below))) / Fraction(float(above - below))
        # Below the smallest normal number 24 bits matter, of which these are the first 16.
        normal = abs(x) >= info.smallest_normal
        assert abs(share - exact) <= (0 if normal else Fraction(1, 2**16))


VALUES = [1.0001, -1.0001, 1.003, -3.14159, 0.1, -1e-3, 65000.5, 7.7e-6, -3.3e-8, 2.5e-7]
DRAWN = [(x, d) for d in DTYPES for x in VALUES if abs(x) < jnp.finfo(d).max]


@pytest.mark.parametrize(("value", "dtype"), DRAWN)
def test_the_mean_of_many_draws_is_right(value, dtype):
    """The number rounded up is binomial. The key is fixed: all are within 3 deviations."""
    draws = 100_000
    below, above = neighbours(value, dtype)
    wanted = (np.float64(np.float32(value)) - below) / (np.float64(above) - below)
    params = jnp.zeros(draws, dtype)
    updates = rounded_update(jax.random.key(0), jnp.full(draws, np.float32(value)), params)
    rounded = np.asarray(apply_updates(params, updates), np.float32)
    assert np.all((rounded == below) | (rounded == above))
    deviation = np.sqrt(wanted * (1 - wanted) / draws)
    assert deviation > 0
    assert abs(np.mean(rounded == above) - wanted) < 3 * deviation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_numbers_of_the_dtype_stay(dtype, seed):
    numbers = all_numbers(dtype)
    wide = jnp.asarray(numbers.astype(np.float32))
    found = random_bits.round_at_random(wide, random_bits.key_data(seed), jnp.dtype(dtype))
    with np.errstate(invalid="ignore"):
        nan = np.isnan(numbers)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(as_bits(found)[~nan], as_bits(numbers)[~nan])  # -0 is not 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_rounded_to_nearest(dtype):
    largest = float(jnp.finfo(dtype).max)
    next_place = largest - float(np.nextafter(np.asarray(largest, dtype), np.asarray(0, dtype)))
    beyond = np.array([1, 1 + 2**-12, np.inf]) * (largest + next_place / 4)
    with np.errstate(over="ignore"):
        x = np.array([*beyond, largest + 0.51 * next_place, 3.4028e38], np.float32)
    nan = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    x = np.concatenate([x, -x, nan])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
    for seed in range(20):
        found = random_bits.round_at_random(
            jnp.asarray(x), random_bits.key_data(seed), jnp.dtype(dtype)
        )
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_array_equal(
            np.asarray(found, np.float32), np.asarray(expected, np.float32)
        )


# ---- As the last part of a chain -----------------------------------------------------------------


@jax.jit
def rounded_update(key, updates, params):
    tx = adamx.stochastic_round(key)
    return tx.update(updates, tx.init(params), params)[0]


@jax.jit
def rounded_and_applied(key, updates, params):
    """The program that people run: XLA sees the difference and the sum together."""
    return apply_updates(params, rounded_update(key, updates, params))


rows = st.tuples(finite, finite, st.floats(0, 2**-6, width=32), st.booleans())


@given(
    rows=st.lists(rows, min_size=8, max_size=8),
    dtype=st.sampled_from(["bfloat16", "float16"]),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=300, deadline=None)
def test_apply_updates_gives_the_rounded_sum(rows, dtype, seed):
    """Exactly; also where the update cancels all but a small part of the parameter."""
    p, u, part, cancels = (np.array(column) for column in zip(*rows, strict=True))
    with np.errstate(over="ignore"):
        p = p.astype(np.float32).astype(dtype)
        wide = np.where(np.isfinite(p) & (np.abs(p) > 2.0**-100), p.astype(np.float32), 0)
        u = np.where(cancels, -wide * (1 - part), u).astype(np.float32)
        u = np.where(np.abs(u) > 2.0**-100, u, 0)  # XLA takes the smallest for 0
        s = wide + u
        nearest = s.astype(dtype)
    params, key = jnp.asarray(wide.astype(dtype)), jax.random.key(seed)
    updates = rounded_update(key, jnp.asarray(u), params)
    assert updates.dtype == "float32"
    found = np.asarray(apply_updates(params, updates)).astype(np.float32)
    in_one = np.asarray(rounded_and_applied(key, jnp.asarray(u), params)).astype(np.float32)
    np.testing.assert_array_equal(found, in_one)

    leaf_key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    data = jax.random.key_data(leaf_key)
    rounded = random_bits.round_at_random(jnp.asarray(s), data, jnp.dtype(dtype))
    np.testing.assert_array_equal(found, np.asarray(rounded, np.float32))
    below, above = neighbours(s, dtype)
    small = np.abs(s) <= float(jnp.finfo(dtype).max)
    assert np.all(np.where(small, (found == below) | (found == above), found == nearest))


def test_a_stalled_parameter_moves_by_the_right_mean():
    """1 + 1e-4 is 1 in bfloat16. At random it moves; 10,000 parameters, 20 steps, one key."""
    steps, size, u = 20, 10_000, 1e-4
    params = {"at_random": jnp.ones(size, jnp.bfloat16), "nearest": jnp.ones(size, jnp.bfloat16)}
    tx = adamx.stochastic_round(0)
    state, step = tx.init(params["at_random"]), jax.jit(tx.update)
    updates = jnp.full(size, u)
    for _ in range(steps):
        rounded, state = step(updates, state, params["at_random"])
        params["at_random"] = apply_updates(params["at_random"], rounded)
        params["nearest"] = apply_updates(params["nearest"], updates)
    np.testing.assert_array_equal(np.asarray(params["nearest"], float), 1.0)
    moved = np.asarray(params["at_random"], float) - 1
    # Each step is by 2**-7 with probability u / 2**-7, whatever came before (all stay below 2).
    place = 2.0**-7
    deviation = place * np.sqrt(steps * size * (u / place) * (1 - u / place)) / size
    assert abs(moved.mean() - steps * u) < 3 * deviation


def test_around_a_wrapper_that_computes_the_parameters():
    """The mean of 4,000 parameters is that of the run in float32; inside a third would be lost."""
    size, steps, grads = 4000, 60, jnp.full(4000, 0.1)
    lookahead = optax.lookahead(adamx.adam(1e-3), 3, 0.5)

    def trained(dtype, tx):
        params = optax.LookaheadParams.init_synced(jnp.ones(size, dtype))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (apply_updates(params, updates), state), None

        with jax.numpy_dtype_promotion("standard"):
            (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, steps)
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]

    expected = trained("float32", lookahead)
    found = trained("bfloat16", optax.chain(lookahead, adamx.stochastic_round(0)))
    for mine, wide in zip(found, expected, strict=True):
        assert abs(mine.mean() - wide.mean()) < 3 * mine.std() / np.sqrt(size)
        assert 3 * mine.std() / np.sqrt(size) < 0.02 * (1 - wide.mean())


def test_a_small_weight_decay_needs_gradients_in_float32():
    """The same run with and without decay; the difference is what the decay did."""
    size, steps, rate, decay, start = 20_000, 100, 1e-3, 0.01, 0.05
    draws = np.random.default_rng(0).standard_normal((steps, size)).astype(jnp.bfloat16)
    params = jnp.full(size, start, jnp.bfloat16)

    def trained_mean(grads, decay):
        tx = optax.chain(adamx.adamw(rate, weight_decay=decay), adamx.stochastic_round(0))
        carry = (params, tx.init(params))
        with jax.numpy_dtype_promotion("standard"):
            (after, _), _ = jax.lax.scan(lambda c, g: (make_step(tx)(*c, g), None), carry, grads)
        return np.asarray(after, np.float64).mean() / float(params[0])

    for dtype, low, high in (("float32", 0.97, 1.03), ("bfloat16", 0.65, 0.8)):
        grads = jnp.asarray(draws).astype(dtype)
        shrunk = trained_mean(grads, 0.0) - trained_mean(grads, decay)
        assert low < shrunk / (rate * decay * steps) < high


def test_other_leaves_pass():
    params = {
        "none": None,
        "wide": jnp.ones(3),
        "complex": jnp.ones(3, jnp.complex64),
        "number": 1.0,
        "narrow": jnp.ones(3, jnp.bfloat16),
        "frozen": jnp.ones(3, jnp.bfloat16),
    }
    updates = params | {"narrow": jnp.full(3, 1e-3, jnp.bfloat16), "frozen": None}
    tx = adamx.stochastic_round(0)
    found, state = tx.update(updates, tx.init(params), params)
    for name in ("none", "wide", "complex", "number", "frozen"):
        assert found[name] is updates[name]
    assert found["narrow"].dtype == "float32"
    assert state.count == 1
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_bits_depend_on_the_place_in_the_tree_alone():
    """A leaf that does not train for a step leaves the others' bits as they are."""
    tx = adamx.stochastic_round(0)
    params = [jnp.zeros(100, jnp.bfloat16)] * 3
    updates = [jnp.full(100, 1.003)] * 3
    whole, _ = tx.update(updates, tx.init(params), params)
    part, _ = tx.update([None, updates[1], None], tx.init(params), params)
    np.testing.assert_array_equal(whole[1], part[1])
    for mine, other in itertools.combinations(whole, 2):
        assert np.any(np.asarray(mine) != np.asarray(other))


def test_derivatives_are_those_of_the_sum():
    params, gradient = jnp.array([1.0, -2.0, 0.5], jnp.bfloat16), jnp.array([0.3, 0.2, -0.7])

    def after(rate, params):
        tx = optax.chain(optax.scale(-rate), adamx.stochastic_round(0))
        updates, _ = tx.update(gradient, tx.init(params), params)
        return jnp.sum(apply_updates(params, updates).astype(jnp.float32))

    by_rate, by_params = jax.jit(jax.grad(after, (0, 1)))(jnp.float32(1e-3), params)
    np.testing.assert_allclose(by_rate, -np.sum(np.asarray(gradient)), rtol=1e-2)  # of bfloat16
    np.testing.assert_array_equal(np.asarray(by_params, float), 1.0)


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("share", [2.0**-40, 3 * 2.0**-26, 0.3, 1 - 2.0**-23])
def test_the_bias_below_the_smallest_normal_number_is_bounded(dtype, share):
    """So many of 2**24 draws round up: the share, and less than one draw more."""
    spacing = float(jnp.finfo(dtype).smallest_subnormal)
    share = float(np.float32(share))
    draws = math.ceil(share * 2**24)
    bits = np.array([0, draws - 1, draws, 2**24 - 1], np.uint32) << 8
    x = jnp.full(bits.size, share * spacing, jnp.float32)
    rounded = np.asarray(random_bits._round(x, bits, jnp.dtype(dtype)), np.float32)
    np.testing.assert_array_equal(rounded / spacing, [1, 1, 0, 0])


@pytest.mark.parametrize("shape", ["n", "n, 3", "2, n, m"])
def test_bits_of_symbolic_shapes(shape):
    """A program that is exported for all sizes draws what it draws for one."""
    key = jax.random.key(3)
    draw = jax.jit(lambda x: random_bits.random_bits(jax.random.key_data(key), x.shape, None))
    symbolic = jax.export.symbolic_shape(shape)
    exported = jax.export.export(draw)(jax.ShapeDtypeStruct(symbolic, jnp.float32))
    for size in (1, 5):
        concrete = tuple(n if isinstance(n, int) else size for n in symbolic)
        expected = jax.random.bits(key, concrete, "uint32")
        np.testing.assert_array_equal(exported.call(jnp.zeros(concrete)), expected)


@pytest.mark.parametrize("nu_key", [None, 0])
def test_steps_are_exported_for_all_sizes(nu_key):
    adam = adamx.adam(0.1, nu_dtype="bfloat16", nu_key=nu_key)
    tx = optax.chain(adam, adamx.stochastic_round(0))

    def step(p):
        return tx.update(p, tx.init(p), p)[0]

    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(step))(jax.ShapeDtypeStruct((n,), jnp.bfloat16))
    params = jnp.linspace(-1, 1, 5, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(exported.call(params), jax.jit(step)(params))
