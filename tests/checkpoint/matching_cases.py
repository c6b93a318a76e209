"""Checkpoints and trees of these shapes."""

import jax.numpy as jnp
import numpy as np

import adamx
from adamx import AdamConfig
from adamx.checkpoint import Checkpoint

SHAPES = {"in.weight": (4, 3), "in.bias": (4,), "out.weight": (4, 4), "out.bias": (4,)}


def checkpoint_of(shapes, framework="torch", amsgrad=False, **fields):
    """Moments that can be told apart: variable i has i + 1 in mu, its square in nu."""

    def arrays(value):
        return {
            name: np.full(shape, value(i + 1), np.float32)
            for i, (name, shape) in enumerate(shapes.items())
        }

    return Checkpoint(
        **{
            "framework": framework,
            "version": None,
            "config": AdamConfig(convention="torch", amsgrad=amsgrad),
            "count": 5,
            "names": tuple(shapes),
            "params": arrays(float),
            "mu": arrays(float),
            "nu": arrays(lambda i: i**2),
            "nu_max": arrays(lambda i: i**2 + 1) if amsgrad else {},
        }
        | fields
    )


def tree_of(shapes):
    tree = {}
    for path, shape in shapes.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.zeros(shape)
    return tree


def restored(checkpoint, shapes, **arguments):
    """By path, the number that stands in mu."""
    _, state = checkpoint.restore(tree_of(shapes), **arguments)
    return {
        key.removeprefix("mu/"): float(array.flat[0])
        for key, array in adamx.to_numpy(state).items()
        if key.startswith("mu/")
    }


NAMED = {"in/weight": (4, 3), "in/bias": (4,), "out/weight": (4, 4), "out/bias": (4,)}
KERNELS = {"in/kernel": (3, 4), "in/bias": (4,), "out/kernel": (4, 4), "out/bias": (4,)}
