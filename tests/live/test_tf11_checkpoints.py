"""Checkpoints that adamx wrote, read by TensorFlow 1.1 and trained on there.

TensorFlow 1.1 runs on CPython 3.6: in an interpreter of its own, which the environment variable
ADAMX_TF11_PYTHON names. There, `pip install --no-deps tensorflow==1.1.0 numpy==1.16.6
protobuf==3.19.6 h5py==2.10.0 werkzeug==1.0.1 six==1.15.0`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from adamx.checkpoint import load, save
from tests.golden import resume_data
from tests.live.resuming import (
    CHECKPOINTS,
    HALF,
    Recorded,
    assert_near,
    assert_same,
    half_way,
)

PYTHON = os.environ.get("ADAMX_TF11_PYTHON")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        not PYTHON, reason="ADAMX_TF11_PYTHON: expected the Python of TensorFlow 1.1, found none"
    ),
]

# File, and what stands before its `_resume.npz`.
FILES = [("tf11_model", "tf11"), ("tf11_frozen", "tf11_frozen")]

# What another machine recorded: measured, up to 1.2e-7 of weights that move by 0.1 to 0.3.
OTHER_MACHINE = 3e-7
# Where JAX did half of the steps: measured, 1.8e-7.
HALF_IN_JAX = 5e-7


def template(name, folder):
    """A file of TensorFlow 1.1 with other values in it."""
    path = folder / "template.h5"
    shutil.copyfile(CHECKPOINTS / f"{name}.h5", path)
    with h5py.File(path, "r+") as file:
        file.visititems(blank)
        training = json.loads(file.attrs["training_config"])
        training["optimizer_config"]["config"].update(lr=0.5, decay=0.5)
        file.attrs["training_config"] = np.bytes_(json.dumps(training))
    return path


def blank(_, member):
    if isinstance(member, h5py.Dataset):
        member[()] = 0


def trained_on(path, recorded, first):
    """By TensorFlow 1.1: the hyperparameters, the weights and the optimizer's weights."""
    root, out = Path(__file__).parents[2], path.with_suffix(".npz")
    script = Path(__file__).with_name("continue_tf11.py")
    run = subprocess.run(
        [PYTHON, script, path, str(recorded.run.seed), str(first), out],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    with np.load(out) as file:

        def arrays(kind):
            count = sum(key.startswith(kind) for key in file.files)
            return [file[f"{kind}{i}"] for i in range(count)]

        return json.loads(str(file["config"])), arrays("weights"), arrays("optimizer")


@pytest.mark.parametrize(("name", "resume"), FILES)
def test_recorded(name, resume, tmp_path):
    recorded, original = Recorded.of(name, resume), tmp_path / "original.h5"
    shutil.copyfile(CHECKPOINTS / f"{name}.h5", original)
    path = tmp_path / "a.h5"
    assert save(path, load(original), template=template(name, tmp_path)) == ()
    config, weights, optimizer = trained_on(path, recorded, resume_data.BEFORE)
    expected = trained_on(original, recorded, resume_data.BEFORE)
    assert config == expected[0]
    assert_same(weights, expected[1])
    assert_same(optimizer, expected[2])
    assert_near(weights, recorded.final, OTHER_MACHINE)


@pytest.mark.parametrize(("name", "resume"), FILES)
def test_half_of_the_steps_in_jax(name, resume, tmp_path):
    recorded, path = Recorded.of(name, resume), tmp_path / "a.h5"
    half = half_way(load(CHECKPOINTS / f"{name}.h5"), recorded)
    assert save(path, half, template=template(name, tmp_path)) == ()
    _, weights, _ = trained_on(path, recorded, resume_data.BEFORE + HALF)
    assert_near(weights, recorded.final, HALF_IN_JAX)
