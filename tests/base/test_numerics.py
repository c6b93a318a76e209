"""Every option against Adam in double precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import adamx
from adamx.base import dtypes, numerics
from tests import reference

VARIANTS = [
    {},
    {"nesterov": True},
    {"amsgrad": True},
    {"amsgrad": True, "nesterov": True},
    {"convention": "torch"},
    {"convention": "torch", "amsgrad": True},
    {"convention": "keras"},
    {"convention": "keras", "amsgrad": True},
]
DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]

# What a result may be off by after ten steps, in units of its dtype's epsilon: each step rounds b,
# and a product with it. With moments that only decay 5.2 was seen, with others at most 3.4.
ROUNDINGS = 10


def tolerance(dtype):
    return ROUNDINGS * float(jnp.finfo(dtype).eps)


betas = st.one_of(st.just(0.0), st.floats(1e-3, 1 - 1e-5), st.sampled_from([0.5, 0.9, 0.999]))
leaves = st.fixed_dictionaries(
    {
        "shape": st.sampled_from([(), (1,), (3,), (2, 3), (0,)]),
        "dtype": st.sampled_from(DTYPES),
        "size": st.floats(-3, 3).map(lambda exponent: 10**exponent),
        "share_of_zeros": st.sampled_from([0.0, 0.5, 1.0]),
    }
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3).map(
            lambda tree: {"inner": tree}
        ),
    ),
    max_leaves=4,
)
hyperparameters = st.fixed_dictionaries(
    {
        "b1": betas,
        "b2": betas,
        "eps": st.one_of(st.floats(-12, 0).map(lambda exponent: 10**exponent)),
        "eps_root": st.sampled_from([0.0, 1e-8]),
    }
)


def is_leaf(tree):
    return isinstance(tree, dict) and "share_of_zeros" in tree


def random_gradients(rng, leaf, steps=10):
    """Normal gradients and zeros, in the leaf's own rounding; (steps, *shape)."""
    shape = (steps, *leaf["shape"])
    x = rng.standard_normal(shape) * leaf["size"]
    if leaf["dtype"].startswith("complex"):
        x = x + 1j * rng.standard_normal(shape) * leaf["size"]
    x = np.where(rng.random(shape) < leaf["share_of_zeros"], 0, x)
    return x.astype(jnp.dtype(leaf["dtype"]))


@pytest.mark.slow
@given(trees, hyperparameters, st.sampled_from(VARIANTS), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_equals_the_reference(tree, hyper, variant, seed):
    rng = np.random.default_rng(seed)
    grads = jax.tree.map(lambda leaf: random_gradients(rng, leaf), tree, is_leaf=is_leaf)
    with jax.enable_x64(True):
        tx = adamx.scale_by_adam(**hyper, **variant)
        directions = jax.tree.map(
            lambda leaf: jnp.zeros(leaf["shape"], leaf["dtype"]), tree, is_leaf=is_leaf
        )
        state: Any = tx.init(directions)
        for t in range(10):
            g = jax.tree.map(lambda gs, t=t: jnp.asarray(gs[t]), grads)
            directions, state = tx.update(g, state)
        assert state.count == 10
        jax.tree.map(
            lambda leaf, gs, *ours: check_leaf(leaf["dtype"], gs, hyper | variant, *ours),
            tree,
            grads,
            directions,
            *state[1:],
            is_leaf=is_leaf,
        )


def check_leaf(dtype, gradients, hyper, direction, mu, nu, nu_max=None):
    wide = dtypes.compute_dtype(jnp.dtype(dtype))
    assert (direction.dtype, mu.dtype, nu.dtype) == (jnp.dtype(dtype), jnp.dtype(dtype), wide)
    *_, exact = reference.adam(gradients, **hyper)
    # Ten roundings of m to a multiple of the dtype's smallest number, which float16 makes felt.
    underflow = 10 * float(jnp.finfo(dtype).smallest_subnormal)
    error = np.abs(np.asarray(mu).astype(exact.m.dtype) - exact.m)
    assert np.all(error <= tolerance(dtype) * exact.m_scale + underflow)
    error = np.abs(np.asarray(direction).astype(exact.direction.dtype) - exact.direction)
    per_m = np.where(exact.m_scale == 0, 1, exact.scale / np.maximum(exact.m_scale, 1e-300))
    allowed = tolerance(dtype) * exact.scale + underflow * (1 + per_m)
    is_beyond = np.abs(exact.direction) - allowed > float(jnp.finfo(dtype).max)  # of float16, say
    assert np.all(np.where(is_beyond, np.isinf(direction), error <= allowed))
    for ours, theirs in ((nu, exact.v), (nu_max, exact.v_max)):
        if ours is not None:
            assert np.all(np.abs(np.asarray(ours) - theirs) <= tolerance(wide) * theirs)


@pytest.mark.parametrize("b", [0.0, 0.1, 0.5, 0.9, 0.999, 1 - 1e-7])
@pytest.mark.parametrize("traced", [False, True])
def test_bias_correction(b, traced):
    t = np.array([1, 2, 10, 1000, 10**6, 2**31 - 1])
    exact = 1 - np.longdouble(np.float32(b) if traced else b) ** t
    b = jnp.float32(b) if traced else b
    ours = numerics.bias_correction(b, jnp.asarray(t), jnp.dtype("float32"))
    np.testing.assert_allclose(ours, exact, rtol=4e-7)


@pytest.mark.parametrize("b", [1 - 1e-8, 1 - 1e-12])
def test_double_hyperparameters_beside_float32_parameters(b):
    """A traced b in float64 keeps its distance from 1, which float32 cannot hold."""
    with jax.enable_x64(True):

        def direction(b):
            tx = adamx.scale_by_adam(b1=b, b2=b)
            return tx.update(jnp.ones(2, jnp.float32), tx.init(jnp.zeros(2, jnp.float32)))[0]

        np.testing.assert_allclose(jax.jit(direction)(b), 1, rtol=1e-6)
        np.testing.assert_allclose(direction(b), 1, rtol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
def test_b1_of_zero_forgets_everything(traced):
    tx = adamx.scale_by_adam(b1=jnp.float32(0) if traced else 0.0)
    state = tx.init(jnp.zeros(1))
    for g in (1e6, 3e-7):
        _, state = tx.update(jnp.full(1, g), state)
    assert state.mu == np.float32(3e-7)


@given(before=st.integers(0, 2**31 - 1), steps=st.integers(1, 4), variant=st.sampled_from(VARIANTS))
@example(before=2**31 - 2, steps=3, variant={"nesterov": True})
@settings(max_examples=60, deadline=None)
def test_count_stops_at_its_largest_value(before, steps, variant):
    tx = adamx.scale_by_adam(**variant)
    last = np.iinfo(np.int32).max
    direction = jnp.ones(2)
    state = tx.init(direction)._replace(count=jnp.int32(before))
    for _ in range(steps):
        direction, state = tx.update(jnp.ones(2), state)
    assert state.count == min(before + steps, last)
    assert state.count.dtype == jnp.int32
    assert np.all(np.isfinite(direction))


def test_the_root_of_zero_has_the_derivative_zero():
    value, derivative = jax.value_and_grad(numerics.safe_sqrt)(0.0)
    assert (value, derivative) == (0, 0)
    assert jax.grad(jax.grad(numerics.safe_sqrt))(0.0) == 0
    np.testing.assert_allclose(jax.grad(numerics.safe_sqrt)(4.0), 0.25)
