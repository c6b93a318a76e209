"""The limit: the same step as a plain loop in C++, on memory of the same kind as JAX's."""

import ctypes
import functools
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import ADAM, Absent, Contender, Task

__all__ = ["FLAGS", "limit"]

FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"),
    # Square roots in vectors. No -ffast-math: NaN and infinity count here as in the others.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)


class _Leaf(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("g", "m", "v", "p")),
    ]


class _Numbers(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_float) for name in ("b1", "rest1", "b2", "rest2", "rate", "root", "eps")
    ]


@functools.cache
def _library(threads: int) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise Absent("there is no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limit.so"
        source = Path(__file__).with_name("limit.cc")
        command = [compiler, *FLAGS, str(source), "-o", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise Absent(f"it does not compile: {result.stderr.strip()}")
        library = ctypes.CDLL(str(path))
    library.limit_start(ctypes.c_int64(threads))
    return library


def limit(task: Task) -> Contender:
    if task.in_graph:
        raise Absent("not a part of JAX's graph")
    return _Limit(task)


class _Limit(Contender):
    def __init__(self, task: Task) -> None:
        self._step, self._threads = _library(task.threads).limit_step, task.threads
        # The loop changes these in place, which JAX never hears of; so nobody else has them.
        self._m, self._v = (jax.tree.map(jnp.zeros_like, task.grads) for _ in range(2))
        self._p, self._count = task.params(), 0
        jax.block_until_ready((self._m, self._v, self._p))

    def give(self, grads: list[jax.Array]) -> None:
        trees = (grads, self._m, self._v, self._p)
        rows = zip(*trees, strict=True)
        leaves = [
            _Leaf(arrays[0].size, *(array.unsafe_buffer_pointer() for array in arrays))
            for arrays in rows
        ]
        self._leaves = (_Leaf * len(leaves))(*leaves)

    def run(self, calls: int) -> None:
        threads, count = ctypes.c_int64(self._threads), ctypes.c_int64(len(self._leaves))
        for _ in range(calls):
            self._count += 1
            learning_rate, b1, b2, eps = ADAM
            rate = learning_rate / (1 - b1**self._count)
            root = 1 / math.sqrt(1 - b2**self._count)
            numbers = _Numbers(b1, 1 - b1, b2, 1 - b2, rate, root, eps)
            self._step(threads, self._leaves, count, ctypes.byref(numbers))

    def params(self) -> list[np.ndarray]:
        return [np.asarray(p) for p in self._p]
