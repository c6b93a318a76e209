"""Record what examples/resume_from_keras.py and examples/resume_from_torch.py take up.

    KERAS_BACKEND=jax python examples/data/record.py keras
    python examples/data/record.py torch

Each trains a small network on the digits of scikit-learn in the framework named, saves it
half-trained as its users do, and then trains on without a break. Beside the file it leaves
digits_keras.npz or digits_torch.npz: the loss of each step's batch `before` the file was saved and
`after`, and the `framework` with its version. It needs that framework and scikit-learn, and no
adamx. The files in the repository were recorded with seed 0, on a CPU. Another machine's losses may
differ from them: rounding differs, and grows over 800 steps.
"""

import argparse
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

BEFORE, AFTER = 600, 200
BATCH = 128
LAYERS = {"hidden1": (64, 32), "hidden2": (32, 32), "out": (32, 10)}
LEARNING_RATE = 1e-2  # ten times the default: the later in training, the more a lost state costs
WEIGHT_DECAY = 1e-2  # torch's own default for AdamW


def batches(first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (128, 64) of float32 from 0 to 1, and digits (128,), from step `first` to `last`.

    The batch depends on the step number alone, so that anybody can continue from any step; and on
    numpy's `RandomState`, since numpy promises never to change its stream.
    """
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    for t in range(first, last):
        rows = np.random.RandomState((0, t)).choice(len(digits), BATCH, replace=False)
        yield images[rows], digits[rows]


def record_keras(path: Path, seed: int) -> dict[str, np.ndarray]:
    """Adam with Keras's defaults but for the learning rate; `model.save`."""
    import keras  # pyright: ignore[reportMissingImports]

    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((64,))])
    for name, (_, units) in LAYERS.items():
        activation = None if name == "out" else "relu"
        model.add(keras.layers.Dense(units, activation=activation, name=name))
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def train(first: int, last: int) -> np.ndarray:
        losses = []
        for images, digits in batches(first, last):
            model.reset_metrics()  # or the loss returned is the mean over all batches so far
            losses.append(model.train_on_batch(images, digits))
        return np.asarray(losses, np.float32)

    before = train(0, BEFORE)
    model.save(path)
    after = train(BEFORE, BEFORE + AFTER)
    return {"before": before, "after": after, "framework": np.array(f"Keras {keras.__version__}")}


def record_torch(path: Path, seed: int) -> dict[str, np.ndarray]:
    """AdamW with torch's defaults but for the learning rate; `torch.save` of both state dicts."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    modules: OrderedDict[str, torch.nn.Module] = OrderedDict()
    for name, (inputs, units) in LAYERS.items():
        modules[name] = torch.nn.Linear(inputs, units)
        if name != "out":
            modules[f"{name}_relu"] = torch.nn.ReLU()
    model = torch.nn.Sequential(modules)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def train(first: int, last: int) -> np.ndarray:
        losses = []
        for images, digits in batches(first, last):
            optimizer.zero_grad()
            logits = model(torch.from_numpy(images))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(digits))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.asarray(losses, np.float32)

    before = train(0, BEFORE)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    after = train(BEFORE, BEFORE + AFTER)
    version = torch.__version__.partition("+")[0]
    return {"before": before, "after": after, "framework": np.array(f"PyTorch {version}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("framework", choices=("keras", "torch"))
    parser.add_argument("--seed", type=int, default=0, help="of the initialisation")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder (default: this file's)"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.framework == "keras":
        path = options.out / "digits_keras.keras"
        recorded = record_keras(path, options.seed)
    else:
        path = options.out / "digits_torch.pt"
        recorded = record_torch(path, options.seed)
    np.savez(path.with_suffix(".npz"), **recorded)  # pyright: ignore[reportArgumentType]
    for name in ("before", "after"):
        last = np.median(recorded[name][-20:])
        print(f"{name}: {recorded[name].size} steps, median loss of the last 20 steps: {last:.4f}")
    print(f"the files are {path} and {path.with_suffix('.npz')}")


if __name__ == "__main__":
    main()
