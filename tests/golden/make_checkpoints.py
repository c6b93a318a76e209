"""Trains with Keras 3, tf_keras or PyTorch, saves half way, and records what came of it.

In an environment with `tensorflow-cpu`, `tf_keras` and `keras`, or with `torch`:

    python -m tests.golden.make_checkpoints {keras3,tfkeras,tfkeras_legacy,torch} DIRECTORY

Each file is also loaded by its own framework and trained on; what is printed is how far that model
is in the end from the one that was never saved, in its weights and in the optimizer's.
"""

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.golden import resume_data as data


class Run(NamedTuple):
    """One training, whose files are `name` with each of `endings`; `config` is the optimizer's."""

    name: str
    endings: tuple[str, ...]
    seed: int
    config: dict[str, Any]

    @property
    def layers(self) -> tuple[tuple[str, int, int], ...]:
        """Names, inputs and outputs of the layers."""
        return data.FROZEN_LAYERS if self.name.endswith("_frozen") else data.LAYERS


SCHEDULE = {
    "module": "keras.optimizers.schedules",
    "class_name": "InverseTimeDecay",
    "config": {"initial_learning_rate": 0.01, "decay_steps": 1, "decay_rate": 0.001},
    "registered_name": None,
}
LR = {"learning_rate": 0.01}
RUNS = {
    "keras3": (
        Run("keras3_model", (".h5",), 8, {**LR, "global_clipnorm": 1.0}),
        Run("keras3_ema", (".keras",), 11, {**LR, "use_ema": True, "ema_momentum": 0.9}),
        Run("keras3_amsgrad", (".keras",), 12, {**LR, "amsgrad": True}),
        Run("keras3_schedule", (".keras",), 13, {"learning_rate": SCHEDULE}),
        Run("keras3_frozen", (".keras", ".weights.h5"), 14, LR),
    ),
    "tfkeras": (Run("tfkeras_frozen", (".h5", ".keras"), 14, LR),),
    "tfkeras_legacy": (Run("tfkeras_legacy_frozen", (".h5",), 14, {**LR, "decay": 0.001}),),
    "torch": (
        Run("torch_frozen", (".pt",), 14, {"lr": 0.01}),
        Run("torch_groups", (".pt",), 15, {"lr": 0.01, "weight_decay": [0.1, 0.0]}),
        Run("torch_names", (".pt",), 16, {"lr": 0.01}),
        Run("torch_legacy", (".pt",), 17, {"lr": 0.01}),
    ),
}


class Keras:
    """A compiled model of Keras 3 or tf_keras, fresh or from a file."""

    def __init__(self, framework: str, run: Run, path: str | None = None):
        if framework == "keras3":
            os.environ["KERAS_BACKEND"] = "tensorflow"
            import keras  # pyright: ignore[reportMissingImports]
        else:
            import tf_keras as keras  # pyright: ignore[reportMissingImports]

        keras.backend.clear_session()
        into_a_model = framework == "keras3" and path and path.endswith(".h5")
        if path and not into_a_model:
            self.model = keras.models.load_model(path)
            return
        layers = [keras.layers.Input((8,))]
        for name, _, size in run.layers:
            activation = "linear" if name == "out" else "tanh"
            dense = keras.layers.Dense(size, activation, name=name, trainable=name != "frozen")
            norm = keras.layers.BatchNormalization(name=name)
            layers.append(norm if name == "norm" else dense)
        self.model = keras.Sequential(layers)
        legacy = framework == "tfkeras_legacy"
        adam = keras.optimizers.legacy.Adam if legacy else keras.optimizers.Adam
        self.model.compile(adam.from_config(dict(run.config)), loss="mse")
        if path:
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(path)
            if not path.endswith(".weights.h5"):
                self._load_optimizer_weights(path)
        else:
            self.model.set_weights(data.weights(run.seed, run.layers))

    def _load_optimizer_weights(self, path: str) -> None:
        """From Keras 3's HDF5 of a whole model, whose loader gives the optimizer no moments."""
        import h5py

        with h5py.File(path) as file:
            group: Any = file["optimizer_weights"]
            self.model.optimizer.set_weights([group[n][()] for n in group.attrs["weight_names"]])

    def save(self, path: str) -> None:
        """Writes the file of that name."""
        if path.endswith(".weights.h5"):
            self.model.save_weights(path)
        else:
            self.model.save(path)

    def train(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """One step for each batch."""
        for x, y in batches:
            self.model.train_on_batch(x, y)

    def weights(self) -> dict[str, np.ndarray]:
        """The model's weights by name, in its order."""
        return self._arrays(self.model.weights)

    def optimizer_weights(self) -> dict[str, np.ndarray]:
        """The optimizer's weights by name, in its order."""
        variables = self.model.optimizer.variables
        return self._arrays(variables() if callable(variables) else variables)

    @staticmethod
    def _arrays(variables: list[Any]) -> dict[str, np.ndarray]:
        return {getattr(v, "path", v.name): v.numpy() for v in variables}


class Torch:
    """A module and its optimizer, fresh or from a file."""

    def __init__(self, _framework: str, run: Run, path: str | None = None):
        import torch  # pyright: ignore[reportMissingImports]

        self.torch = torch
        self.format = {"_use_new_zipfile_serialization": run.name != "torch_legacy"}
        self.model = torch.nn.Sequential()
        for name, i, o in run.layers:
            norm = name == "norm"
            self.model.add_module(name, torch.nn.BatchNorm1d(o) if norm else torch.nn.Linear(i, o))
            if name not in ("norm", "out"):
                self.model.add_module(f"{name}_tanh", torch.nn.Tanh())
        tensors = [v for v in self.model.state_dict().values() if v.dtype == torch.float32]
        for tensor, value in zip(tensors, data.weights(run.seed, run.layers), strict=True):
            tensor.copy_(torch.from_numpy(value.T))
        for name, param in self.model.named_parameters():
            param.requires_grad_(not name.startswith("frozen"))

        config, params = run.config, list(self.model.parameters())
        if run.name == "torch_groups":
            decays = config["weight_decay"]
            groups = [
                {"params": params[k::2], "weight_decay": decay} for k, decay in enumerate(decays)
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=config["lr"])
        elif run.name == "torch_names":
            self.optimizer = torch.optim.Adam(self.model.named_parameters(), **config)
        else:
            self.optimizer = torch.optim.Adam(params, **config)
        if path:
            states = torch.load(path, weights_only=True)
            self.model.load_state_dict(states["model"])
            self.optimizer.load_state_dict(states["optimizer"])

    def save(self, path: str) -> None:
        """Writes the file of that name."""
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.torch.save(states, path, **self.format)

    def train(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """One step for each batch."""
        for x, y in batches:
            self.optimizer.zero_grad()
            error = self.model(self.torch.from_numpy(x)) - self.torch.from_numpy(y)
            (error**2).mean().backward()
            self.optimizer.step()

    def weights(self) -> dict[str, np.ndarray]:
        """The model's floating-point state by name, in its order."""
        state = self.model.state_dict().items()
        return {k: v.numpy().copy() for k, v in state if not k.endswith("num_batches_tracked")}

    def optimizer_weights(self) -> dict[str, np.ndarray]:
        """The optimizer's state by position and name."""
        state = self.optimizer.state_dict()["state"]
        return {f"{i}/{k}": v.numpy().copy() for i in state for k, v in state[i].items()}


def make(framework: str, run: Run, directory: Path) -> None:
    """Writes the files of one run, and checks them."""
    kind = Torch if framework == "torch" else Keras
    batches = list(data.batches(run.seed))
    paths = [str(directory / (run.name + ending)) for ending in run.endings]

    model = kind(framework, run)
    model.train(batches[: data.BEFORE])
    for path in paths:
        model.save(path)
    saved, opt = model.weights(), model.optimizer_weights()
    model.train(batches[data.BEFORE :])
    final, optfinal = model.weights(), model.optimizer_weights()
    data.write(
        directory / f"{run.name}_resume.npz",
        run.seed,
        {"config": run.config, "names": list(saved), "opt_names": list(opt)},
        {
            "saved": saved.values(),
            "final": final.values(),
            "opt": opt.values(),
            "optfinal": optfinal.values(),
        },
    )

    for path in paths:
        loaded = kind(framework, run, path)
        loaded.train(batches[data.BEFORE :])
        off = data.farthest([*loaded.weights().values()], [*final.values()])
        opt_off = data.farthest([*loaded.optimizer_weights().values()], [*optfinal.values()])
        print(f"{path}: weights {off:g}, optimizer's weights {opt_off:g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=RUNS)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    for each in RUNS[arguments.framework]:
        make(arguments.framework, each, arguments.directory)
