"""The parameters and the gradients of the recorded runs, from NumPy's frozen `RandomState`."""

from collections.abc import Iterator

import numpy as np

SHAPES = {"kernel": (3, 4), "bias": (5,), "conv": (2, 2, 3, 4)}  # in this order
STEPS = (1, 2, 3, 10, 100, 1000)

_KINDS = {
    "normal": lambda x, t: x,  # noqa: ARG005
    "tiny": lambda x, t: x * 1e-9,  # noqa: ARG005
    "huge": lambda x, t: x * 1e8,  # noqa: ARG005
    "sparse": lambda x, t: x * (t % 7 == 0) * (np.abs(x) > 1.0),
}


def initial_params(seed: int) -> list[np.ndarray]:
    """Float32 parameters, in the order of `SHAPES`."""
    rng = np.random.RandomState(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]


def gradients(seed: int, kind: str) -> Iterator[list[np.ndarray]]:
    """Float32 gradients like the parameters, one list for each step."""
    rng = np.random.RandomState(seed + 1)
    for t in range(max(STEPS)):
        normal = [rng.standard_normal(shape) for shape in SHAPES.values()]
        yield [_KINDS[kind](x, t).astype(np.float32) for x in normal]
