"""Checkpoints that adamx wrote, read by Keras 3 and trained on there.

Its backend is JAX, which the environment must say before Keras is imported: `KERAS_BACKEND=jax`.
"""

import dataclasses

import pytest

from adamx.checkpoint import CheckpointError, load, save, torch_linear
from tests.live.keras_models import (
    assert_half_in_jax,
    assert_recorded_goes_on,
    assert_uninterrupted,
    finals,
    opened,
    written,
)
from tests.live.resuming import CHECKPOINTS, Recorded, assert_near

keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.live,
    # Keras's variables know NumPy 1 alone.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PROMOTES = True

# By file, what stands before its `_resume.npz`.
FILES = {
    "keras3_model.keras": "keras3",
    "keras3.weights.h5": "keras3",
    "keras3_model.h5": "keras3_model",
    "keras3_amsgrad.keras": "keras3_amsgrad",
    "keras3_schedule.keras": "keras3_schedule",
    "keras3_ema.keras": "keras3_ema",
    "keras3_frozen.keras": "keras3_frozen",
    "keras3_frozen.weights.h5": "keras3_frozen",
}
# adamx does not move averages, and the moments have no names in a `.weights.h5` with layers of two
# classes.
FOR_JAX = [f for f in FILES if f not in ("keras3_ema.keras", "keras3_frozen.weights.h5")]
TF11 = [
    ("tf11_model", "tf11", ".keras"),
    ("tf11_model", "tf11", ".h5"),
    ("tf11_model", "tf11", ".weights.h5"),
    ("tf11_frozen", "tf11_frozen", ".keras"),
    ("tf11_frozen", "tf11_frozen", ".h5"),
]

# What is recorded came from TensorFlow, as Keras's backend: measured, up to 2.4e-7 of weights that
# the 30 steps move by 0.1 to 0.3; or from TensorFlow 1.1: up to 3.6e-7.
OTHER_BACKEND = 8e-7
# Where adamx did half of the steps: measured, up to 6e-7, since Keras takes the corrections of the
# bias from powers in float32.
HALF_IN_JAX = 1.5e-6
# Keras adds epsilon to the root of v, torch to that of v / (1 - b2^t): measured, 1.1e-6; with
# torch's place of epsilon in Keras 6e-7 were left, of those powers.
KERAS_EPSILON = 2e-6


@pytest.mark.parametrize("file", FILES)
def test_recorded(file, tmp_path):
    assert_recorded_goes_on("keras3", file, FILES[file], tmp_path, OTHER_BACKEND)


@pytest.mark.parametrize("file", FILES)
def test_uninterrupted(file, tmp_path):
    assert_uninterrupted("keras3", file, FILES[file], tmp_path)


@pytest.mark.parametrize("file", FOR_JAX)
def test_half_of_the_steps_in_jax(file, tmp_path):
    assert_half_in_jax("keras3", file, FILES[file], tmp_path, HALF_IN_JAX)


def test_moments_without_names(tmp_path):
    """In a `.weights.h5` with layers of two classes, moments have numbers for names."""
    recorded, checkpoint = Recorded.of("keras3_frozen"), load(CHECKPOINTS / "keras3_frozen.keras")
    order = [str(index) for index in range(len(checkpoint.names))]
    path = written("keras3", recorded.run, checkpoint, ".weights.h5", tmp_path, order=order)
    model = opened("keras3", recorded.run, path)
    model.train(recorded.batches)
    assert_near(finals(model), recorded.final, OTHER_BACKEND)


@pytest.mark.parametrize(("name", "resume", "ending"), TF11)
def test_from_tf11(name, resume, ending, tmp_path):
    """The norm of all gradients, once clipnorm, is global_clipnorm; the decay is a schedule."""
    recorded, checkpoint = Recorded.of(name, resume), load(CHECKPOINTS / f"{name}.h5")
    settings = checkpoint.config.to_keras("keras3")
    assert settings["global_clipnorm"] == 1.0
    assert settings["learning_rate"]["class_name"] == "InverseTimeDecay"
    # A .keras file brings its settings along, however its template was compiled.
    run = recorded.run._replace(config={} if ending == ".keras" else settings)
    model = opened("keras3", run, written("keras3", run, checkpoint, ending, tmp_path))
    model.train(recorded.batches)
    assert_near(finals(model), recorded.final, OTHER_BACKEND)


def test_from_tf11_refuses_what_keras3_cannot_express(tmp_path):
    checkpoint = load(CHECKPOINTS / "tf11_model.h5")
    config = dataclasses.replace(checkpoint.config, clip_value=0.5)
    both = dataclasses.replace(checkpoint, config=config)
    template = CHECKPOINTS / "keras3_model.keras"
    with pytest.raises(CheckpointError, match=r"clip_global_norm=1\.0, clip_value=0\.5"):
        save(tmp_path / "a.keras", both, template=template)
    assert not list(tmp_path.iterdir())


def test_amsgrad_from_torch(tmp_path):
    """From adamx's file of what torch saved; a test beside torch holds that it is the same."""
    recorded = Recorded.of("torch_adam_amsgrad")
    checkpoint = load(CHECKPOINTS / "torch_adam_amsgrad.safetensors")
    template = CHECKPOINTS / "keras3_amsgrad.keras"
    with pytest.raises(CheckpointError, match="convention='torch'"):
        save(tmp_path / "a.keras", checkpoint, template=template, order=recorded.paths)

    config = dataclasses.replace(checkpoint.config, convention="keras")
    checkpoint = dataclasses.replace(checkpoint, config=config)
    run = recorded.run._replace(config={"amsgrad": True})
    path = written("keras3", run, checkpoint, ".keras", tmp_path, order=recorded.paths)
    model = opened("keras3", run, path)
    model.train(recorded.batches)
    weights = zip(recorded.paths, finals(model), strict=True)
    assert_near([torch_linear(*weight) for weight in weights], recorded.final, KERAS_EPSILON)
