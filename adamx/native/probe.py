"""Whether a kernel that was compiled with unknown flags computes correctly."""

import ctypes
import itertools
import sys

import numpy as np

__all__ = ["find_fault", "flushes_subnormals"]

_DTYPES = (np.float32, np.float64, None, np.float16)  # as in leaf.h; NumPy has no bfloat16
# b1 and b2 of 0.5, no eps, moments that need no correction, a learning rate of 1.
_SCALARS = (0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0, -1.0, 0.0, 0.0)
_REPEATS = 3  # longer than any vector register, and a remainder


def flushes_subnormals() -> bool:
    """Whether this thread treats subnormal numbers as zero, as a library may have set it to."""
    return sys.float_info.min * 0.5 == 0.0


def find_fault(library: ctypes.CDLL) -> str | None:
    """What differs between a step of the kernel and NumPy's on special numbers, or None."""
    flushes = flushes_subnormals()
    for number, dtype in enumerate(_DTYPES):
        if dtype is None:
            continue
        wide = np.float64 if dtype is np.float64 else np.float32
        subnormal = np.finfo(dtype).smallest_subnormal * 8
        values = [0.0, -0.0, 1.0, -3.0, np.nan, np.inf, *([] if flushes else [subnormal])]
        table = np.array([*itertools.product(values, values, map(abs, values))] * _REPEATS, dtype)
        g, m, v = (np.ascontiguousarray(column) for column in table.T)
        p = np.ones_like(g)
        expected = _step(*(x.astype(wide) for x in (g, m, v, p)))
        library.adamx_probe(
            ctypes.c_int(number),
            ctypes.c_int64(g.size),
            *(ctypes.c_void_p(x.ctypes.data) for x in (g, m, v, p)),
            ctypes.c_void_p(np.array(_SCALARS, wide).ctypes.data),
        )
        for name, found, exact in zip(("m", "v", "p"), (m, v, p), expected, strict=True):
            with np.errstate(all="ignore"):
                exact = exact.astype(dtype)
            if not np.array_equal(found, exact, equal_nan=True):
                return f"{name} of a step in {np.dtype(dtype).name} on special numbers"
    return None


def _step(g: np.ndarray, m: np.ndarray, v: np.ndarray, p: np.ndarray) -> list[np.ndarray]:
    half = g.dtype.type(0.5)
    with np.errstate(all="ignore"):
        m = m + half * (g - m)
        v = np.where(np.isinf(v), v, v + half * (g * g - v))
        return [m, v, p - m / np.sqrt(v)]
