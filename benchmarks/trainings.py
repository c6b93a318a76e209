"""Three small trainings, the same for every optimizer: a transformer, a GRU and a ReLU network.

Each is pure functions of keys, so that a run compiles as a whole and two runs of a seed differ in
their optimizer alone. The text is Python's standard library, character by character.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

__all__ = ["TRAININGS", "Batch", "Params", "Training", "digits_network", "gru", "transformer"]

Params = dict[str, jax.Array]
Batch = tuple[jax.Array, jax.Array]

CHARACTERS = 128  # ASCII; the last one stands for all others
TRAIN_FILES = 60  # of the standard library, in the order of names; the rest is held out
HELD_OUT = 32, 64  # batches of the held-out text, and windows in each


@dataclasses.dataclass(frozen=True)
class Training:
    """A network and its data.

    Attributes:
      init: the initial parameters, in float32, of a key.
      loss: the mean cross-entropy of parameters and a batch (inputs, labels).
      draw: a batch of the training data, of a key.
      held_out: batches that are never drawn, stacked along the first axis.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array]
    draw: Callable[[jax.Array], Batch]
    held_out: Batch

    def held_out_loss(self, params: Params) -> jax.Array:
        """The mean loss over all of the held-out data."""
        return jnp.mean(jax.lax.map(lambda batch: self.loss(params, *batch), self.held_out))


def _dense(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape) / np.sqrt(shape[0])


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def digits_network() -> Training:
    """ReLU layers on handwritten digits: units die, and the training loss becomes nearly 0."""
    data: Any = load_digits()
    images, labels = jnp.asarray(data.data / 16, jnp.float32), jnp.asarray(data.target, jnp.int32)
    drawn_from = 1500

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 3)
        params = {"w1": _dense(keys[0], 64, 128), "w2": _dense(keys[1], 128, 128)}
        params |= {"w3": _dense(keys[2], 128, 32)}
        return params | {"b1": jnp.zeros(128), "b2": jnp.full(128, -0.3)}

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
        return _cross_entropy(hidden @ p["w3"], y)

    def draw(key: jax.Array) -> Batch:
        chosen = jax.random.randint(key, [32], 0, drawn_from)
        return images[chosen], labels[chosen]

    return Training(init, loss, draw, (images[None, drawn_from:], labels[None, drawn_from:]))


def _read(files: list[Path]) -> jax.Array:
    content = b"".join(file.read_bytes() for file in files)
    return jnp.asarray(np.minimum(np.frombuffer(content, np.uint8), CHARACTERS - 1), jnp.int32)


def _on_text(init: Callable[..., Params], loss: Callable[..., jax.Array], length: int) -> Training:
    """A training to predict the next character in windows of the standard library's sources."""
    files = sorted(Path(argparse.__file__).parent.glob("*.py"))
    text, other = _read(files[:TRAIN_FILES]), _read(files[TRAIN_FILES:])

    def windows(text: jax.Array, starts: jax.Array) -> Batch:
        rows = text[starts[..., None] + jnp.arange(length + 1)]
        return rows[..., :-1], rows[..., 1:]

    def draw(key: jax.Array) -> Batch:
        return windows(text, jax.random.randint(key, [16], 0, text.size - length))

    starts = np.linspace(0, other.size - length - 1, HELD_OUT[0] * HELD_OUT[1], dtype=np.int32)
    return Training(init, loss, draw, windows(other, jnp.asarray(starts.reshape(HELD_OUT))))


def transformer(width: int = 64, blocks: int = 2, heads: int = 4, length: int = 48) -> Training:
    """A small GPT on text."""

    def init(key: jax.Array) -> Params:
        keys = iter(jax.random.split(key, 3 + 4 * blocks))
        params = {
            "embed": 0.3 * _dense(next(keys), CHARACTERS, width),
            "head": _dense(next(keys), width, CHARACTERS),
            "position": 0.1 * _dense(next(keys), length, width),
        }
        for i in range(blocks):
            params |= {f"qkv{i}": _dense(next(keys), width, 3 * width)}
            params |= {f"out{i}": _dense(next(keys), width, width)}
            params |= {f"up{i}": _dense(next(keys), width, 4 * width)}
            params |= {f"down{i}": _dense(next(keys), 4 * width, width)}
        return params

    def norm(x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        h = p["embed"][x] + p["position"]
        for i in range(blocks):
            parts = (norm(h) @ p[f"qkv{i}"]).reshape(*h.shape[:2], 3, heads, -1)
            q, k, v = (parts[:, :, j] for j in range(3))
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(h.shape)
            h = h + mixed @ p[f"out{i}"]
            h = h + jax.nn.gelu(norm(h) @ p[f"up{i}"]) @ p[f"down{i}"]
        return _cross_entropy(norm(h) @ p["head"], y)

    return _on_text(init, loss, length)


def gru(width: int = 64, length: int = 32) -> Training:
    """A GRU on text."""

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 4)
        params = {"embed": _dense(keys[0], CHARACTERS, width)}
        params |= {"head": _dense(keys[1], width, CHARACTERS)}
        params |= {"input": _dense(keys[2], width, 3 * width)}
        return params | {"state": _dense(keys[3], width, 3 * width), "bias": jnp.zeros(3 * width)}

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        def cell(h: jax.Array, e: jax.Array) -> tuple[jax.Array, jax.Array]:
            a, b = jnp.split(e + p["bias"], 3, -1), jnp.split(h @ p["state"], 3, -1)
            reset, update = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
            h = update * h + (1 - update) * jnp.tanh(a[2] + reset * b[2])
            return h, h

        inputs = p["embed"][x.swapaxes(0, 1)] @ p["input"]
        _, states = jax.lax.scan(cell, jnp.zeros((len(x), width)), inputs)
        return _cross_entropy(states.swapaxes(0, 1) @ p["head"], y)

    return _on_text(init, loss, length)


TRAININGS = {"transformer": transformer, "GRU": gru, "digits": digits_network}
