"""Stochastic rounding beside `jax.random`, NumPy's rounding and the binomial distribution."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamx.base import random_bits
from tests.low_precision.rounded_runs import (
    all_numbers,
    apply_updates,
    as_bits,
    finite,
    neighbours,
    rounded_update,
)

DTYPES = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]

# ---- The bits ------------------------------------------------------------------------------------


@pytest.mark.sampled(5)
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


@pytest.mark.sampled(3)
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


def test_the_first_elements_of_a_huge_array_are_not_drawn_again():
    """What is cut out of it is computed alone."""
    shape, key = (3, 2**31), random_bits.key_data(0)
    cut = jax.jit(lambda key: random_bits.random_bits(key, shape)[:, :4])
    assert np.unique(cut(key)).size == 12


# ---- Rounding ------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_dropped_bits_count(dtype):
    """So many places of float32 above a number, so many of the draws round up."""
    places = 2 ** (23 - jnp.finfo(dtype).nmant)
    above = np.array([1, 3, places - 1], np.uint32)
    one = np.float32(1).view(np.uint32)
    x = jnp.asarray((one + above).view(np.float32))
    for draw, up in ((places - above, True), (places - above - 1, False)):
        rounded = random_bits._round(x, jnp.asarray(draw.astype(np.uint32)), jnp.dtype(dtype))
        np.testing.assert_array_equal(np.asarray(rounded, np.float32) > 1, up)


VALUES = [1.0001, -1.0001, 1.003, -3.14159, 0.1, -1e-3, 65000.5, 7.7e-6, -3.3e-8, 2.5e-7]
DRAWN = [(x, d) for d in DTYPES for x in VALUES if abs(x) < jnp.finfo(d).max]


@pytest.mark.sampled(3)
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


@pytest.mark.sampled(3)
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


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "float8_e5m2"])
def test_numbers_between_two_below_the_smallest_normal_one(dtype):
    spacing = float(jnp.finfo(dtype).smallest_subnormal)
    bits = np.array([0, 2**22 - 1, 2**22, 2**24 - 1], np.uint32) << 8
    for sign in (1, -1):
        x = jnp.full(bits.size, sign * 2.25 * spacing, jnp.float32)
        rounded = np.asarray(random_bits._round(x, bits, jnp.dtype(dtype)), np.float32)
        np.testing.assert_array_equal(sign * rounded / spacing, [3, 3, 2, 2])


@pytest.mark.sampled(2)
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
