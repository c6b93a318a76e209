"""Train a small network on real handwritten digits with adamx.keras.Adam alone, as in Keras.

The 1,797 images of 8 by 8 pixels that come with scikit-learn: four fifths to train, the rest to
measure the accuracy. The first layer's weights have a largest norm, and the learning rate decays
and is halved when the held-out loss no longer falls. Halfway everything is saved; a second process
takes it up from there and must end at the same parameters, bit for bit.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.keras import Adam

try:
    from rich.console import Console
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[examples]"') from error

Params = dict[str, dict[str, jax.Array]]
BATCH = 64
EVALUATE_EVERY = 25
SETTINGS, ARRAYS, RESUMED = "settings.json", "arrays.npz", "resumed.npz"


class Data(NamedTuple):
    """Images (n, 64) of float32 from 0 to 1, and their digits (n,)."""

    images: jax.Array
    digits: jax.Array


def load(seed: int) -> tuple[Data, Data]:
    """The training set and the held-out set, with each digit as frequent in both."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts = train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=seed)
    train_images, test_images, train_digits, test_digits = map(jnp.asarray, parts)
    return Data(train_images, train_digits), Data(test_images, test_digits)


def init_params(key: jax.Array) -> Params:
    """Two dense layers, 9,600 parameters; He's initialisation."""
    params = {}
    shapes = {"hidden": (64, 128), "out": (128, 10)}
    for (name, shape), subkey in zip(shapes.items(), jax.random.split(key, 2), strict=True):
        kernel = jax.nn.initializers.he_normal()(subkey, shape)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return params


def logits(params: Params, images: jax.Array) -> jax.Array:
    """(n, 64) to (n, 10)."""
    x = jax.nn.relu(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def loss(params: Params, batch: Data) -> jax.Array:
    """Mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, batch.images), batch.digits
    ).mean()


@jax.jit
def evaluate(params: Params, data: Data) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy."""
    correct = logits(params, data.images).argmax(axis=1) == data.digits
    return loss(params, data), correct.mean()


def max_norm(kernel: jax.Array) -> jax.Array:
    """Keras's `MaxNorm(2.0)`: the weights into each unit, a column, have a norm of at most 2."""
    norms = jnp.linalg.norm(kernel, axis=0, keepdims=True)
    return kernel * jnp.minimum(norms, 2.0) / (1e-7 + norms)


@dataclasses.dataclass
class ReduceOnPlateau:
    """Keras's callback: halve `lr` after `patience` evaluations that bring no lower loss."""

    patience: int = 8
    best: float = float("inf")
    waited: int = 0
    times: int = 0

    def on_evaluation(self, optimizer: Adam, held_out_loss: float) -> None:
        """Change the optimizer's learning rate, if it is time to."""
        if held_out_loss < self.best:
            self.best, self.waited = held_out_loss, 0
            return
        self.waited += 1
        if self.waited == self.patience:
            optimizer.lr, self.waited, self.times = optimizer.lr / 2, 0, self.times + 1


class Run(NamedTuple):
    """All that changes in training."""

    params: Params
    optimizer: Adam
    plateau: ReduceOnPlateau


def train(run: Run, seed: int, first: int, last: int) -> Run:
    """The steps from `first` to before `last`.

    The batch depends on the step number alone, so that a run can be taken up anywhere.
    """
    train_data, test_data = load(seed)
    params, optimizer, plateau = run
    for t in range(first, last):
        rows = np.random.default_rng((seed, t)).choice(train_data.digits.size, BATCH, replace=False)
        batch = Data(train_data.images[rows], train_data.digits[rows])
        params = optimizer.get_updates(params, {"hidden/kernel": max_norm}, loss, batch)
        if (t + 1) % EVALUATE_EVERY == 0:
            plateau.on_evaluation(optimizer, float(evaluate(params, test_data)[0]))
    return Run(params, optimizer, plateau)


def save_params(path: Path, params: Params, weights: list[np.ndarray]) -> None:
    """Parameters as `layer/name`, and the optimizer's weights by number."""
    arrays = {f"{layer}/{k}": x for layer, part in params.items() for k, x in part.items()}
    numbered = {f"weight{i}": weight for i, weight in enumerate(weights)}
    np.savez(path, **arrays, **numbered)  # pyright: ignore[reportArgumentType]


def load_params(path: Path) -> tuple[Params, list[np.ndarray]]:
    """The inverse of `save_params`."""
    params: Params = {}
    with np.load(path) as arrays:
        names = [name for name in arrays.files if "/" in name]
        weights = [arrays[f"weight{i}"] for i in range(len(arrays.files) - len(names))]
        for name in names:
            layer, _, key = name.partition("/")
            params.setdefault(layer, {})[key] = jnp.asarray(arrays[name])
    return params, weights


def save(folder: Path, run: Run, **settings: Any) -> None:
    """Write what a second process needs to go on."""
    settings |= {
        "optimizer": run.optimizer.get_config(),
        "plateau": dataclasses.asdict(run.plateau),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1))
    save_params(folder / ARRAYS, run.params, run.optimizer.get_weights())


def resume(folder: Path) -> None:
    """Train from what `save` wrote to the end, and write the parameters."""
    settings = json.loads((folder / SETTINGS).read_text())
    params, weights = load_params(folder / ARRAYS)
    optimizer = Adam.from_config(settings["optimizer"])
    optimizer.build(params)
    optimizer.set_weights(weights)
    run = Run(params, optimizer, ReduceOnPlateau(**settings["plateau"]))
    run = train(run, settings["seed"], optimizer.iterations, settings["steps"])
    save_params(folder / RESUMED, run.params, run.optimizer.get_weights())


def whole_run(steps: int, seed: int, folder: Path, console: Console) -> bool:
    """Train without a break and with one; whether both end the same."""
    run = Run(
        init_params(jax.random.key(seed)),
        Adam(lr=5e-3, decay=1e-3, clipnorm=1.0),
        ReduceOnPlateau(),
    )
    run = train(run, seed, 0, steps // 2)
    save(folder, run, seed=seed, steps=steps)
    run = train(run, seed, steps // 2, steps)
    subprocess.run([sys.executable, __file__, "--resume", str(folder)], check=True)

    ends = ((run.params, run.optimizer.get_weights()), load_params(folder / RESUMED))
    same = jax.tree.all(jax.tree.map(np.array_equal, *ends))
    verdict = "the same parameters, bit for bit" if same else "[red]DIFFERENT parameters[/]"
    console.print(f"learning rate: halved {run.plateau.times} times, to {run.optimizer.lr:g}")
    console.print(f"resumed in a second process after {steps // 2} steps: {verdict}")
    test_data = load(seed)[1]
    accuracy = float(evaluate(run.params, test_data)[1])
    console.print(f"held-out accuracy: [bold]{accuracy:.2%}[/] of {test_data.digits.size} images")
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="at least 2 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data order and initialisation")
    parser.add_argument("--out", type=Path, help="folder for the files; none are kept without it")
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="only finish the run saved there"
    )
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps: expected at least 2, found {options.steps}")
    if options.resume:
        resume(options.resume)
        return
    started = time.perf_counter()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        same = whole_run(options.steps, options.seed, folder, console)
    console.print(f"took {time.perf_counter() - started:.0f} s")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
