"""Train a small network on real handwritten digits with adamx.keras.Adam alone, as in Keras.

The 1,797 images of 8 by 8 pixels that come with scikit-learn: four fifths to train, the rest to
measure the accuracy. The first layer's weights have a largest norm, and the learning rate decays
and is halved when the held-out loss no longer falls. Halfway everything is saved; a second process
takes it up from there and must end at the same parameters, bit for bit.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np

from adamx.keras import Adam

LAYERS = {"hidden": (64, 128), "out": (128, 10)}  # two dense layers, 9,600 parameters
EVALUATE_EVERY = 25
SETTINGS, ARRAYS = "keras_facade.json", "keras_facade.npz"
RESUMED = "keras_facade_resumed.npz"


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

    params: common.Params
    optimizer: Adam
    plateau: ReduceOnPlateau


def train(run: Run, seed: int, first: int, last: int) -> Run:
    """The steps from `first` to before `last`.

    The batch depends on the step number alone, so that a run can be taken up anywhere.
    """
    data, test = common.load_data(seed)
    params, optimizer, plateau = run
    for t in range(first, last):
        rng = np.random.default_rng((seed, t))
        rows = rng.choice(data.digits.size, common.BATCH, replace=False)
        batch = common.Data(data.images[rows], data.digits[rows])
        params = optimizer.get_updates(params, {"hidden/kernel": max_norm}, common.loss, batch)
        if (t + 1) % EVALUATE_EVERY == 0:
            plateau.on_evaluation(optimizer, float(common.evaluate(params, test)[0]))
    return Run(params, optimizer, plateau)


def save_params(path: Path, params: common.Params, weights: list[np.ndarray]) -> None:
    """Parameters as `layer/name`, and the optimizer's weights by number."""
    arrays = common.name_arrays(params)
    arrays |= {f"weight{i}": weight for i, weight in enumerate(weights)}
    np.savez(path, **arrays)


def load_params(path: Path) -> tuple[common.Params, list[np.ndarray]]:
    """The inverse of `save_params`."""
    params: common.Params = {}
    with np.load(path) as arrays:
        names = [name for name in arrays.files if "/" in name]
        weights = [arrays[f"weight{i}"] for i in range(len(arrays.files) - len(names))]
        for name in names:
            layer, _, key = name.partition("/")
            params.setdefault(layer, {})[key] = jnp.asarray(arrays[name])
    return params, weights


def save(folder: Path, run: Run, **settings: Any) -> None:
    """Write what a second process needs to continue."""
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


def whole_run(steps: int, seed: int, folder: Path) -> bool:
    """Train without a break and with one; whether both end the same."""
    params = common.init_params(jax.random.key(seed), LAYERS)
    run = Run(params, Adam(lr=5e-3, decay=1e-3, clipnorm=1.0), ReduceOnPlateau())
    run = train(run, seed, 0, steps // 2)
    save(folder, run, seed=seed, steps=steps)
    run = train(run, seed, steps // 2, steps)
    subprocess.run([sys.executable, __file__, "--resume", "--out", str(folder)], check=True)

    ends = ((run.params, run.optimizer.get_weights()), load_params(folder / RESUMED))
    same = jax.tree.all(jax.tree.map(np.array_equal, *ends))
    verdict = "the same parameters, bit for bit" if same else "DIFFERENT parameters"
    print(f"learning rate: halved {run.plateau.times} times, to {run.optimizer.lr:g}")
    print(f"resumed in a second process after {steps // 2} steps: {verdict}")
    print(f"the files are {folder / SETTINGS}, {folder / ARRAYS} and {folder / RESUMED}")
    test = common.load_data(seed)[1]
    accuracy = float(common.evaluate(run.params, test)[1])
    print(f"held-out accuracy: {accuracy:.2%} of {test.digits.size} images")
    return same


def main() -> None:
    parser = common.make_parser(__doc__, out=True, steps=1500, seed=0)
    about = "only finish the run saved in the folder"
    parser.add_argument("--resume", action="store_true", help=about)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps: expected at least 2, found {options.steps}")
    if options.resume:
        resume(options.out)
        return
    started = time.perf_counter()
    same = whole_run(options.steps, options.seed, options.out)
    print(f"took {time.perf_counter() - started:.0f} s")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
