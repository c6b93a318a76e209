"""Moments in 8 bits: what a code keeps, what it never does, and the bits that round it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.base import blockwise, numerics
from adamx.base.numerics import CONVENTIONS, Hyperparameters
from adamx.base.random_bits import fold_in, hashed_bits, key_data

SPREADS = {"alike": 0.1, "usual": 1.0, "wide": 4.0}  # of the logarithm of a gradient's size

encode = jax.jit(blockwise.encode, static_argnums=2)
decode = jax.jit(blockwise.decode)


def sample(spread, shape=(8, 96), seed=0):
    """Moments as Adam has them: |m| is at most 7 times the root of v."""
    r = np.random.default_rng(seed)
    root = np.exp(spread * r.standard_normal(shape))
    ratio = np.clip(0.3 * r.standard_normal(shape), -7, 7)
    return np.float32(ratio * root), np.float32(root**2)


def keys_of(count):
    return jax.random.bits(jax.random.key(1), (count, 2), "uint32")


@pytest.mark.parametrize("group", [8, 32, 64])
@pytest.mark.parametrize("size", [64, 65, 100, 127, 128, 1000])
def test_the_group_follows_from_the_shapes(size, group):
    mu, nu = jax.eval_shape(lambda: blockwise.zeros(jnp.ones((3, size)), group))
    assert blockwise.group_size(mu) == blockwise.group_size(nu) == group
    assert nu.scales.shape == (3, -(-size // group))
    assert (mu.codes.shape, mu.codes.dtype, nu.codes.dtype) == ((3, size), jnp.int8, jnp.uint8)


def test_zeros_are_zeros():
    assert all(not np.any(x) for x in decode(*blockwise.zeros(jnp.ones((3, 100)), 32)))


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_rounding_keeps_the_mean(spread):
    """Of the root of v, and of m, over 4,000 keys: within five standard errors of the number."""
    m, v = sample(spread)
    count = 4_000

    def once(key):
        found, square = blockwise.decode(*blockwise.encode(m, v, 32, key))
        return found, jnp.sqrt(square)

    found, root = (np.asarray(x, np.float64) for x in jax.jit(jax.vmap(once))(keys_of(count)))
    exact = np.sqrt(v.astype(np.float64))
    # Below the lowest level there is nothing to round to but that level.
    scale = exact.reshape(8, 3, 32).max(-1).repeat(32, 1).reshape(exact.shape)
    above = exact > scale * 2.2e-5
    for x, y in ((found, m.astype(np.float64)), (root, exact)):
        error = np.abs(x.mean(0) - y)
        allowed = 5 * x.std(0) / count**0.5 + 2e-6 * scale  # and what float32 rounds
        assert np.all((error <= allowed)[above])
    assert above.mean() > 0.7


def levels_of(nu):
    """All 254 levels of each group, by the formula of the documentation: [groups, 254]."""
    scales = np.asarray(nu.scales).reshape(-1, 1)
    j, lowest = scales.astype(int) & 15, (scales & ~np.uint32(15)).view(np.float32)
    bits = (127 << 23) + np.arange(254) * (2**23 // (4 * ((4 + j % 4) << j // 4)))
    return lowest.astype(np.float64) * bits.astype(np.int32).view(np.float32)


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_a_number_moves_to_a_neighbouring_level(spread):
    """The largest and the smallest root of a group are within its levels, if they are as wide."""
    m, v = sample(spread)
    mu, nu = encode(m, v, 32, key_data(0))
    found, square = (np.asarray(x, np.float64).reshape(-1, 32) for x in decode(mu, nu))
    exact, root = np.sqrt(v.astype(np.float64)).reshape(-1, 32), np.sqrt(square)
    levels, m = levels_of(nu), m.reshape(-1, 32)
    largest, smallest = exact.max(1), exact.min(1)
    assert np.all(levels[:, -1] >= largest)
    is_widest = smallest < largest * 2.2e-5
    assert np.all((levels[:, 0] <= smallest) | is_widest)
    assert np.all(levels[:, 0] >= smallest * 0.9949)
    # No wider than needed: of the numbers of levels to an octave each is at most 1.25 of the next.
    reach, need = np.log2(levels[:, -1] / levels[:, 0]), np.log2(largest / levels[:, 0])
    assert np.all((reach <= (need + 0.2) * 1.25) | (reach < 1.2))
    for row, numbers, roots in zip(levels, exact, root, strict=True):
        above = np.clip(np.searchsorted(row, numbers * (1 - 1e-6)), 1, 253)
        nearest = np.abs(np.log(roots[:, None] / row)).argmin(1)
        np.testing.assert_allclose(roots, row[nearest], rtol=1e-6)
        assert np.all((nearest == above) | (nearest == above - 1))
    ratio, most = m / exact, np.abs(found / root).max(1, keepdims=True)
    is_low = exact < levels[:, :1]  # there m is kept, and not its ratio
    assert np.all((np.abs(found / root - ratio) <= most * 1.5 / 127 * 1.01)[~is_low])
    assert np.all((np.abs(found) <= np.abs(m) + most * levels[:, :1])[is_low])


@pytest.mark.parametrize("smallest", [1e-2, 1e-6, 1e-12, 1e-20])
def test_what_is_above_zero_is_never_read_as_zero(smallest):
    """Beside a number that is 1, and over many keys; and 0 is read as 0."""
    v = np.zeros((1, 32), np.float32)
    v[0, :3] = 1, smallest, smallest * 0.3
    for key in keys_of(50):
        found = np.asarray(decode(*encode(0 * v, v, 32, key))[1])
        assert np.all((found > 0) == (v > 0))


def run(grads, *, group=32, hyper=(0.9, 0.999, 1e-8, 0.0), convention="optax", nesterov=False):
    """Directions of a stream of gradients with coded moments, and the moments at the end."""

    def one(moments, x):
        t, g = x
        s = numerics.scalars(t, Hyperparameters(*hyper), np.dtype(np.float32))
        ahead = numerics.bias_correction(hyper[0], t + 1, np.dtype(np.float32))
        key = jnp.stack([t, t * 7919]).astype(jnp.uint32)
        direction, *moments = blockwise.step_codes(
            g, *moments, s, CONVENTIONS[convention], ahead if nesterov else None, key
        )
        return tuple(moments), direction

    steps = jnp.arange(1, len(grads) + 1)
    start = blockwise.zeros(jnp.asarray(grads[0]), group)
    moments, directions = jax.jit(lambda g: jax.lax.scan(one, start, (steps, g)))(grads)
    return np.asarray(directions, np.float64), moments


def stream(steps=300, shape=(4, 64), spread=1.0, seed=3):
    r = np.random.default_rng(seed)
    sizes = np.exp(spread * r.standard_normal(shape))
    return np.float32(sizes * r.standard_normal((steps, *shape)))


@pytest.mark.parametrize("power", [-66, -27, 27, 66, 100])
def test_the_scale_of_gradients_makes_no_difference(power):
    """Bit for bit, by powers of two from 1e-20 to 1e30: squares would leave float32's range."""
    grads = stream()
    expected, moments = run(grads, hyper=(0.9, 0.999, 0.0, 0.0))
    found, scaled = run(grads * np.float32(2.0**power), hyper=(0.9, 0.999, 0.0, 0.0))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scaled[0].codes, moments[0].codes)
    np.testing.assert_array_equal(scaled[1].codes, moments[1].codes)
    difference = np.asarray(scaled[1].scales, int) - np.asarray(moments[1].scales, int)
    np.testing.assert_array_equal(difference, power << 23)  # of a float32


def bound(t, b1=0.9, b2=0.999, inflation=1 + 2**-7):
    """No stream of gradients has a larger direction at step t (docs/explanation/memory.md)."""
    q, square = inflation**2 * b1**2 / b2, 0.0
    for _ in range(t):
        square = square * q + (1 - b1) ** 2 / (1 - b2)
    return square**0.5 * (1 - b2**t) ** 0.5 / (1 - b1**t)


@pytest.mark.parametrize("seed", range(4))
def test_directions_are_bounded(seed):
    """By what Cauchy's inequality allows, times what bfloat16 rounds a scale up by at each step.

    Gradients that make directions large: nothing for long, and then growing in one direction.
    """
    r = np.random.default_rng(seed)
    steps, shape = 400, (2, 64)
    grads = r.standard_normal((steps, *shape)) * np.exp(3 * r.standard_normal((1, *shape)))
    grads *= r.random((steps, *shape)) < 0.02
    burst = np.exp(0.2 * np.arange(60))[:, None, None] * np.exp(2 * r.standard_normal(shape))
    grads[200:260] += burst
    directions, _ = run(np.float32(grads))
    largest = np.abs(directions).max((1, 2))
    allowed = np.array([bound(t) for t in range(1, steps + 1)])
    assert np.all(largest <= allowed * (1 + 1e-5))
    assert np.max(largest / allowed) > 0.6  # the gradients come near it


def test_not_finite_numbers_stay_where_they_are():
    """As in float32: such an element is lost, and the others of its group are as without it."""
    grads = stream(steps=40)
    expected, _ = run(grads)
    spoilt = grads.copy()
    spoilt[10, 0, 3], spoilt[20, 0, 40], spoilt[30, 1, 5] = np.nan, np.inf, -np.inf
    found, (mu, nu) = run(spoilt)
    lost = np.zeros(grads.shape, bool)
    lost[10:, 0, 3] = lost[20:, 0, 40] = lost[30:, 1, 5] = True
    np.testing.assert_array_equal(np.isfinite(found), ~lost)
    m, v = decode(mu, nu)
    np.testing.assert_array_equal(np.isfinite(m), ~lost[-1])
    np.testing.assert_array_equal(np.isfinite(v), ~lost[-1])
    # The largest of a group may have been the one that was lost: then codes differ, not numbers.
    np.testing.assert_allclose(found[~lost], expected[~lost], atol=0.2)
    np.testing.assert_array_equal(found[:, 2:], expected[:, 2:])


@pytest.mark.parametrize(("b1", "b2"), [(0.0, 0.5), (0.0, 0.99999), (0.5, 0.9), (0.99, 0.999)])
def test_decay_rates(b1, b2):
    """All with b1 < b2, which is required; beside gradients that stop, and ones that never were."""
    grads = stream(spread=0.5)
    grads[:, 0, :5] = 0  # always
    grads[100:, 1, :5] = 0  # from a step on
    exact, eps = [], 0.1
    m = v = 0.0
    for t, g in enumerate(grads.astype(np.float64), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        exact.append(m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps))
    found, _ = run(grads, hyper=(b1, b2, eps, 0.0))
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(np.square(exact)))
    assert error < 0.06
    assert not np.any(found[:, 0, :5])


@pytest.mark.parametrize("size", [1e-38, 1e-37, 3e-37, 1e-36, 1e30, 1e37])
def test_the_ends_of_the_range(size):
    """Steps are those of exact Adam, or 0 where a scale would be: never larger."""
    grads = np.full((20, 1, 64), size, np.float32)
    found, (mu, nu) = run(grads)
    exact = size / (size + 1e-8)
    assert np.all(np.isfinite(found))
    assert np.all(found <= exact * 1.1 + 1e-20)
    assert np.all(np.isfinite(np.asarray(decode(mu, nu)[0])))


@pytest.mark.parametrize("outlier", [1e6, 1e12, 1e18, 1e30])
def test_beside_an_outlier(outlier):
    """A group with one huge number: the steps of the others are no larger than before."""
    grads = np.full((40, 1, 64), 1e-2, np.float32)
    grads[20, 0, 0] = outlier
    found, _ = run(grads)
    assert np.all(np.isfinite(found))
    assert np.abs(found[:, 0, 1:]).max() < 1.1


def test_zeros_beside_a_large_number():
    grads = np.zeros((3, 4, 64), np.float32)
    grads[:, :, 0] = 1e30
    found, _ = run(grads)
    assert not np.any(found[..., 1:])
    np.testing.assert_allclose(found[..., 0], 1, rtol=1e-2)


@pytest.mark.parametrize("group", [8, 32, 64])
def test_a_last_group_may_be_shorter(group):
    """Its elements are as near to the exact ones as in a longer leaf whose other elements are 0."""
    grads = np.asarray(stream(shape=(2, 100)))
    padded = np.zeros((*grads.shape[:2], 128), np.float32)
    padded[..., :100] = grads
    exact = 0.0
    for g in grads.astype(np.float64):
        exact = 0.999 * exact + 0.001 * g**2
    for x in (grads, padded):
        _, (mu, nu) = run(x, group=group)
        assert nu.scales.shape == (2, -(-x.shape[-1] // group))
        assert not np.any(np.asarray(nu.codes)[:, 100:])
        root = np.sqrt(np.asarray(decode(mu, nu)[1], np.float64))[:, :100]
        error = np.sqrt(np.mean(np.log(root / np.sqrt(exact)) ** 2))
        assert error < 0.07


def test_m_fades_without_gradients():
    """Beside v, which is kept: by b1 at each step, down to 1e-30 of its root, and then m is 0."""
    grads = np.concatenate([stream(20, (1, 32)), np.zeros((880, 1, 32), np.float32)])
    largest = np.abs(run(grads, hyper=(0.9, 0.999, 0.0, 0.0))[0]).max((1, 2))[20:]
    assert np.all(np.abs(largest[1:670] / largest[:669] - 0.9) < 0.02)
    assert not np.any(largest[680:])


def test_a_scale_stays_while_it_fits():
    """So codes of moments that do not change are not rounded again."""
    grads = np.tile(stream(steps=1), (400, 1, 1))
    _, moments = run(grads, hyper=(0.9, 0.5, 0.0, 0.0))
    exact = np.float64(grads[0]) ** 2
    found = np.asarray(decode(*moments)[1])
    level = np.sqrt(np.abs(found / exact))
    assert np.all(level < 1.3)
    assert np.all(level > 0.7)


def words_of(step):
    """The bits that round a leaf at a step: a hash of the index, whose faults would be a bias."""
    key = fold_in(key_data(0), step)  # as for each leaf and step
    return np.asarray(jax.jit(lambda k: hashed_bits(k, (512, 512)))(key))


def test_each_bit_is_even():
    """Within five standard deviations of one half."""
    words = words_of(3)
    for bit in range(32):
        share = np.mean((words >> bit) & 1)
        assert abs(share - 0.5) < 5 * 0.5 / words.size**0.5


@pytest.mark.parametrize("half", [0, 16])
def test_all_numbers_are_as_frequent(half):
    """By chi-squared over 256 classes of the upper bits, and of the lower ones."""
    numbers = (words_of(3) >> half) & 0xFFFF
    for part in (numbers >> 8, numbers & 0xFF):
        counts = np.bincount(part.ravel(), minlength=256)
        chi = np.sum((counts - counts.mean()) ** 2 / counts.mean())
        assert abs(chi - 255) < 5 * (2 * 255) ** 0.5


def test_neighbours_halves_and_steps():
    """They are uncorrelated, within five standard deviations."""
    words, later = words_of(3).astype(np.float64), words_of(4).astype(np.float64)
    low = (words_of(3) & 0xFFFF).astype(np.float64)
    rows = [
        (words[:, 1:], words[:, :-1]),
        (words[1:], words[:-1]),
        (words, later),
        (words, low),
    ]
    rows += [(words[:, k:], words[:, :-k]) for k in (2, 4, 8, 16, 32, 64)]
    for x, y in rows:
        found = np.corrcoef(x.ravel(), y.ravel())[0, 1]
        assert abs(found) < 5 / x.size**0.5


def test_another_key_shifts_nothing():
    """No step has the bits of another one at other indices."""
    first, second = words_of(3).ravel(), words_of(4).ravel()
    assert np.intersect1d(first[:4096], second).size < 20  # by chance: 4096 * 2**18 / 2**32
