"""Which dtypes JAX has, and which numbers XLA takes as 0: the bounds themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.dtypes import check_not_flushed, is_known


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_what_jax_has(dtype):
    """JAX itself takes them, and Adam makes a step of them."""
    assert is_known(np.dtype(dtype))
    with jax.enable_x64(True):
        params = jnp.ones(3, dtype)
        assert params.dtype == dtype
        tx = adamx.adam(0.5)
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(optax.apply_updates(params, updates), 0.5, rtol=1e-3)


@pytest.mark.skipif(
    np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant,
    reason="this machine has no wider numbers",
)
@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_what_numpy_has_alone(dtype):
    assert not is_known(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_smallest_number_that_counts(dtype):
    dtype = jnp.dtype(dtype)
    smallest = 2 * float(jnp.finfo(dtype).tiny)
    assert check_not_flushed("eps", smallest, dtype) == smallest
    assert check_not_flushed("eps", 0.0, dtype) == 0.0
    below = float(np.nextafter(smallest, 0))
    with pytest.raises(ValueError, match="eps: expected 0 or a number of at least"):
        check_not_flushed("eps", below, dtype)
