"""What several examples need and none of them is about.

The options of the command line, the handwritten digits, networks that read them, the end of a
figure, and the comparison of a run of another framework with the same run continued in JAX.
"""

import argparse
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

try:  # all of the extra here, so that an example, which imports this file first, need not ask
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    for package in ("orbax.checkpoint", "rich"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}")
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[examples]"') from error

Params = dict[str, dict[str, jax.Array]]

# ---- Options -------------------------------------------------------------------------------------

OUT = "build/examples"
ABOUT = {
    "steps": "of each run",
    "seed": "of the data's order and of the initialisation",
    "seeds": "runs to average",
    "learning_rate": "at its peak",
}


def make_parser(
    doc: str | None, *, out: bool = False, **defaults: float
) -> argparse.ArgumentParser:
    """A parser of options that examples share.

    Args:
      doc: the example's docstring; its first line is what `--help` says.
      out: whether the example writes files and so has `--out`.
      defaults: the default of each of the options in `ABOUT` that it has.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if out:
        about = "where files and pictures go (default: %(default)s)"
        parser.add_argument("--out", type=make_folder, default=OUT, metavar="FOLDER", help=about)
    for name, default in defaults.items():
        option, about = f"--{name.replace('_', '-')}", f"{ABOUT[name]} (default: %(default)s)"
        parser.add_argument(option, type=type(default), default=default, help=about)
    return parser


def make_folder(name: str) -> Path:
    """A folder that was there, or is now."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a folder: {error}") from error
    return Path(name)


# ---- The digits ----------------------------------------------------------------------------------

BATCH = 64


class Data(NamedTuple):
    """Images (n, 8, 8, 1) of float32 from 0 to 1, and their digits (n,)."""

    images: jax.Array
    digits: jax.Array


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 of them."""
    images, digits = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32).reshape(-1, 8, 8, 1), digits


def load_data(seed: int) -> tuple[Data, Data]:
    """The training set and the held-out fifth, with each digit as frequent in both."""
    images, digits = read_digits()
    parts = train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=seed)
    train_images, test_images, train_digits, test_digits = map(jnp.asarray, parts)
    return Data(train_images, train_digits), Data(test_images, test_digits)


def shift(key: jax.Array, images: jax.Array) -> jax.Array:
    """The images, moved by up to one pixel in each direction: all of a batch alike."""
    top, left = jax.random.randint(key, (2,), 0, 3)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jax.lax.dynamic_slice(padded, (0, top, left, 0), images.shape)


def choose_batch(data: Data, key: jax.Array, t: Any) -> Data:
    """The batch of step t. It depends on `key` and t alone, so a run can be resumed at any step."""
    choose, move = jax.random.split(jax.random.fold_in(key, t))
    rows = jax.random.choice(choose, data.digits.size, (BATCH,), replace=False)
    return Data(shift(move, data.images[rows]), data.digits[rows])


# ---- Networks ------------------------------------------------------------------------------------

# The kernels' shapes: two convolutions and two dense layers, 43,000 parameters.
LAYERS = {"conv1": (3, 3, 1, 16), "conv2": (3, 3, 16, 32), "hidden": (512, 72), "out": (72, 10)}
STRIDES = {"conv1": 1, "conv2": 2}


def init_params(key: jax.Array, layers: Mapping[str, tuple[int, ...]] = LAYERS) -> Params:
    """He's initialisation."""
    params = {}
    keys = jax.random.split(key, len(layers))
    for (name, shape), subkey in zip(layers.items(), keys, strict=True):
        kernel = jax.nn.initializers.he_normal()(subkey, shape)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return params


def logits(params: Params, images: jax.Array) -> jax.Array:
    """(n, 8, 8, 1) to (n, 10), through the layers in the order of their names; "out" is the last.

    Those in `STRIDES` are convolutions, the others dense. All but the last end in a ReLU.
    """
    x = images
    for name, layer in sorted(params.items()):
        if name in STRIDES:
            x = jax.lax.conv_general_dilated(
                x,
                layer["kernel"],
                window_strides=(STRIDES[name], STRIDES[name]),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        else:
            x = x.reshape(x.shape[0], -1) @ layer["kernel"]
        x = x + layer["bias"] if name == "out" else jax.nn.relu(x + layer["bias"])
    return x


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


def make_schedule(peak: float, steps: int) -> optax.Schedule:
    """A learning rate that rises to its peak in a tenth of the steps, and falls like a cosine."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=steps // 10, decay_steps=steps
    )


def name_arrays(params: Params) -> dict[str, Any]:
    """Parameters as NumPy arrays by their paths, such as `hidden/kernel`, ready for `np.savez`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(x) for k, x in leaves}


# ---- Figures -------------------------------------------------------------------------------------

# The palette of Okabe and Ito, which the colour-blind can tell apart.
GRAY, BLUE, ORANGE = "#6b6b6b", "#56b4e9", "#d55e00"


def save_figure(figure: Any, axes: Iterable[Any], path: Path, dpi: int = 90) -> None:
    """Write a figure with a light grid and no frame, and forget it."""
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


# ---- Recorded runs, continued in JAX -------------------------------------------------------------

RECORDED = Path(__file__).parent / "data"
# The names of the layers in Keras and torch, and the shapes of their kernels in JAX.
RECORDED_LAYERS = {"hidden1": (64, 32), "hidden2": (32, 32), "out": (32, 10)}


class Recording(NamedTuple):
    """The losses of a run that data/record.py made, before a file was saved and after."""

    framework: str
    before: np.ndarray
    after: np.ndarray


def load_recording(name: str) -> Recording:
    """The recording beside a file in `data`."""
    with np.load(RECORDED / f"{name}.npz") as arrays:
        return Recording(str(arrays["framework"]), arrays["before"], arrays["after"])


def recorded_batches(first: int, last: int) -> Iterator[Data]:
    """For each step from `first` to before `last`, the batch of 128 that data/record.py takes."""
    images, digits = map(np.asarray, read_digits())
    for t in range(first, last):
        rows = np.random.RandomState((0, t)).choice(digits.size, 128, replace=False)
        yield Data(jnp.asarray(images[rows]), jnp.asarray(digits[rows]))


def continue_run(
    transformation: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    first: int,
    last: int,
) -> np.ndarray:
    """Train from step `first` to before `last`: the loss of each batch before its update."""

    @jax.jit
    def step(params: Params, state: optax.OptState, batch: Data) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for batch in recorded_batches(first, last):
        params, state, value = step(params, state, batch)
        losses.append(value)
    return np.asarray(losses)


def compare_runs(
    recording: Recording,
    transformation: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    count: int,
    picture: Path,
) -> None:
    """Continue from step `count` with the moments in `state` and without; print and draw losses."""
    last = count + recording.after.size
    kept = continue_run(transformation, params, state, count, last)
    lost = continue_run(transformation, params, transformation.init(params), count, last)
    print_losses(recording, kept, lost)
    draw_losses(picture, recording, kept, lost)
    print(f"the picture is in {picture}")


def print_losses(recording: Recording, kept: np.ndarray, lost: np.ndarray) -> None:
    """How the run continued there, and in JAX with Adam's moments and without them."""
    framework, before, after = recording
    print(f"{framework}: {before.size} steps done, taken up in JAX for {after.size} more")
    print(f"{'loss:':<24}{'first step':>12}{'highest of 20':>16}{'largest difference':>21}")
    runs = {f"{framework}, continued": after, "moments kept": kept, "moments lost": lost}
    for name, losses in runs.items():
        difference = "" if losses is after else f"{np.abs(losses - after).max():.1e}"
        print(f"{name:<24}{losses[0]:>12.4f}{losses[:20].max():>16.4f}{difference:>21}")


def draw_losses(path: Path, recording: Recording, kept: np.ndarray, lost: np.ndarray) -> None:
    """The loss around the hand-over and over the whole run, and how far JAX is from the old run."""
    framework, before, after = recording
    count = before.size
    steps, then = np.arange(1, count + 1), count + np.arange(1, after.size + 1)
    # From the last step before the hand-over, so that the lines meet.
    joined = np.append(count, then)
    lost_line, kept_line = (np.append(before[-1], losses) for losses in (lost, kept))

    figure = plt.figure(figsize=(10, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    close = figure.add_subplot(grid[:, 0])
    whole, apart = (figure.add_subplot(grid[i, 1]) for i in range(2))

    close.semilogy(steps, before, color=GRAY, label=f"{framework}, recorded")
    close.semilogy(joined, lost_line, color=ORANGE, label="JAX, moments lost")
    close.semilogy(joined, kept_line, color=BLUE, lw=3, label="JAX, moments kept")
    label = f"{framework}, had it gone on"
    close.semilogy(then, after, color="black", lw=1, ls="--", label=label)
    first, last = count - 40, count + 120
    shown = np.concatenate([before[first:], kept[:120], lost[:120]])
    close.set(title="The loss around the hand-over", xlabel="step", ylabel="loss of a batch (nats)")
    close.set(xlim=(first, last), ylim=(shown.min() / 1.5, shown.max() * 4))
    close.legend(frameon=False, loc="upper right")
    top = ("data", "axes fraction")
    close.annotate("hand-over ", (count, 0.95), xycoords=top, ha="right", color=GRAY)

    whole.semilogy(steps, before, color=GRAY, lw=0.8)
    whole.semilogy(joined, lost_line, color=ORANGE, lw=0.8)
    whole.semilogy(joined, kept_line, color=BLUE, lw=0.8)
    whole.set(title="The whole run", ylabel="loss", xlim=(0, then[-1]))

    for losses, color in ((lost, ORANGE), (kept, BLUE)):
        # Losses that agree in every bit have no place on a logarithmic axis: put them at its foot.
        apart.semilogy(then, np.maximum(np.abs(losses - after), 1e-9), color=color, lw=1)
    apart.set(title=f"How far JAX is from {framework}", xlabel="step", ylabel="difference in loss")
    apart.set_xlim(first, last)

    for axes in (close, whole, apart):
        axes.axvline(count, color=GRAY, lw=1, ls=":")
    save_figure(figure, (close, whole, apart), path)
