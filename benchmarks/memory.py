"""How stored moments change Adam: directions beside exact ones, on the gradients of real trainings.

`python -m benchmarks.memory [steps]` trains three small networks by exact Adam (double precision)
and gives the same gradients to Adam whose moments are stored in other forms. For each it prints the
root mean square difference of the direction, relative to the exact one's, the mean size relative to
the exact one's, and the largest entry so far relative to the exact run's.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import adamx

Params = dict[str, jax.Array]
Training = tuple[Params, Callable[..., jax.Array], Iterator[tuple[np.ndarray, np.ndarray]]]

B1, B2, EPS, RATE = 0.9, 0.999, 1e-8, 1e-3
AT = (20, 100, 500, 1000, 2000, 5000)


def dense(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape) / np.sqrt(shape[0])


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -jnp.mean(chosen)


def digits_network(seed: int = 0) -> Training:
    """ReLU layers on handwritten digits. Units die, and the loss becomes nearly 0."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"w1": dense(keys[0], 64, 128), "w2": dense(keys[1], 128, 128)}
    params |= {"w3": dense(keys[2], 128, 32), "b1": jnp.zeros(128), "b2": jnp.full(128, -0.3)}
    data: Any = load_digits()
    images, labels = (data.data[:1500] / 16).astype(np.float32), data.target[:1500]
    random = np.random.default_rng(seed)

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
        return cross_entropy(hidden @ p["w3"], y)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            chosen = random.integers(0, len(images), 32)
            yield images[chosen], labels[chosen]

    return params, loss, batches()


def read_text() -> tuple[np.ndarray, int]:
    """Python's own standard library as numbers of characters, and how many there are."""
    files = sorted(Path(argparse.__file__).parent.glob("*.py"))[:60]
    text = "".join(file.read_text("utf-8", errors="ignore") for file in files)
    alphabet = sorted(set(text))
    number = {character: i for i, character in enumerate(alphabet)}
    return np.array([number[c] for c in text], np.int32), -(-len(alphabet) // 32) * 32


def text_batches(data: np.ndarray, length: int, seed: int) -> Iterator[Any]:
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(0, len(data) - length - 1, 16)
        rows = np.stack([data[i : i + length + 1] for i in starts])
        yield rows[:, :-1], rows[:, 1:]


def transformer(seed: int = 0, width: int = 64, heads: int = 4, length: int = 48) -> Training:
    """Two blocks of a transformer on text."""
    data, size = read_text()
    keys = iter(jax.random.split(jax.random.key(seed), 12))
    params = {"embed": 0.3 * dense(next(keys), size, width), "head": dense(next(keys), width, size)}
    params["position"] = 0.1 * dense(next(keys), length, width)
    for i in range(2):
        params |= {f"qkv{i}": dense(next(keys), width, 3 * width)}
        params |= {f"out{i}": dense(next(keys), width, width)}
        params |= {f"up{i}": dense(next(keys), width, 4 * width)}
        params |= {f"down{i}": dense(next(keys), 4 * width, width)}
    mask = jnp.tril(jnp.ones((length, length), bool))

    def norm(x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        h = p["embed"][x] + p["position"]
        for i in range(2):
            parts = (norm(h) @ p[f"qkv{i}"]).reshape(*h.shape[:2], 3, heads, -1)
            q, k, v = (parts[:, :, j] for j in range(3))
            weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width / heads)
            weights = jax.nn.softmax(jnp.where(mask, weights, -1e9))
            mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(h.shape)
            h = h + mixed @ p[f"out{i}"]
            h = h + jax.nn.gelu(norm(h) @ p[f"up{i}"]) @ p[f"down{i}"]
        return cross_entropy(norm(h) @ p["head"], y)

    return params, loss, text_batches(data, length, seed)


def recurrent(seed: int = 0, width: int = 64, length: int = 32) -> Training:
    """A GRU on text."""
    data, size = read_text()
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {"embed": dense(keys[0], size, width), "head": dense(keys[1], width, size)}
    params |= {"input": dense(keys[2], width, 3 * width), "state": dense(keys[3], width, 3 * width)}
    params["bias"] = jnp.zeros(3 * width)

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        def cell(h: jax.Array, e: jax.Array) -> tuple[jax.Array, jax.Array]:
            a, b = jnp.split(e @ p["input"] + p["bias"], 3, -1), jnp.split(h @ p["state"], 3, -1)
            reset, update = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
            h = update * h + (1 - update) * jnp.tanh(a[2] + reset * b[2])
            return h, h

        start = jnp.zeros((len(x), width))
        _, states = jax.lax.scan(cell, start, p["embed"][x].swapaxes(0, 1))
        return cross_entropy(states.swapaxes(0, 1) @ p["head"], y)

    return params, loss, text_batches(data, length, seed)


TRAININGS = {"transformer": transformer, "GRU": recurrent, "digits": digits_network}

FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16, to nearest": {"mu_dtype": "bfloat16", "nu_dtype": "bfloat16"},
    "bfloat16, v at random": {"mu_dtype": "bfloat16", "nu_dtype": "bfloat16", "nu_key": 0},
    "8 bits": {"moments": adamx.EightBit(min_size=0)},
}


def flashoptim_step(grads: Params, state: Any) -> tuple[Params, Any]:
    """FlashOptim's 8-bit moments, by the formulas of arXiv 2602.23349: groups of 32."""
    t, moments = state[0] + 1, {}
    directions = {}

    def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        groups = x.reshape(-1, 32)
        largest = jnp.abs(groups).max(1, keepdims=True)
        return groups, jnp.where(largest == 0, 1, largest)

    def half(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float16).astype(jnp.float32)

    for name, g in grads.items():
        m, v = state[1][name]
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        v_hat = v / (1 - B2**t)
        directions[name] = m / (1 - B1**t) / (jnp.sqrt(v_hat) + EPS)
        (a, a_scale), (r, r_scale) = split(m), split(jnp.sqrt(v))
        y = jnp.floor(254 * a / (a_scale + jnp.abs(a)) + 0.5) / 127
        z = jnp.floor(255 * r / r_scale + 0.5) / 255
        m = y / (2 - jnp.abs(y)) * half(a_scale)
        moments[name] = m.reshape(g.shape), jnp.square(z * half(r_scale)).reshape(g.shape)
    return directions, (t, moments)


def measure(make: Callable[[], Training], steps: int) -> Iterator[tuple[int, str, list[float]]]:
    """Rows of step, form, and the three numbers."""
    params, loss, batches = make()
    gradient = jax.jit(jax.grad(loss))
    forms: dict[str, tuple[Callable[..., Any], Any]] = {}
    for name, settings in FORMS.items():
        tx = adamx.scale_by_adam(B1, B2, EPS, **settings)
        forms[name] = jax.jit(tx.update), tx.init(params)
    zeros = {name: (jnp.zeros_like(p), jnp.zeros_like(p)) for name, p in params.items()}
    forms["FlashOptim"] = jax.jit(flashoptim_step), (0.0, zeros)
    exact = {name: (np.zeros(p.shape), np.zeros(p.shape)) for name, p in params.items()}
    largest = dict.fromkeys([*forms, "exact"], 0.0)
    for t in range(1, steps + 1):
        grads = gradient(params, *next(batches))
        right = {}
        for name, g in grads.items():
            wide = np.asarray(g, np.float64)
            m, v = exact[name]
            m, v = B1 * m + (1 - B1) * wide, B2 * v + (1 - B2) * wide**2
            exact[name] = m, v
            right[name] = m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)
        flat = np.concatenate([right[name].ravel() for name in sorted(right)])
        largest["exact"] = max(largest["exact"], np.abs(flat).max())
        for form, (update, state) in forms.items():
            found, state = update(grads, state)
            forms[form] = update, state
            ours = np.concatenate([np.asarray(found[k], np.float64).ravel() for k in sorted(found)])
            largest[form] = max(largest[form], np.abs(ours).max())
            if t in AT or t == steps:
                error = np.sqrt(np.mean((ours - flat) ** 2) / np.mean(flat**2))
                size = np.abs(ours).mean() / np.abs(flat).mean()
                yield t, form, [error, size, largest[form] / largest["exact"]]
        params = {k: p - RATE * jnp.float32(right[k]) for k, p in params.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=int, nargs="?", default=2000)
    steps = parser.parse_args().steps
    ratios = []
    for name, make in TRAININGS.items():
        print(f"{name:12} {'step':>5} {'moments':22} {'error':>8} {'size':>7} {'largest':>8}")
        errors: dict[tuple[int, str], float] = {}
        for t, form, (error, size, most) in measure(make, steps):
            errors[t, form] = error
            numbers = f"{100 * error:7.2f}% {size:7.3f} {most:8.2f}"
            print(f"{'':12} {t:5} {form:22} {numbers}", flush=True)
        late = [t for t, form in errors if form == "FlashOptim" and t >= 100]
        ratios += [errors[t, "8 bits"] / errors[t, "FlashOptim"] for t in late]
    mean = np.exp(np.mean(np.log(ratios)))
    print(f"8 bits: {mean:.2f} of FlashOptim's error, geometric mean from step 100 on")


if __name__ == "__main__":
    sys.exit(main())
