"""Every option against Adam in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx
from adamx import numerics
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

# What a result may be off by, in units of its dtype's epsilon. The largest seen, in 38,000 entries
# of random problems like these, was 3.4.
ROUNDINGS = 5


def tolerance(dtype):
    return ROUNDINGS * float(jnp.finfo(dtype).eps)


@st.composite
def problems(draw):
    """Shapes and dtypes of a tree's leaves, hyperparameters, a variant and a seed."""
    shapes = st.sampled_from([(), (1,), (3,), (2, 3), (0,)])
    leaves = draw(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=4))
    hyper = {
        "b1": draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99])),
        "b2": draw(st.sampled_from([0.0, 0.1, 0.9, 0.999, 0.99999])),
        "eps": draw(st.sampled_from([0.0, 1e-12, 1e-8, 1e-3, 1.0])),
        "eps_root": draw(st.sampled_from([0.0, 1e-8])),
    }
    return leaves, hyper | draw(st.sampled_from(VARIANTS)), draw(st.integers(0, 2**32 - 1))


def random_gradients(rng, shape, dtype, steps=10):
    """Normal gradients, all of one size between 1e-3 and 1e3, in `dtype`'s own rounding."""
    size = 10.0 ** rng.uniform(-3, 3)
    x = rng.standard_normal((steps, *shape)) * size
    if dtype.startswith("complex"):
        x = x + 1j * rng.standard_normal((steps, *shape)) * size
    return [np.asarray(g).astype(jnp.dtype(dtype)) for g in x]


@given(problems())
@settings(max_examples=150, deadline=None)
def test_equals_the_reference(problem):
    leaves, hyper, seed = problem
    rng = np.random.default_rng(seed)
    grads = [random_gradients(rng, *leaf) for leaf in leaves]
    with jax.enable_x64(True):
        tx = adamx.scale_by_adam(**hyper)
        directions = [jnp.zeros(shape, dtype) for shape, dtype in leaves]
        state = tx.init(directions)
        for g in zip(*grads, strict=True):
            directions, state = tx.update([jnp.asarray(x) for x in g], state)
        assert state.count == 10
        for i, (_, dtype) in enumerate(leaves):
            *_, expected = reference.adam(grads[i], **hyper)
            check_leaf(i, dtype, directions[i], state, expected)


def check_leaf(i, dtype, direction, state, expected):
    mu, nu = state.mu[i], state.nu[i]
    wide = numerics.compute_dtype(jnp.dtype(dtype))
    assert (direction.dtype, mu.dtype, nu.dtype) == (jnp.dtype(dtype), jnp.dtype(dtype), wide)
    # A moment that is stored in low precision is rounded at each step.
    allowed = tolerance(dtype)
    scale = np.abs(expected.scale)
    error = np.abs(np.asarray(direction).astype(expected.direction.dtype) - expected.direction)
    assert np.all(error <= allowed * scale)
    assert np.all(np.abs(np.asarray(nu) - expected.v) <= tolerance(wide) * expected.v)
    if hasattr(state, "nu_max"):
        v_max = np.asarray(state.nu_max[i])
        assert np.all(np.abs(v_max - expected.v_max) <= tolerance(wide) * expected.v_max)


@pytest.mark.parametrize("b", [0.0, 0.1, 0.5, 0.9, 0.999, 1 - 1e-7])
@pytest.mark.parametrize("traced", [False, True])
def test_bias_correction(b, traced):
    t = np.array([1, 2, 10, 1000, 10**6, 2**31 - 1])
    exact = 1 - np.longdouble(np.float32(b) if traced else b) ** t
    hyper = numerics.Hyperparameters(b, b, 1e-8, 0.0, False, "optax")
    if traced:
        hyper = hyper._replace(b1=jnp.float32(b), b2=jnp.float32(b))
    ours = numerics.bias_correction(jnp.asarray(t), jnp.asarray(t), hyper, jnp.dtype("float32"))
    np.testing.assert_allclose(ours.v, exact, rtol=4e-7)
    np.testing.assert_array_equal(ours.m, ours.v)


@pytest.mark.parametrize("traced", [False, True])
def test_b1_of_zero_forgets_everything(traced):
    tx = adamx.scale_by_adam(b1=jnp.float32(0) if traced else 0.0)
    state = tx.init(jnp.zeros(1))
    for g in (1e6, 3e-7):
        _, state = tx.update(jnp.full(1, g), state)
    assert state.mu == np.float32(3e-7)


def test_count_stops_at_its_largest_value():
    tx = adamx.scale_by_adam(nesterov=True)
    last = np.iinfo(np.int32).max
    direction = jnp.ones(2)
    state = tx.init(direction)._replace(count=jnp.int32(last - 1))
    for _ in range(3):
        direction, state = tx.update(jnp.ones(2), state)
    assert state.count == last
    assert state.count.dtype == jnp.int32
    assert np.all(np.isfinite(direction))
