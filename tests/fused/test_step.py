"""A fused step computes what `update` and `optax.apply_updates` do."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx
from tests.fused.fused_runs import LR, Case, Pair, adam_of, gradients, tree

PROMOTES = True  # Optax's parts do

UNITS = 2  # in the last place, see `Pair`
# Around a vector register, a chunk and a block of the kernel.
SIZES = (0, 1, 15, 16, 17, 31, 63, 64, 65, 1023, 1024, 1025, 16383, 16384, 16385)
CASES = [
    Case(convention, amsgrad, decay, clip)
    for convention, amsgrad, decay, clip in itertools.product(
        ("optax", "torch", "keras"), (False, True), (None, "gradient", "decoupled"), (None, 16.0)
    )
]
DTYPES = [
    ("float32", "float32", "bfloat16", "bfloat16"),
    ("float32", "bfloat16", None, None),
    ("float32", "float16", "bfloat16", None),
    ("bfloat16", "float32", None, None),
    ("bfloat16", "bfloat16", None, None),
    ("bfloat16", "bfloat16", "float32", "bfloat16"),
    ("float16", "float16", None, None),
    ("float16", "bfloat16", None, "float16"),
    ("float64", "float64", None, None),
    ("float64", "float64", "float32", "float32"),
    ("float64", "float32", "bfloat16", None),
    ("float32", "float64", None, None),
]


def check_steps(case, wide=None, steps=3, scale=1.0):
    rng, pair = np.random.default_rng(0), Pair(case, wide)
    params = tree(rng, case.dtype, scale=scale)
    state = pair.tx.init(params)
    for _ in range(steps):
        before = params
        distance, params, state = pair.compare(gradients(rng, case, params), state, params)
        assert max(distance) <= UNITS, distance
        assert not all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(params)))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_option(case):
    check_steps(case)


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_parameters_that_are_zero(case):
    check_steps(case, scale=0.0)


def cases_in(dtypes, number):
    """Some of the options, other ones for each row of `DTYPES`."""
    options = CASES[number % 5 :: 5]
    fields = dict(zip(("dtype", "g_dtype", "mu_dtype", "nu_dtype"), dtypes, strict=True))
    return [case._replace(**fields) for case in options[:3]]


DTYPE_CASES = [c for number, dtypes in enumerate(DTYPES) for c in cases_in(dtypes, number)]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", DTYPE_CASES, ids=str)
def test_dtypes(case):
    """With a reference that computes as widely, and also rounds only at the end."""
    with jax.enable_x64(True):
        check_steps(case, "float64" if "float64" in case else "float32")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", [c for c in DTYPE_CASES if "float64" not in c][::2], ids=str)
def test_dtypes_in_which_optax_rounds(case):
    check_steps(case)


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_packed_is_the_same(case):
    rng = np.random.default_rng(0)
    params = tree(rng, "float32")
    state = case.chain().init(params)
    grads = [gradients(rng, case, params) for _ in range(3)]
    results = []
    for packed in (False, True):
        optimizer = case.fused(packed=packed)
        step = jax.jit(optimizer.step)
        found_params, found = params, optimizer.init(params)
        for g in grads:
            found_params, found = step(g, found_params, found)
        results.append((found_params, adamx.unpack(found, params) if packed else found))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert jax.tree.structure(results[0][1]) == jax.tree.structure(state)
    # Bit for bit with the kernel. In plain form XLA compiles flat parts in its own way.
    limits = {"rtol": 0, "atol": 0} if adamx.native.status() else {"rtol": 1e-6, "atol": 1e-8}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **limits), *results)


MIXED = [("bfloat16", "float32"), ("float32", "bfloat16", "float16"), ("float64", "bfloat16")]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_packed_leaves_of_several_dtypes(dtypes, amsgrad):
    """The buffers of the first moment are others than those of the second."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = [jnp.asarray(rng.standard_normal(9 + i), d) for i, d in enumerate(dtypes * 2)]
        results = []
        for packed in (False, True):
            optimizer = adamx.fused_adam(LR, amsgrad=amsgrad, packed=packed)
            step, found, state = jax.jit(optimizer.step), params, optimizer.init(params)
            for _ in range(3):
                found, state = step(params, found, state)
            results.append((found, adamx.unpack(state, params) if packed else state))
        assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)


@pytest.mark.parametrize("packed", [False, True])
def test_float64_is_clipped_in_double_precision(packed):
    """Adam's step does not depend on the gradient's scale, but the first moment does."""
    with jax.enable_x64(True):
        grads = {"a": jnp.asarray(np.random.default_rng(0).standard_normal(1000)), "b": jnp.pi}
        grads = jax.tree.map(lambda g: jnp.asarray(g, "float64"), grads)
        optimizer = adamx.fused_adam(LR, b1=0.0, clip_global_norm=0.1, packed=packed)
        _, state = jax.jit(optimizer.step)(grads, grads, optimizer.init(grads))
        if packed:
            state = adamx.unpack(state, grads)
        exact = jax.tree.map(np.asarray, grads)
        norm = np.sqrt(np.sum(exact["a"] ** 2) + exact["b"] ** 2)
        for name, moment in adam_of(state).mu.items():
            np.testing.assert_allclose(moment, exact[name] * (0.1 / norm), rtol=1e-14)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({"nesterov": True}, "float32"),
        ({"nesterov": True, "b1": 0.3, "mu_dtype": "bfloat16"}, "float32"),
        ({"nesterov": True}, "float64"),
        ({"nu_dtype": "bfloat16", "nu_key": 3}, "float32"),
        ({"nu_dtype": "bfloat16", "nu_key": 3, "nesterov": True, "amsgrad": True}, "float32"),
    ],
)
def test_nesterov_and_nu_key(arguments, dtype, packed):
    """Those of `adamw`, bit for bit; the keys are those of all leaves, trained or not."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {"a": rng.standard_normal((50, 30)), "b": rng.standard_normal(()), "c": np.ones(9)}
        params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
        tx = adamx.adamw(0.01, **arguments)
        optimizer = adamx.fused_adamw(0.01, packed=packed, **arguments)
        expected, expected_state = params, tx.init(params)
        found, state = params, optimizer.init(params)
        update, step = jax.jit(tx.update), jax.jit(optimizer.step)
        for i in range(3):
            grads = {name: p * (1 + i) for name, p in params.items()} | {"b": None}
            updates, expected_state = update(grads, expected_state, expected)
            updates = jax.tree.map(lambda p, u: 0 * p if u is None else u, expected, updates)
            expected = optax.apply_updates(expected, updates)
            found, state = step(grads, found, state)
        if packed:
            state = adamx.unpack(state, params)
        assert jax.tree.structure(state) == jax.tree.structure(expected_state)
        jax.tree.map(np.testing.assert_array_equal, state[0], expected_state[0])
        limit = 4 * float(jnp.finfo(dtype).eps)
        for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert mine.dtype == other.dtype == dtype
            np.testing.assert_allclose(mine, other, rtol=limit, atol=limit)


def test_a_step_with_many_keys_compiles():
    """With 16 leaves or more, LLVM did not come to an end where it has vectors of 16 numbers."""
    code = """
import adamx, jax.numpy as jnp
optimizer = adamx.fused_adam(0.01, nu_dtype="bfloat16", nu_key=3)
params = [jnp.ones(2)] * 17
optimizer.jit().lower(params, params, optimizer.init(params)).compile()
"""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


# ---- Any numbers ---------------------------------------------------------------------------------

# Above 1e37, whether m / (1 - b1) overflows depends on how XLA orders the divisions.
SPECIAL = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-45, 1e-38, 1e37, -1e30, 1e-20)


def arrays(rng, specials, share):
    """A float32 array of each of SIZES, with special numbers among normal ones."""

    def array(n):
        x = rng.standard_normal(n).astype(np.float32) * np.float32(10.0) ** rng.integers(-6, 4, n)
        return np.where(rng.random(n) < share, rng.choice(specials, n), x).astype(np.float32)

    return {str(n): array(n) for n in SIZES}


def any_numbers(pair):
    @given(
        seed=st.integers(0, 2**32 - 1),
        specials=st.lists(st.sampled_from(SPECIAL), min_size=1).map(np.float32),
        share=st.sampled_from((0.0, 0.01, 0.5)),
        count=st.sampled_from((0, 1, 1000, 2**31 - 2, 2**31 - 1)),
    )
    @settings(max_examples=25, deadline=None)
    def check(seed, specials, share, count):
        rng = np.random.default_rng(seed)
        params, grads, mu, nu, nu_max = (arrays(rng, specials, share) for _ in range(5))
        nu, nu_max = ({k: np.abs(x) for k, x in tree.items()} for tree in (nu, nu_max))
        moments = (mu, nu, nu_max) if pair.case.amsgrad else (mu, nu)
        state = pair.tx.init(params)
        adam = adam_of(state)._make((jnp.int32(count), *jax.tree.map(jnp.asarray, moments)))
        state = tuple(adam if hasattr(part, "mu") else part for part in state)
        distance, _, _ = pair.compare(grads, state, params)
        assert max(distance) <= UNITS, distance

    return check


@pytest.mark.sampled(5)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", [Case(), Case("torch", True), Case("keras", decay="decoupled")])
def test_any_numbers(case, packed):
    """NaN, infinity, signed zeros, subnormal and huge numbers, in leaves of odd lengths."""
    any_numbers(Pair(case._replace(packed=packed)))()
