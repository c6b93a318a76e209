"""Adam in double precision or wider, written down once more from the papers, without JAX."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """One step's results for one array; `scale` and `m_scale` are what errors are relative to."""

    direction: np.ndarray
    scale: np.ndarray
    m: np.ndarray
    m_scale: np.ndarray
    v: np.ndarray
    v_max: np.ndarray


def adam(
    gradients: Iterable[np.ndarray],
    b1: float | np.longdouble = 0.9,
    b2: float | np.longdouble = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
    amsgrad: bool = False,
    convention: str = "optax",
) -> Iterator[Step]:
    """Each step of Adam on one array, in NumPy's long double: 80 bits on x86, never below 64.

    The scales are what gradients of one sign would give. Where m is a small difference of large
    gradients, an implementation is accurate relative to them, and not to m.
    """
    b1, b2 = np.longdouble(b1), np.longdouble(b2)
    m = m_scale = v = v_max = np.longdouble(0)
    for t, gradient in enumerate(gradients, 1):
        g = np.asarray(gradient, np.clongdouble if np.iscomplexobj(gradient) else np.longdouble)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_scale = b1 * m_scale + (1 - b1) * np.abs(g)
        c1, c2 = 1 - b1**t, 1 - b2**t
        v_max = np.maximum(v_max, v / c2 if convention == "optax" else v)
        if convention == "keras":
            denominator = np.sqrt((v_max if amsgrad else v) + eps_root) + eps
            numerator, size = np.sqrt(c2) / c1 * m, np.sqrt(c2) / c1 * m_scale
        else:
            v_hat = v / c2
            if amsgrad:
                v_hat = v_max if convention == "optax" else v_max / c2
            denominator = np.sqrt(v_hat + eps_root) + eps
            numerator, size = m / c1, m_scale / c1
            if nesterov:
                c1_next = 1 - b1 ** (t + 1)
                numerator = b1 * m / c1_next + (1 - b1) * g / c1
                size = b1 * m_scale / c1_next + (1 - b1) * np.abs(g) / c1
        yield Step(numerator / denominator, size / denominator, m, m_scale, v, v_max)
