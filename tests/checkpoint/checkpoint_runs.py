"""The recorded networks in JAX: their trees, their order in each framework, and their training."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx import AdamConfig
from adamx.checkpoint import load, torch_linear
from tests.golden import resume_data

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"

# What a .weights.h5 file does not say.
PLAIN = AdamConfig.from_keras({"learning_rate": 0.01}, "keras3")
CLIPPED = AdamConfig.from_keras({"learning_rate": 0.01, "global_clipnorm": 1.0}, "keras3")


class Recorded(NamedTuple):
    """A file that a framework wrote, and how far from its own next 30 steps JAX ends."""

    file: str
    resume: str
    measured: float  # the largest difference of a weight; a test allows twice as much
    config: AdamConfig | None = None


RECORDED = (
    Recorded("tf11_model.h5", "tf11", 1.2e-7),
    Recorded("tfkeras_legacy_model.h5", "tfkeras_legacy", 2.4e-7),
    Recorded("tfkeras_model.h5", "tfkeras", 8.4e-7),
    Recorded("tfkeras_model.keras", "tfkeras", 8.4e-7),
    Recorded("keras3_model.keras", "keras3", 8.4e-7),
    Recorded("keras3.weights.h5", "keras3", 8.4e-7, CLIPPED),
    Recorded("keras3_model.h5", "keras3_model", 8.4e-7),
    Recorded("keras3_ema.keras", "keras3_ema", 7.8e-7),
    Recorded("keras3_amsgrad.keras", "keras3_amsgrad", 7.8e-7),
    Recorded("keras3_schedule.keras", "keras3_schedule", 7.2e-7),
    Recorded("torch_adam.pt", "torch_adam", 1.2e-7),
    Recorded("torch_adam_amsgrad.pt", "torch_adam_amsgrad", 6e-8),
    Recorded("torch_adamw.pt", "torch_adamw", 4.8e-7),
    Recorded("torch_names.pt", "torch_names", 1.2e-7),
    Recorded("torch_legacy.pt", "torch_legacy", 1.2e-7),
    Recorded("tf11_frozen.h5", "tf11_frozen", 1.8e-7),
    Recorded("tfkeras_legacy_frozen.h5", "tfkeras_legacy_frozen", 1.2e-7),
    Recorded("tfkeras_frozen.h5", "tfkeras_frozen", 7e-7),
    Recorded("tfkeras_frozen.keras", "tfkeras_frozen", 7e-7),
    Recorded("keras3_frozen.keras", "keras3_frozen", 7e-7),
    Recorded("keras3_frozen.weights.h5", "keras3_frozen", 7e-7, PLAIN),
    Recorded("torch_frozen.pt", "torch_frozen", 1.2e-7),
)


def layers_of(recorded):
    return resume_data.FROZEN_LAYERS if "frozen" in recorded.file else resume_data.LAYERS


def paths_of(layers, frozen=True, statistics=False):
    """The paths of the weights in the order of the model, as every framework but TF 1.1 has it."""
    paths = []
    for name, *_ in layers:
        own = ("gamma", "beta") if name == "norm" else ("kernel", "bias")
        if name == "norm" and statistics:
            own += ("moving_mean", "moving_variance")
        if name != "frozen" or frozen:
            paths += [f"{name}/{key}" for key in own]
    return paths


def tree_of(layers, paths):
    """Zeros: shapes and dtypes are what counts."""
    shapes = {name: {"kernel": (i, o)} for name, i, o in layers}
    outputs = {name: o for name, _, o in layers}
    tree = {}
    for path in paths:
        name, key = path.split("/")
        shape = shapes[name].get(key, (outputs[name],))
        tree.setdefault(name, {})[key] = jnp.zeros(shape)
    return tree


def loss(trained, fixed, x, y, norm_epsilon):
    """The mean squared error in training, batch normalisation by the batch."""
    for name in layer_order(trained, fixed):
        own = fixed.get(name) or trained[name]
        if name == "norm":
            mean, variance = x.mean(0, keepdims=True), x.var(0, keepdims=True)
            x = (x - mean) / jnp.sqrt(variance + norm_epsilon)
            x = x * own["gamma"][None] + own["beta"][None]
            continue
        x = x @ own["kernel"] + own["bias"][None]
        x = x if name == "out" else jnp.tanh(x)
    return jnp.mean((x - y) ** 2)


def layer_order(trained, fixed):
    layers = resume_data.FROZEN_LAYERS if "frozen" in fixed else resume_data.LAYERS
    return [name for name, *_ in layers if name in trained or name in fixed]


def restored(checkpoint, recorded):
    """The trained and the fixed weights, the transformation and its state."""
    layers = layers_of(recorded)
    paths, trained_paths = paths_of(layers), paths_of(layers, frozen=False)
    is_torch = checkpoint.framework == "torch"
    unnamed = is_torch or checkpoint.names[0] == "0"
    layout = {"layout": torch_linear} if is_torch else {}
    weights = checkpoint.params_like(
        tree_of(layers, paths), order=paths if is_torch else None, **layout
    )
    fixed = {name: weights.pop(name) for name in list(weights) if name == "frozen"}
    transformation, state = checkpoint.restore(
        weights, order=trained_paths if unnamed else None, **layout
    )
    return weights, fixed, transformation, state


def train(weights, fixed, transformation, state, seed, norm_epsilon, first=30, last=60):
    """Go on over the recorded batches from `first` to `last`."""

    @jax.jit
    def step(weights, state, x, y):
        gradients = jax.grad(loss)(weights, fixed, x, y, norm_epsilon)
        updates, state = transformation.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    for x, y in list(resume_data.batches(seed))[first:last]:
        weights, state = step(weights, state, x, y)
    return weights, state


def recording(recorded):
    with np.load(CHECKPOINTS / f"{recorded.resume}_resume.npz") as arrays:
        return dict(arrays)


def recorded_weights(arrays, recorded, when, is_torch):
    """The recorded weights by path, laid out as in Keras; without statistics."""
    paths = paths_of(layers_of(recorded), statistics=True)
    weights = {path: arrays[f"{when}{i}"] for i, path in enumerate(paths)}
    return {
        path: array.T if is_torch and path.endswith("kernel") else array
        for path, array in weights.items()
        if "moving" not in path
    }


def flat(tree):
    return {f"{name}/{key}": np.asarray(x) for name, own in tree.items() for key, x in own.items()}


def difference(weights, expected):
    return max(np.abs(array - expected[path]).max() for path, array in flat(weights).items())


def assert_equal(a, b):
    """The same checkpoint, bit by bit."""
    assert (a.framework, a.version, a.groups) == (b.framework, b.version, b.groups)
    assert a.naming == b.naming
    for field in ("params", "mu", "nu", "nu_max", "extra"):
        left, right = getattr(a, field), getattr(b, field)
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            assert left[name].shape == right[name].shape
            assert left[name].tobytes() == right[name].tobytes(), f"{field}/{name}"


def without_names(checkpoint):
    """As in a state dict of torch alone, which does not have names that were inferred."""
    new = {name: str(index) for index, name in enumerate(checkpoint.names)}
    fields = {
        field: {new[name]: array for name, array in getattr(checkpoint, field).items()}
        for field in ("mu", "nu", "nu_max")
    }
    groups = [
        dataclasses.replace(group, names=tuple(new[name] for name in group.names))
        for group in checkpoint.groups
    ]
    return dataclasses.replace(checkpoint, groups=groups, naming={}, params={}, **fields)


BY_FILE = {recorded.file: recorded for recorded in RECORDED}


def loaded(file):
    return load(CHECKPOINTS / file, config=BY_FILE[file].config)
