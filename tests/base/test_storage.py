"""How moments are kept, and one leaf's way through a step, whatever keeps its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.base import numerics
from adamx.base.numerics import CONVENTIONS, Hyperparameters
from adamx.base.storage import CAST, CastAtRandom, step_leaf, wide_dtype

HYPER = Hyperparameters(0.9, 0.999, 1e-8, 0.0)
SCALARS = numerics.scalars(jnp.int32(3), HYPER, jnp.dtype("float32"))


def random(seed, dtype="float32", shape=(3, 50)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


class _Halves:
    """A toy: float32 as the sum of two arrays of bfloat16, which keep 16 of its 24 bits."""

    def zeros(self, param, dtype):
        del dtype
        return jnp.zeros_like(param, jnp.bfloat16), jnp.zeros_like(param, jnp.bfloat16)

    def dtype(self, stored):
        del stored
        return jnp.dtype("float32")

    def load(self, stored, dtype):
        return stored[0].astype(dtype) + stored[1].astype(dtype)

    def store(self, moment, stored):
        del stored
        first = moment.astype(jnp.bfloat16)
        return first, (moment - first.astype(moment.dtype)).astype(jnp.bfloat16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_what_was_cast_is_kept_by_the_next_store(dtype):
    zeros = CAST.zeros(random(0), jnp.dtype(dtype))
    assert (zeros.dtype, zeros.shape) == (dtype, (3, 50))
    stored = random(1, dtype)
    wide = jnp.dtype("complex64" if dtype == "complex64" else "float32")
    np.testing.assert_array_equal(CAST.store(CAST.load(stored, wide), stored), stored)


def test_the_second_moment_of_optax_is_real():
    stored = jnp.asarray([1 + 0j, 4 + 0j])
    loaded = CAST.load(stored, jnp.dtype("float32"))
    np.testing.assert_array_equal(loaded, np.float32([1, 4]))
    assert CAST.store(loaded, stored).dtype == jnp.complex64


def test_only_bfloat16_is_rounded_at_random():
    moment = jnp.full(4096, 1 + 2**-9)  # between two neighbours, 1 and 1 + 2**-7, a quarter up
    storage = CastAtRandom(jax.random.key_data(jax.random.key(0)))
    found = np.asarray(storage.store(moment, jnp.zeros(4096, jnp.bfloat16)), np.float64)
    assert set(found) == {1.0, 1 + 2**-7}
    assert abs((found > 1).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4096)
    for dtype in (jnp.float32, jnp.float16):
        nearest = storage.store(moment, jnp.zeros(4096, dtype))
        np.testing.assert_array_equal(nearest, moment.astype(dtype))


@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        (("bfloat16", "float16", "float16"), "float32"),
        (("float32", "bfloat16", "float32"), "float32"),
        (("complex64", "complex64", "float32"), "complex64"),
    ],
)
def test_a_leaf_is_computed_in_its_widest_precision(dtypes, wide):
    g, *stored = (random(i, dtype) for i, dtype in enumerate(dtypes))
    assert wide_dtype([g], stored, [CAST, CAST]) == wide


def test_a_step_does_not_see_what_keeps_the_moments():
    """A storage of two arrays goes the same way as one of float32."""
    g, storage = random(0), _Halves()
    stored = [storage.store(random(1), None), storage.store(random(2) ** 2, None)]
    plain = [storage.load(x, jnp.dtype("float32")) for x in stored]
    assert wide_dtype([g], stored, [storage, storage]) == "float32"
    convention = CONVENTIONS["optax"]
    expected, moments = numerics.step(g, (plain[0], plain[1]), SCALARS, convention)
    found, kept = step_leaf(g, stored, [storage, storage], SCALARS, convention)
    np.testing.assert_array_equal(found, expected)
    assert jax.tree.structure(kept) == jax.tree.structure(stored)
    for x, moment in zip(kept, moments, strict=True):
        np.testing.assert_allclose(storage.load(x, jnp.float32), moment, rtol=2**-16, atol=0)
