"""The recorded checkpoints, and half of the steps after them in JAX."""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.checkpoint import Checkpoint
from tests.golden import resume_data
from tests.golden.make_checkpoints import Run

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
HALF = resume_data.AFTER // 2

# Keras's names for the weights of the one layer that has no kernel and bias.
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


class Recorded(NamedTuple):
    """A run, and what the framework itself made of it in the 30 steps after its file was saved."""

    run: Run
    final: list[np.ndarray]  # the model's weights, in its order

    @classmethod
    def of(cls, name, resume=None):
        """`resume` is what stands before `_resume.npz`, where it is not `name`."""
        with np.load(CHECKPOINTS / f"{resume or name}_resume.npz") as file:
            run = Run(name, (), int(file["seed"]), json.loads(str(file["config"])))
            keys = [f"final{i}" for i in range(len(file.files)) if f"final{i}" in file]
            return cls(run, [file[key] for key in keys])

    @property
    def batches(self):
        """Those of the 30 steps."""
        return list(resume_data.batches(self.run.seed))[resume_data.BEFORE :]

    @property
    def paths(self):
        """Of the model's weights in its order."""
        return [
            f"{layer}/{part}"
            for layer, _, _ in self.run.layers
            for part in (NORM if layer == "norm" else ("kernel", "bias"))
        ]


class Norm(NamedTuple):
    """How a batch normalisation trains, and the averages that it keeps."""

    epsilon: float
    keeps: float
    unbiased: bool


KERAS_NORM = Norm(epsilon=1e-3, keeps=0.99, unbiased=False)
TORCH_NORM = Norm(epsilon=1e-5, keeps=0.9, unbiased=True)


def half_way(checkpoint, recorded, order=None, layout=None, norm=KERAS_NORM):
    """The checkpoint after the first 15 of the 30 steps, which JAX does.

    `order` has a path for each of the checkpoint's `params`, where those are not Keras's names.
    """
    layers = [layer for layer, _, _ in recorded.run.layers]
    paths = dict(zip(checkpoint.params, order or checkpoint.params, strict=True))
    trained = [paths[name] for name in checkpoint.names if name in checkpoint.mu]
    like = {layer: {} for layer in layers}
    for name, array in checkpoint.params.items():
        layer, part = paths[name].split("/")
        like[layer][part] = jnp.zeros_like(layout(paths[name], array) if layout else array)
    params = checkpoint.params_like(like, order=order, layout=layout)
    params, others = _split(params, trained)
    transformation, state = checkpoint.restore(
        params, order=trained if order else None, layout=layout
    )

    def loss(params, others, x, y):
        weights, norms = _joined(params, others), {}
        for layer in layers:
            own = weights[layer]
            if layer == "norm":
                mean, variance = x.mean(0), x.var(0)
                x = (x - mean[None]) / jnp.sqrt(variance + norm.epsilon)[None]
                x = x * own["gamma"][None] + own["beta"][None]
                norms = {"moving_mean": mean, "moving_variance": variance}
            else:
                x = x @ own["kernel"] + own["bias"][None]
                x = x if layer == "out" else jnp.tanh(x)
        return jnp.mean((x - y) ** 2), norms

    @jax.jit
    def step(params, others, state, x, y):
        grads, norms = jax.grad(loss, has_aux=True)(params, others, x, y)
        updates, state = transformation.update(grads, state, params)
        for name, new in norms.items():
            if norm.unbiased and name == "moving_variance":
                new *= len(x) / (len(x) - 1)
            old = others["norm"][name]
            others["norm"][name] = norm.keeps * old + (1 - norm.keeps) * new
        return optax.apply_updates(params, updates), others, state

    for x, y in recorded.batches[:HALF]:
        params, others, state = step(params, others, state, x, y)
    params, order = _joined(params, others), list(paths.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "state: Optax keeps")  # of the trained parameters alone
        return Checkpoint.from_state(params, state, checkpoint.config, order=order, layout=layout)


def _split(params, trained):
    """Two trees: what is trained, with None for the rest; and the rest, with None for that."""

    def part(is_wanted):
        return {
            layer: {k: v if is_wanted(f"{layer}/{k}") else None for k, v in own.items()}
            for layer, own in params.items()
        }

    return part(lambda path: path in trained), part(lambda path: path not in trained)


def _joined(params, others):
    def either(x, y):
        return y if x is None else x

    return jax.tree.map(either, params, others, is_leaf=lambda x: x is None)


def assert_same(found, expected):
    """The same bits, one array after the other."""
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def assert_near(found, expected, bound):
    """No difference of two arrays in the same place is larger than the bound."""
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=bound)
