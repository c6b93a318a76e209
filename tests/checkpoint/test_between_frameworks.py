"""What one framework saved, in the files of another."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import adamx
from adamx.checkpoint import Checkpoint, CheckpointError, load, save, torch_linear
from tests.checkpoint.checkpoint_runs import (
    BY_FILE,
    CHECKPOINTS,
    PLAIN,
    assert_equal,
    difference,
    flat,
    loaded,
    paths_of,
    recorded_weights,
    recording,
    restored,
    train,
)
from tests.golden.resume_data import FROZEN_LAYERS, LAYERS


def with_config(checkpoint, **fields):
    return dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, **fields))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "file",
    ["keras3_model.keras", "tfkeras_model.h5", "tfkeras_model.keras", "tf11_model.h5"],
)
def test_jax_into_a_file_of_keras(file, tmp_path):
    """A JAX state goes into the file under the file's names, whatever the order of the tree."""
    recorded = BY_FILE[file]
    checkpoint = loaded(file)
    weights, fixed, transformation, state = restored(checkpoint, recorded)
    weights, state = train(weights, fixed, transformation, state, 8, 1e-3, last=45)
    config = checkpoint.config
    half = Checkpoint.from_state(weights, state, config, transformation=transformation)
    assert half.names != checkpoint.names or file == "tf11_model.h5"
    save(tmp_path / file, half, template=CHECKPOINTS / file)
    read = load(tmp_path / file)
    assert (read.count, read.names, read.config) == (45, checkpoint.names, checkpoint.config)
    for path, array in flat(weights).items():
        np.testing.assert_array_equal(read.params[path], array)
    for key, array in adamx.to_numpy(state).items():
        if key != "count":
            field, _, path = key.partition("/")
            np.testing.assert_array_equal(getattr(read, field)[path], array)


def test_jax_into_torch(tmp_path):
    """The tree's alphabetical order becomes the model's, and kernels are transposed."""
    torch = pytest.importorskip("torch", reason="torch reads its own files; see the torch session")
    recorded = BY_FILE["torch_adam.pt"]
    checkpoint = loaded(recorded.file)
    weights, _, tx, state = restored(checkpoint, recorded)
    order, config = paths_of(LAYERS), checkpoint.config
    back = Checkpoint.from_state(
        weights, state, config, transformation=tx, order=order, layout=torch_linear
    )
    save(tmp_path / "back.pt", back)
    original = torch.load(CHECKPOINTS / recorded.file, weights_only=True)["optimizer"]
    written = torch.load(tmp_path / "back.pt", weights_only=True)
    for position, entry in original["state"].items():
        for key, tensor in entry.items():
            assert torch.equal(written["state"][position][key], tensor), (position, key)
    (group,), (expected,) = written["param_groups"], original["param_groups"]
    assert group == expected | {"param_names": list(paths_of(LAYERS))}


def test_tensorflow_1_into_keras_3(tmp_path):
    """Its decay becomes a schedule, so that the file loses the variable of the learning rate."""
    source = loaded("tf11_model.h5")
    target = tmp_path / "model.keras"
    assert save(target, source, template=CHECKPOINTS / "keras3_model.keras") == ()
    read = load(target)
    assert (read.framework, read.count) == ("keras3", 30)
    assert read.names == loaded("keras3_model.keras").names
    for field in ("params", "mu", "nu"):
        for name, array in getattr(source, field).items():
            np.testing.assert_array_equal(getattr(read, field)[name], array)
    recorded, arrays = BY_FILE["tf11_model.h5"], recording(BY_FILE["tf11_model.h5"])
    weights, fixed, transformation, state = restored(read, recorded)
    weights, _ = train(weights, fixed, transformation, state, int(arrays["seed"]), 1e-3)
    final = recorded_weights(arrays, recorded, "final", is_torch=False)
    assert difference(weights, final) <= 2.4e-7  # 1.2e-7 measured


def test_keras_3_into_optax():
    """The state goes on in Optax's own Adam, with the epsilon that comes closest."""
    recorded = BY_FILE["keras3_model.keras"]
    arrays = recording(recorded)
    checkpoint = with_config(loaded(recorded.file), convention="optax")
    weights, fixed, _, state = restored(checkpoint, recorded)
    eps = 1e-7 / np.sqrt(1 - 0.999**45)  # Keras's, half-way to step 60
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(checkpoint.config.learning_rate, eps=eps)
    )
    state = adamx.from_numpy(theirs.init(weights), adamx.to_numpy(state))
    with jax.numpy_dtype_promotion("standard"):
        weights, _ = train(weights, fixed, theirs, state, int(arrays["seed"]), 1e-3)
    final = recorded_weights(arrays, recorded, "final", is_torch=False)
    assert difference(weights, final) <= 1.4e-6  # 6.6e-7 measured


@pytest.mark.parametrize(
    ("source", "target", "fields", "message"),
    [
        ("tf11_model.h5", "keras3_model.keras", {"clip_value": 1.0}, "clip_global_norm and clip"),
        ("tf11_model.h5", "keras3_model.h5", {}, "template: expected an optimizer with"),
        ("keras3_amsgrad.keras", "tf11_model.h5", {}, "amsgrad: a tf1 configuration"),
        (
            "keras3_model.keras",
            "tfkeras_model.h5",
            {"convention": "torch"},
            "convention.*Epsilon.*eps=1.72e-08",
        ),
        ("keras3_model.keras", "keras3_ema.keras", {}, "use_ema: the template has averages"),
        ("tf11_model.h5", "keras3.weights.h5", {}, "learning_rate: .* make a template with the"),
        ("tfkeras_model.h5", "keras3_frozen.keras", {}, "norm/gamma: not in the checkpoint"),
    ],
)
def test_what_a_file_cannot_express_is_refused(source, target, fields, message, tmp_path):
    path = tmp_path / target
    path.write_text("as it was")
    with pytest.raises(CheckpointError, match=message):
        save(path, with_config(loaded(source), **fields), template=CHECKPOINTS / target)
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"convention": "keras"},
            "convention.*Epsilon is placed differently.*--set convention=torch.*eps=5.82e-08",
        ),
        ({"decay": 0.1}, "decay.*LambdaLR"),
        ({"learning_rate": optax.constant_schedule(1.0)}, "learning_rate.*lr_scheduler"),
        ({"clip_norm": 1.0}, "clip_norm: torch.optim cannot express"),
    ],
)
def test_what_torch_cannot_express_is_refused(fields, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "x.pt", with_config(loaded("torch_adam.pt"), **fields))
    assert list(tmp_path.iterdir()) == []


def test_a_function_is_not_saved(tmp_path):
    checkpoint = with_config(
        loaded("keras3_model.keras"), learning_rate=optax.constant_schedule(1.0)
    )
    with pytest.raises(CheckpointError, match="learning_rate: expected a number or a schedule"):
        save(tmp_path / "x.safetensors", checkpoint)


TORCH_NAMES = {"kernel": "weight", "gamma": "weight", "moving_mean": "running_mean"}
TORCH_NAMES |= {"beta": "bias", "moving_variance": "running_var", "bias": "bias"}


def test_keras_into_torch_with_buffers(tmp_path):
    """A count of batches is in torch alone: that buffer stays the template's."""
    torch = pytest.importorskip("torch", reason="torch writes its own files; see the torch session")
    source = with_config(loaded("keras3_frozen.keras"), convention="torch")
    paths = paths_of(FROZEN_LAYERS, statistics=True)
    names = [f"{layer}.{TORCH_NAMES[key]}" for layer, key in (path.split("/") for path in paths)]
    template = CHECKPOINTS / "torch_frozen.pt"
    assert save(tmp_path / "new.pt", source, template=template, order=names) == ()
    written, before = (torch.load(p, weights_only=True) for p in (tmp_path / "new.pt", template))
    assert written["model"].keys() == before["model"].keys()
    counted = "norm.num_batches_tracked"
    assert torch.equal(written["model"][counted], before["model"][counted])
    read = load(tmp_path / "new.pt")
    for path, name in zip(paths, names, strict=True):
        array = source.params[path]
        expected = array.T if path.endswith("kernel") else array
        np.testing.assert_array_equal(read.params[name], expected)
        if path in source.mu:
            moment = source.mu[path]
            moment = moment.T if path.endswith("kernel") else moment
            np.testing.assert_array_equal(read.mu[name], moment)
    assert "frozen.weight" not in read.mu


def test_an_order_for_the_moments_alone(tmp_path):
    """The file has names for its weights, and none for the optimizer's variables."""
    source = load(CHECKPOINTS / "keras3_frozen.weights.h5", config=PLAIN)
    assert source.names == tuple("01234567")
    order = paths_of(FROZEN_LAYERS, frozen=False)
    target = tmp_path / "new.keras"
    assert save(target, source, template=CHECKPOINTS / "keras3_frozen.keras", order=order) == ()
    read, original = load(target), loaded("keras3_frozen.keras")
    assert_equal(dataclasses.replace(read, config=original.config), original)
