"""The compiled kernel: whether it is used, what it refuses, and many threads at once."""

import concurrent.futures
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx import native

pytestmark = pytest.mark.skipif(not native.status(), reason=f"no kernel: {native.status().reason}")

PROGRAM = """
import json, jax, jax.numpy as jnp, adamx
optimizer = adamx.fused_adam(0.1)
params = jnp.array([1.0, -2.0])
state = optimizer.init(params)
step = jax.jit(optimizer.step)
after, _ = step(params, params, state)
called = "adamx_step" in step.lower(params, params, state).as_text()
status = adamx.native.status()
print(json.dumps([status.in_use, status.reason, called, after.tolist()]))
"""


def run(program, **environment):
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


@pytest.mark.slow
def test_turned_off():
    in_use, reason, called, after = run(PROGRAM, ADAMX_NATIVE="0")
    assert (in_use, called) == (False, False)
    assert reason == "turned off by the environment variable ADAMX_NATIVE=0"
    on = run(PROGRAM, ADAMX_NATIVE="1")
    assert (on[0], on[2]) == (True, True)
    assert "compiled for" in on[1]
    np.testing.assert_allclose(after, on[3], rtol=3e-7)


def test_nothing_is_loaded_before_a_step():
    program = """
import json, adamx
before = adamx.native.loader._loaded.cache_info().currsize
optimizer = adamx.fused_adam(0.1)
maps = open("/proc/self/maps").read() if __import__("os").path.exists("/proc/self/maps") else ""
print(json.dumps([before, "adamx_native" in maps]))
"""
    assert run(program) == [0, False]


BROKEN = """
from pathlib import Path
import adamx.native.loader as loader
{change}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loader._LIBRARY = 'nothing.so'", "not compiled: "),
        ("loader._LIBRARY = '__init__.py'", "could not be loaded: "),
        (
            "loader._INTERFACE = 1",
            "belongs to another version of adamx: expected interface 1, found 2",
        ),
        ("loader._ffi_version = lambda: (0, 0)", "jaxlib has 0.0: reinstall adamx with"),
        ("loader._ffi_version = lambda: (1, 9)", "jaxlib has 1.9: reinstall adamx with"),
        (
            "loader.find_fault = lambda _: 'v of a step'",
            "-ffast-math: it computes wrong results: v of",
        ),
        (
            "loader.flushes_subnormals = iter([False, True]).__next__",
            "-ffast-math: loading it makes subnormal numbers zero",
        ),
        (
            "def refuse(*args, **kwargs): raise ValueError('too old')\n"
            "import jax; jax.ffi.register_ffi_target = refuse",
            "XLA refused the kernel: too old",
        ),
    ],
)
def test_reasons(change, words):
    """Why there is no kernel; the step is there all the same."""
    in_use, reason, called, after = run(BROKEN.format(change=change) + PROGRAM)
    assert not in_use
    assert not called
    assert words in reason
    np.testing.assert_allclose(after, [0.9, -1.9], rtol=1e-6)


# ---- What the handler refuses --------------------------------------------------------------------

F32 = jnp.float32
NUMBERS = jnp.array([0.9, 0.1, 0.999, 0.001, 1e-8, 0.0, 0.1, 0.001, -1e-3, 0.0, 0.0], F32)
ONE = jnp.ones((), F32)
ATTRIBUTES = {
    "eps_beside_corrected": np.bool_(True),
    "maximum_of_corrected": np.bool_(True),
    "amsgrad": np.bool_(False),
    "decoupled": np.bool_(True),
    "clip": np.bool_(False),
    "mu_buffers": np.int64(1),
    "nu_buffers": np.int64(1),
    "table": np.array([0, 0, 0, 0, 0, 0, 0], np.int64),
}
NO_KEYS = jnp.zeros((0, 2), jnp.uint32)


def call(operands, aliases=None, **changed):
    """The handler with these operands after the coefficients; all but the gradients come back."""
    assert native.is_registered()
    attributes = ATTRIBUTES | changed
    aliases = aliases or {4: 0, 5: 1, 7: 2}
    results = [jax.ShapeDtypeStruct(operands[i].shape, operands[i].dtype) for i in aliases]
    target = jax.ffi.ffi_call(native.STEP, results, input_output_aliases=aliases)
    return jax.block_until_ready(jax.jit(lambda *x: target(*x, **attributes))(*operands))


def operands(numbers=NUMBERS, wide=None, norm=ONE, sizes=(4, 4, 4, 4), dtypes=(F32,) * 4):
    wide = jnp.zeros(0, F32) if wide is None else wide
    return [
        numbers,
        wide,
        norm,
        NO_KEYS,
        *(jnp.ones(n, d) for n, d in zip(sizes, dtypes, strict=True)),
    ]


def test_handler_takes_what_is_right():
    mu, nu, p = call(operands())
    np.testing.assert_allclose(mu, 1.0)
    np.testing.assert_allclose(nu, 1.0)
    np.testing.assert_allclose(p, 1 - 1e-3 * (1 / 0.1) / np.sqrt(1 / 0.001), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ({"numbers": NUMBERS[:-1]}, {}, "expected the scalars as float32"),
        ({"numbers": NUMBERS.astype("bfloat16")}, {}, "expected the scalars as float32"),
        ({"wide": NUMBERS}, {}, "expected the scalars as float64"),
        ({"norm": jnp.ones(2)}, {}, "expected a norm"),
        ({"norm": jnp.int32(1)}, {}, "expected a norm"),
        ({"sizes": (4, 4, 3, 4)}, {}, "a gradient and its parameter differ in size"),
        ({"sizes": (3, 4, 4, 4)}, {}, "the moments of a leaf do not fit their buffer"),
        ({"sizes": (4, 3, 4, 4)}, {}, "the moments of a leaf do not fit their buffer"),
        ({"dtypes": (F32, F32, jnp.int32, F32)}, {}, "argument 6 has a dtype"),
        ({"dtypes": (F32, F32, F32, jnp.uint16)}, {}, "argument 7 has a dtype"),
        ({}, {"amsgrad": np.bool_(True)}, "expected 9 arguments, found 8"),
        ({}, {"mu_buffers": np.int64(2)}, "expected 9 arguments, found 8"),
        ({}, {"nu_buffers": np.int64(-1)}, "expected other numbers of buffers"),
        ({}, {"mu_buffers": np.int64(2**62)}, "expected other numbers of buffers"),
        ({}, {"table": np.zeros(5, np.int64)}, "a broken row"),
        ({}, {"table": np.zeros(0, np.int64)}, "expected 6 arguments, found 8"),
        ({}, {"table": np.array([1, 0, 0, 0, 0, 0, 0])}, "a buffer of moments that is not there"),
        ({}, {"table": np.array([0, 0, -1, 0, 0, 0, 0])}, "a buffer of moments that is not there"),
        ({}, {"table": np.array([0, 1, 0, 0, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, -1, 0, 0, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, 2**62, 0, 0, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, 0, 0, 2**63 - 1, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, 0, 0, 0, 0, 0, 8])}, "expected 9 arguments, found 8"),
    ],
)
def test_handler_refuses(given, changed, message):
    with pytest.raises(Exception, match=f"INVALID_ARGUMENT.*adamx: .*{message}"):
        call(operands(**given), **changed)


@pytest.mark.parametrize(
    ("p", "residual", "bits"),
    [
        (jnp.ones(4), jnp.zeros(4, jnp.int8), 8),
        (jnp.ones(4, jnp.bfloat16), jnp.zeros(4, jnp.int16), 8),
        (jnp.ones(4, jnp.bfloat16), jnp.zeros(3, jnp.int8), 8),
        (jnp.ones(4, jnp.bfloat16), jnp.zeros(4, jnp.int8), 4),
    ],
)
def test_handler_refuses_residuals_that_do_not_fit(p, residual, bits):
    numbers, wide, norm, _, mu, nu, g, _ = operands()
    table = np.array([0, 0, 0, 0, 0, 0, bits])
    given = [numbers, wide, norm, jnp.zeros((1, 2), jnp.uint32), mu, nu, residual, g, p]
    aliases = {4: 0, 5: 1, 6: 2, 8: 3}
    with pytest.raises(Exception, match="adamx: a residual does not fit its parameter"):
        call(given, aliases, table=table)
    with pytest.raises(Exception, match="adamx: expected a key of two uint32 for each leaf"):
        call([*given[:3], NO_KEYS, *given[4:]], aliases, table=table)


def test_handler_refuses_results_elsewhere():
    with pytest.raises(Exception, match="expected 3 results, found 2"):
        call(operands(), aliases={4: 0, 5: 1})
    results = [jax.ShapeDtypeStruct((4,), F32)] * 3
    target = jax.ffi.ffi_call(native.STEP, results)
    with pytest.raises(Exception, match="result 0 does not lie in its argument's memory"):
        jax.block_until_ready(jax.jit(lambda *x: target(*x, **ATTRIBUTES))(*operands()))


def test_handler_of_the_norm():
    assert native.is_registered()

    def norm(result, *grads):
        return jax.jit(jax.ffi.ffi_call(native.NORM, result))(*grads)

    scalar = jax.ShapeDtypeStruct((), F32)
    grads = jnp.full(3, 2.0), jnp.full((2, 2), 1.0, jnp.bfloat16), jnp.zeros(0)
    assert norm(scalar, *grads) == 4
    assert norm(scalar) == 0
    for result, given, message in (
        (jax.ShapeDtypeStruct((2,), F32), grads, "expected a scalar as result"),
        (jax.ShapeDtypeStruct((), jnp.int32), grads, "a result of float32 or float64"),
        (scalar, (jnp.arange(3),), "argument 0 has a dtype"),
    ):
        with pytest.raises(Exception, match=f"INVALID_ARGUMENT.*adamx: .*{message}"):
            jax.block_until_ready(norm(result, *given))


def test_handler_refuses_float64_without_its_scalars():
    with jax.enable_x64(True), pytest.raises(Exception, match="scalars as float64 beside"):
        call(operands(dtypes=(F32, F32, F32, jnp.float64)))


# ---- Threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_many_threads(packed):
    """Sixteen threads step at once, each its own run: as one after the other, bit for bit."""
    optimizer = adamx.fused_adam(1e-2, packed=packed, clip_global_norm=10.0)
    step = jax.jit(lambda params, state, g: optimizer.step(g, params, state), donate_argnums=(0, 1))
    sizes = (3, 70_001, 16_384, 40_000)

    def train(seed):
        rng = np.random.default_rng(seed)
        params = [jnp.asarray(rng.standard_normal(n), F32) for n in sizes]
        grads = [jnp.asarray(rng.standard_normal(n), F32) for n in sizes]
        state = optimizer.init(params)
        for _ in range(25):
            params, state = step(params, state, grads)
        return jax.tree.map(np.asarray, (params, state))

    expected = [train(seed) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(train, range(16)))
    for mine, other in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine, other)


def test_many_calls_in_one_program():
    """XLA may run calls that do not depend on one another at the same time, on the same threads."""
    optimizer = adamx.fused_adam(1e-2)
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.standard_normal(50_000), F32) for _ in range(12)]
    states = [optimizer.init(p) for p in params]

    @jax.jit
    def both(ps, states):
        return [optimizer.step(p, p, s) for p, s in zip(ps, states, strict=True)]

    one = jax.jit(optimizer.step)
    for found, p, s in zip(both(params, states), params, states, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, one(p, p, s))
