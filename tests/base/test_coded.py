"""Float32 arrays that remember the codes of moments in 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.base.blockwise import CODE_VERSION, EightBitMoment, decode, encode
from adamx.base.coded import Coded, decode_coded, find_codes

# Beyond a block of decoding; with a part of a group; with several axes.
CASES = [((300, 512), 32), ((17, 45), 8), ((3, 2, 1100), 1024), ((129, 1027), 16), ((64,), 64)]


def make(shape, group):
    """Codes of moments of many sizes, some of them lost."""
    rng = np.random.default_rng(0)
    m = rng.standard_normal(shape, np.float32) * 10.0 ** rng.integers(-9, 9, shape)
    v = np.square(m) * np.float32(1.5)
    m.flat[:3], v.flat[2:5] = (np.nan, np.inf, 0), (0, np.inf, np.nan)
    moments = jax.jit(encode, static_argnums=2)(m.astype(np.float32), v, group, np.uint32([1, 2]))
    return Coded(*(EightBitMoment(*map(np.asarray, moment)) for moment in moments))


@pytest.mark.parametrize(("shape", "group"), CASES)
def test_blocks_have_the_bits_of_the_whole(shape, group):
    coded = make(shape, group)
    for found, expected in zip(decode_coded(coded), jax.jit(decode)(*coded), strict=True):
        assert (found.shape, found.dtype) == (shape, np.float32)
        assert found.tobytes() == np.asarray(expected).tobytes()
        assert found.flags.c_contiguous


def test_codes_belong_to_these_numbers_alone():
    coded = make((17, 45), 8)
    m, v = decode_coded(coded)
    assert np.isnan(m).any()
    assert find_codes(m, v) is coded
    other_m, other_v = decode_coded(coded._replace())
    unlike = {
        "of another decoding": (m, other_v),
        "in the other order": (v, m),
        "a copy": (m.copy(), v),
        "a view": (m[:], v),
        "a result": (m * 1, v),
        "a plain array": (np.asarray(m), np.asarray(v)),
    }
    assert {name: find_codes(*pair) for name, pair in unlike.items()} == dict.fromkeys(unlike)
    other_m[3, 4] = np.nextafter(other_m[3, 4], np.float32(np.inf))
    assert find_codes(other_m, other_v) is None
    v.resize((45, 17), refcheck=False)
    assert find_codes(m, v) is None


def test_they_are_arrays_of_jax_too():
    m, _ = decode_coded(make((17, 45), 8))
    assert jnp.asarray(m).dtype == np.float32
    np.testing.assert_array_equal(jax.jit(lambda x: -x)(m), -np.asarray(m))


def test_the_numbers_of_this_version():
    """Files say which version they are of: what changes these numbers has to change it, too."""
    assert CODE_VERSION == 2
    k, q = np.uint8([0, 1, 7, 100, 200, 253, 254, 254]), np.int8([-127, 5, 0, 1, -80, 127, 90, -2])
    s, j, c = np.float32(0.296875), 6, 1.5
    nu = EightBitMoment(k, np.uint32([s.view(np.uint32) | j]))
    mu = EightBitMoment(q, jnp.asarray([c], jnp.bfloat16))
    bits = (127 << 23) + (k.astype(np.int32) - 1) * (2**23 // (4 * (4 + j % 4) * 2 ** (j // 4)))
    r = np.where(k == 0, 0, s * bits.astype(np.int32).view(np.float32).astype(np.float64))
    n = np.sign(q) * (np.abs(q * 1.0) + np.maximum(np.abs(q * 1.0) - 80, 0))
    m, v = decode_coded(Coded(EightBitMoment(*map(np.asarray, mu)), nu))
    np.testing.assert_allclose(v, r * r, rtol=1e-6)
    np.testing.assert_allclose(m, r * c * n / 174, rtol=1e-6)
