"""Weights in two parts, beside NumPy's rounding and double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.base import residual
from adamx.base.residual import DTYPES, join, split

BF16, F16 = DTYPES
KEY = jnp.array([5, 9], jnp.uint32)
FORMS = [(BF16, 16), (BF16, 8), (F16, 16), (F16, 8)]
join_all, split_all = jax.jit(join), jax.jit(split, static_argnums=(1, 2))

# Numbers of every exponent and sign, NaN too, and all that are next to a number of either dtype or
# half between two of them.
_NEAR = np.arange(2**16, dtype=np.uint32)[:, None] << 16 | np.array(
    [0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32
)
PATTERNS = np.concatenate([np.arange(0, 2**32, 65_537 // 6, dtype=np.uint64), _NEAR.ravel()])
WEIGHTS = PATTERNS.astype(np.uint32).view(np.float32)
WEIGHTS = WEIGHTS[~np.isnan(WEIGHTS)]


def both(weights, dtype, bits, key=None):
    """p, r and the w that they stand for, as NumPy arrays."""
    p, r = split_all(jnp.asarray(weights), dtype, bits, key)
    assert (p.dtype, r.dtype.name) == (dtype, f"int{bits}")
    return np.asarray(p), np.asarray(r), np.asarray(join_all(p, r))


def spacing(weights, dtype, bits):
    """The distance of numbers that w may be, in double precision; the larger at a power of two."""
    info, lost = jnp.finfo(dtype), 23 - jnp.finfo(dtype).nmant
    smallest = {BF16: -126, F16: -14}[dtype]  # exponents of normal numbers
    exponent = np.maximum(np.frexp(weights.astype(np.float64))[1] - 1, smallest)
    kept = np.where(exponent == smallest, bits, min(bits, lost)) if dtype == F16 else bits
    return 2.0 ** (exponent - info.nmant - kept)


def test_16_bits_beside_bfloat16_hold_every_float32():
    for key in (None, KEY):
        _, _, w = both(WEIGHTS, BF16, 16, key)
        np.testing.assert_array_equal(w.view(np.uint32), WEIGHTS.view(np.uint32))


def test_16_bits_beside_float16_hold_every_float32_in_its_range():
    size = np.abs(WEIGHTS)
    held = WEIGHTS[(size >= 2.0**-17) & (size < 65520)]
    for key in (None, KEY):
        _, _, w = both(held, F16, 16, key)
        np.testing.assert_array_equal(w, held)


@pytest.mark.parametrize(("dtype", "bits"), FORMS)
@pytest.mark.parametrize("key", [None, KEY], ids=["nearest", "at random"])
def test_the_parameter_is_nearest_and_the_weight_within_a_unit(dtype, bits, key):
    largest = float(jnp.finfo(dtype).max)
    weights = WEIGHTS[np.abs(WEIGHTS) < largest]
    p, _, w = (x.astype(np.float64) for x in both(weights, dtype, bits, key))
    nearest = w.astype(np.float32).astype(dtype).astype(np.float64)
    assert np.all(np.abs(p - w) <= np.abs(nearest - w))
    unit = spacing(weights, dtype, bits)
    error = np.abs(w - weights.astype(np.float64))
    assert np.all(error <= unit / 2) if key is None else np.all(error < unit)
    if bits == 8:
        assert error.max() > 0
    assert np.all(np.sign(p) * np.sign(weights) >= 0)


@pytest.mark.parametrize(("dtype", "bits"), FORMS)
def test_a_weight_that_was_kept_is_kept_exactly(dtype, bits):
    """For every finite parameter, with the smallest, the largest and other residuals."""
    p = np.arange(2**16, dtype=np.uint16).view(dtype)
    p = p[np.isfinite(p.astype(np.float32))]
    most = 2 ** (bits - 1)
    others = np.random.default_rng(0).integers(-most, most, p.size)
    for r in (np.full(p.size, -most), np.full(p.size, most - 1), others):
        w = np.asarray(join_all(jnp.asarray(p), jnp.asarray(r.astype(f"int{bits}"))))
        for key in (None, KEY):
            np.testing.assert_array_equal(both(w, dtype, bits, key)[2], w)


@pytest.mark.parametrize(("dtype", "mantissa"), [(BF16, 15), (F16, 18)])
def test_as_many_draws_round_up_as_the_dropped_bits_say(monkeypatch, dtype, mantissa):
    draws = 2 ** (23 - mantissa)
    for part in (0, 1, draws - 1):
        for draw, up in ((draws - part, part > 0), (draws - part - 1, False)):
            drawn = jnp.full(2, draw % draws, jnp.uint32)
            monkeypatch.setattr(residual, "hashed_bits", lambda *_, x=drawn: x)
            weights = jnp.float32([1.5 + part * 2.0**-23, -1.5 - part * 2.0**-23])
            w = join(*split(weights, dtype, 8, KEY))
            np.testing.assert_array_equal(w, np.float32([1, -1]) * (1.5 + up * 2.0**-mantissa))


def test_as_many_draws_round_up_as_the_part_of_a_unit_near_zero(monkeypatch):
    """Of the 2**24 draws; none for a number that is kept."""
    unit = 2.0**-32
    for part in (0, 3, 2**24 - 1):
        for draw, up in ((part, False), (part - 1, True))[: 2 if part else 1]:
            drawn = jnp.full(2, draw << 8, jnp.uint32)
            monkeypatch.setattr(residual, "hashed_bits", lambda *_, x=drawn: x)
            x = np.float32(part * 2.0**-24 * unit)
            w = join(*split(jnp.asarray([x, -x]), F16, 8, KEY))
            np.testing.assert_array_equal(w, np.float32([1, -1]) * up * unit)


ROUNDED = [(BF16, 8, 1.00002), (BF16, 8, -3.3333333), (BF16, 8, 1e-30), (F16, 8, 0.1234567)]
ROUNDED += [(F16, 8, 3.3e-5), (F16, 8, -7e-11), (F16, 16, 1.2345e-7), (F16, 16, -2e-13)]


@pytest.mark.parametrize(("dtype", "bits", "value"), ROUNDED)
def test_the_mean_of_many_draws_is_the_weight(dtype, bits, value):
    """The number rounded up is binomial. The key is fixed: all are within 3 deviations."""
    draws = 100_000
    value = np.float32(value)
    _, _, w = both(np.full(draws, value), dtype, bits, KEY)
    below, above = sorted({*w.astype(np.float64)})
    share = (float(value) - below) / (above - below)
    assert above - below == spacing(value, dtype, bits)
    deviation = np.sqrt(share * (1 - share) / draws)
    assert 0 < abs(np.mean(w == above) - share) < 3 * deviation


@pytest.mark.parametrize(("dtype", "bits"), FORMS)
def test_infinity_and_nan_stay(dtype, bits):
    nan = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    weights = np.concatenate([np.float32([np.inf, -np.inf]), nan])
    for key in (None, KEY):
        p, r, w = both(weights, dtype, bits, key)
        np.testing.assert_array_equal(r, 0)
        for found in (p.astype(np.float32), w):
            np.testing.assert_array_equal(found[:2], weights[:2])
            assert np.all(np.isnan(found[2:]))


def test_what_is_too_large_for_the_parameter():
    beyond = np.float32([65520, 1e5, 3e38])  # from halfway to the number after the largest on
    p, r, w = both(np.concatenate([beyond, -beyond]), F16, 16)
    np.testing.assert_array_equal(w, np.repeat(np.float32([np.inf, -np.inf]), 3))
    np.testing.assert_array_equal(p.astype(np.float32), w)
    np.testing.assert_array_equal(r, 0)
    beyond = np.array([0x7F7F8000, 0x7F7FFF00], np.uint32).view(np.float32)
    for bits in (8, 16):
        p, _, w = both(np.concatenate([beyond, -beyond]), BF16, bits)
        np.testing.assert_array_equal(w, np.concatenate([beyond, -beyond]))
        assert np.all(np.isinf(p.astype(np.float32)))


@pytest.mark.parametrize(("dtype", "bits"), FORMS)
def test_a_residual_of_another_parameter_changes_little(dtype, bits):
    """By half of the distance to the next number at most, and never its sign."""
    p = np.arange(0, 2**16, 7, dtype=np.uint16).view(dtype)
    wide, most = p.astype(np.float32), 2 ** (bits - 1)
    finite = np.isfinite(wide)
    for r in (-most, most - 1):
        w = np.asarray(join_all(jnp.asarray(p), jnp.full(p.shape, r, f"int{bits}")))
        np.testing.assert_array_equal(np.isnan(w), np.isnan(wide))
        found, own = (x[finite].astype(np.float64) for x in (w, p))
        assert np.all(np.sign(found) * np.sign(own) >= 0)
        assert np.all(np.abs(found - own) <= spacing(own, dtype, 0) / 2)


def test_derivatives_are_one():
    w = jnp.float32([1.2345, -3e-9, 0.0])
    for dtype in DTYPES:
        r = split(w, dtype, 8, KEY)[1]
        _, tangent = jax.jvp(lambda w, dtype=dtype: split(w, dtype, 8, KEY)[0], (w,), (w + 1,))
        np.testing.assert_array_equal(tangent, (w + 1).astype(dtype))
        grads = jax.grad(lambda p, r=r: jnp.sum(join(p, r)))(w.astype(dtype))
        np.testing.assert_array_equal(grads.astype(jnp.float32), 1.0)
