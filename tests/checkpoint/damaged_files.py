"""Files that were made to do harm, of those that frameworks wrote."""

import io

import h5py
import numpy as np

from adamx import AdamConfig
from tests.checkpoint.checkpoint_runs import CHECKPOINTS

RNG = np.random.RandomState
CONFIG = AdamConfig(learning_rate=0.01, eps=1e-7, convention="keras")
TOO_MUCH = "takes more memory than twice its"


def golden(name):
    return (CHECKPOINTS / name).read_bytes()


def keras_h5(edit, name="tfkeras_model.h5"):
    """A file of Keras that `edit` has changed."""
    stream = io.BytesIO(golden(name))
    with h5py.File(stream, "r+") as file:
        edit(file)
    return stream.getvalue()
