"""What the tests of residuals share: a tree of several dtypes, and a short run."""

import jax
import jax.numpy as jnp
import numpy as np

import adamx
from tests.low_precision.rounded_runs import as_bits, make_step

__all__ = ["ADAMW", "CODED", "assert_same", "gradients", "mixed_params", "train"]

ADAMW = adamx.adamw(1e-3, mu_dtype="float32")
CODED = adamx.adamw(1e-3, moments=adamx.EightBit(min_size=0))


def mixed_params():
    rng = np.random.default_rng(0)
    return {
        "dense": {"kernel": jnp.asarray(rng.standard_normal((16, 32)), jnp.bfloat16)},
        "half": jnp.asarray(rng.standard_normal(64), jnp.float16),
        "norm": jnp.ones(32),
        "scale": jnp.bfloat16(0.5),
    }


def gradients(params, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)


def train(tx, params, state, steps=3):
    step = jax.jit(make_step(tx))
    for t in range(steps):
        params, state = step(params, state, gradients(params, t))
    return params, state


def assert_same(mine, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(as_bits(a), as_bits(b)), mine, other)
