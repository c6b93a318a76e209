"""The compiled kernel: whether it is used, and many threads at once."""

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
            "belongs to another version of adamx: expected interface 1, found 4",
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


@pytest.mark.parametrize("packed", [False, True])
def test_many_threads(packed):
    """Sixteen threads step at once, each its own run: as one after the other, bit for bit."""
    optimizer = adamx.fused_adam(1e-2, packed=packed, clip_global_norm=10.0)
    step = jax.jit(lambda params, state, g: optimizer.step(g, params, state), donate_argnums=(0, 1))
    sizes = (3, 70_001, 16_384, 40_000)

    def train(seed):
        rng = np.random.default_rng(seed)
        params = [jnp.asarray(rng.standard_normal(n), jnp.float32) for n in sizes]
        grads = [jnp.asarray(rng.standard_normal(n), jnp.float32) for n in sizes]
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
    params = [jnp.asarray(rng.standard_normal(50_000), jnp.float32) for _ in range(12)]
    states = [optimizer.init(p) for p in params]

    @jax.jit
    def both(ps, states):
        return [optimizer.step(p, p, s) for p, s in zip(ps, states, strict=True)]

    one = jax.jit(optimizer.step)
    for found, p, s in zip(both(params, states), params, states, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, one(p, p, s))
