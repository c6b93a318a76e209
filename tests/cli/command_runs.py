"""The recorded files that the command is run on, and what reads its output."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np

from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, save
from tests.checkpoint.checkpoint_runs import CHECKPOINTS

BFLOAT16 = np.dtype(jnp.bfloat16)
KERAS = CHECKPOINTS / "keras3_model.keras"
NUMBERED = CHECKPOINTS / "keras3.weights.h5"
TORCH = CHECKPOINTS / "torch_adam.pt"
# Which moments are whose rests on the order of Keras's layers where shapes are the same.
NAMING = (
    "5 of 8 inferred from the order of the model's weights; of the same shape: in/bias, b2/bias, "
    "b10/bias; b2/kernel, b10/kernel"
)
NAMES = [f"{layer}/{key}" for layer in ("in", "b2", "b10", "out") for key in ("kernel", "bias")]


def recording(name):
    with np.load(CHECKPOINTS / f"{name}_resume.npz") as arrays:
        return dict(arrays)


def rows(lines):
    """The table that stands below the empty line: by name of a variable its cells by column."""
    head, *body = (re.split(r" {2,}", line.strip()) for line in lines[lines.index("") + 1 :])
    return {cells[0]: dict(zip(head, cells, strict=False)) for cells in body}


def checkpoint_of(mu, nu=None, **fields):
    nu = {name: np.abs(array) for name, array in mu.items()} if nu is None else nu
    given = {"framework": "jax", "version": None, "config": AdamConfig(), "count": 3, "params": {}}
    return Checkpoint(**{**given, "names": tuple(mu), "mu": mu, "nu": nu, **fields})


def saved(path, checkpoint, **fields):
    save(path, dataclasses.replace(checkpoint, **fields))
    return path


def with_entry(arrays, name, value, index=0):
    changed = {key: array.copy() for key, array in arrays.items()}
    changed[name].reshape(-1)[index] = value
    return changed


TORCH_NAMES = [name.replace("/", ".").replace("kernel", "weight") for name in NAMES]
