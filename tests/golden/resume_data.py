"""The networks and the batches of the recorded checkpoints, for Python 3.6 and NumPy 1.16 too."""

import json

import numpy as np

# Dense layers with their inputs and outputs: all tanh, but the last is linear. `b2` and `b10` have
# one shape, so that moments in the wrong order raise no error.
LAYERS = (("in", 8, 16), ("b2", 16, 16), ("b10", 16, 16), ("out", 16, 4))
# The same with a layer that is not trained, `frozen`, and a batch normalisation, `norm`.
FROZEN_LAYERS = (
    ("in", 8, 16),
    ("frozen", 16, 16),
    ("norm", 16, 16),
    ("b10", 16, 16),
    ("out", 16, 4),
)
BATCH, BEFORE, AFTER = 32, 30, 30


def weights(seed, layers=LAYERS):
    """Each layer's float32 weights: kernel, bias; or gamma, beta, moving mean and variance."""
    rng = np.random.RandomState(seed)
    out = []
    for name, i, o in layers:
        if name == "norm":
            out += [np.ones(o), np.zeros(o), np.zeros(o), np.ones(o)]
        else:
            out += [rng.standard_normal((i, o)) * 0.4, rng.standard_normal(o) * 0.1]
    return [x.astype(np.float32) for x in out]


def batches(seed):
    """Each step's float32 inputs and targets; the loss is the mean squared error."""
    rng = np.random.RandomState(seed + 1)
    teacher = rng.standard_normal((8, 4))
    for _ in range(BEFORE + AFTER):
        x = rng.standard_normal((BATCH, 8))
        y = np.eye(4)[np.argmax(x @ teacher, 1)]
        yield x.astype(np.float32), y.astype(np.float32)


def write(path, seed, texts, lists):
    """Writes a .npz file: the seed, what is to be JSON, and lists of arrays, numbered."""
    arrays = {key: np.array(json.dumps(value)) for key, value in texts.items()}
    for key, values in lists.items():
        arrays.update((f"{key}{i}", np.asarray(x)) for i, x in enumerate(values))
    np.savez_compressed(path, seed=seed, **arrays)


def farthest(xs, ys):
    """The largest difference of two lists of arrays."""
    assert len(xs) == len(ys)
    return max(np.max(np.abs(np.subtract(x, ys[i]))) for i, x in enumerate(xs))
