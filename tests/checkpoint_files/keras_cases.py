"""Recorded files of Keras, and copies of them with some parts changed."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

from tests.checkpoint.checkpoint_runs import CHECKPOINTS

__all__ = ["WILD", "change_archive", "change_h5", "read_truth", "renumber"]

WILD = Path(CHECKPOINTS.parent, "wild")


def read_truth(case):
    """By field, its arrays by name."""
    fields = {}
    with np.load(WILD / case / "truth.npz") as file:
        for key in file.files:
            field, _, name = key.partition("|")
            fields.setdefault(field, {})[name] = file[key]
    return fields


def change_archive(source, target, edit_config=None, edit_weights=None):
    """A copy of a .keras file with another configuration or other arrays."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json" and edit_config:
                described = json.loads(content)
                edit_config(described)
                content = json.dumps(described).encode()
            if name == "model.weights.h5" and edit_weights:
                stream = io.BytesIO(content)
                with h5py.File(stream, "r+") as file:
                    edit_weights(file)
                content = stream.getvalue()
            new.writestr(name, content)
    return target


def change_h5(source, target, edit):
    """A copy of an HDF5 file with other attributes or arrays."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        edit(file)
    return target


def renumber(group, keep):
    """Leave those of an optimizer's numbered variables that `keep` lists."""
    arrays = [group[str(index)][()] for index in keep]
    for name in list(group):
        del group[name]
    for index, array in enumerate(arrays):
        group[str(index)] = array
