"""Train a small network on real handwritten digits with adamx in an Optax chain.

The 1,797 images of 8 by 8 pixels that come with scikit-learn: four fifths to train, the rest to
measure the accuracy. Halfway the optimizer's state is written to digits_state.npz; at the end it
is read back, and the second half repeated from it and compared. digits.png shows the run.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx

try:
    import matplotlib.pyplot as plt
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[examples]"') from error

Params = dict[str, dict[str, jax.Array]]
BATCH = 64
EVALUATE_EVERY = 25


class Data(NamedTuple):
    """Images (n, 8, 8, 1) of float32 from 0 to 1, and their digits (n,)."""

    images: jax.Array
    digits: jax.Array


def load(seed: int) -> tuple[Data, Data]:
    """The training set and the held-out set, with each digit as frequent in both."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    parts = train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=seed)
    train_images, test_images, train_digits, test_digits = map(jnp.asarray, parts)
    return Data(train_images, train_digits), Data(test_images, test_digits)


def init_params(key: jax.Array) -> Params:
    """Two convolutions and two dense layers, 43,000 parameters; He's initialisation."""
    shapes = {"conv1": (3, 3, 1, 16), "conv2": (3, 3, 16, 32), "hidden": (512, 72), "out": (72, 10)}
    params = {}
    for (name, shape), subkey in zip(shapes.items(), jax.random.split(key, 4), strict=True):
        kernel = jax.nn.initializers.he_normal()(subkey, shape)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return params


def logits(params: Params, images: jax.Array) -> jax.Array:
    """(n, 8, 8, 1) to (n, 10)."""
    x = images
    for name, stride in (("conv1", 1), ("conv2", 2)):
        layer = params[name]
        x = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + layer["bias"])
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def loss(params: Params, batch: Data) -> jax.Array:
    """Mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, batch.images), batch.digits
    ).mean()


def shift(key: jax.Array, images: jax.Array) -> jax.Array:
    """The images, moved by up to one pixel in each direction: all of a batch alike."""
    top, left = jax.random.randint(key, (2,), 0, 3)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jax.lax.dynamic_slice(padded, (0, top, left, 0), images.shape)


@jax.jit
def evaluate(params: Params, data: Data) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy."""
    correct = logits(params, data.images).argmax(axis=1) == data.digits
    return loss(params, data), correct.mean()


def make_step(tx: optax.GradientTransformation, data: Data, key: jax.Array) -> Any:
    """One compiled training step: parameters, state and step number to new ones, and the loss.

    The batch depends on the step number alone, so that a run can be taken up anywhere.
    """

    def step(params: Params, state: optax.OptState, t: int) -> Any:
        choose, move = jax.random.split(jax.random.fold_in(key, t))
        rows = jax.random.choice(choose, data.digits.size, (BATCH,), replace=False)
        batch = Data(shift(move, data.images[rows]), data.digits[rows])
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    # Donated: the new parameters and moments are written where the old ones were.
    return jax.jit(step, donate_argnums=(0, 1))


class History(NamedTuple):
    """How the run went."""

    losses: list[jax.Array]  # of each step's batch
    evaluations: list[tuple[int, jax.Array, jax.Array]]  # step, held-out loss, held-out accuracy


def draw(path: Path, history: History, params: Params, test: Data, schedule: Any) -> None:
    """Loss and accuracy along the run, and the held-out digits that were the hardest."""
    losses = np.asarray(history.losses)
    steps = np.arange(1, losses.size + 1)
    window = min(25, losses.size)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    at, held_out, accuracy = map(np.asarray, zip(*history.evaluations, strict=True))
    blue, orange, gray = "#2f6db5", "#d9822b", "#7a7a7a"

    figure = plt.figure(figsize=(11, 6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    left, right = (figure.add_subplot(grid[0, i]) for i in range(2))

    left.semilogy(steps, losses, color=blue, alpha=0.2, lw=0.8)
    left.semilogy(
        steps[window - 1 :], smooth, color=blue, label=f"training, mean of {window} steps"
    )
    left.semilogy(at, held_out, color=orange, label="held-out images")
    left.set(title="Loss", ylabel="cross-entropy (nats)")
    rate = left.twinx()
    rate.plot(steps, [float(schedule(t)) for t in steps], color=gray, lw=1, ls=":")
    rate.set_ylabel("learning rate (dotted)", color=gray)
    rate.tick_params(colors=gray)
    rate.spines[["top"]].set_visible(False)
    left.legend(frameon=False)

    right.plot(at, 100 * accuracy, color=orange)
    right.plot(at[-1], 100 * accuracy[-1], "o", color=orange, clip_on=False)
    right.axvline(losses.size // 2, color=gray, lw=1, ls="--")
    right.annotate(
        "state written, and  \nlater restored, here  ",
        (losses.size // 2, 0.04),
        xycoords=("data", "axes fraction"),
        ha="right",
        color=gray,
    )
    lowest = 100 * float(np.quantile(accuracy, 0.1)) - 3
    right.set(title=f"Accuracy on held-out images: {accuracy[-1]:.2%}", ylabel="% read right")
    right.set_ylim(max(0.0, lowest), 100.2)
    for axes in (left, right):
        axes.set(xlabel="step", xlim=(0, steps[-1]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)

    guesses = logits(params, test.images)
    difficulty = optax.softmax_cross_entropy_with_integer_labels(guesses, test.digits)
    row = grid[1, :].subgridspec(1, 12)
    for column, i in enumerate(np.argsort(-difficulty)[:12]):
        axes = figure.add_subplot(row[column])
        axes.imshow(test.images[i, :, :, 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
        guess, digit = int(guesses[i].argmax()), int(test.digits[i])
        if guess == digit:
            axes.set_title(f"{digit}", fontsize=9, color=gray)
        else:
            axes.set_title(f"{digit} read as {guess}", fontsize=9, color="#c0392b")
    figure.suptitle("Handwritten digits with adamx.adam; below, the hardest of the held-out images")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def train(options: argparse.Namespace, console: Console) -> None:
    """The whole run."""
    train_data, test_data = load(options.seed)
    key = jax.random.key(options.seed)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, warmup_steps=options.steps // 10, decay_steps=options.steps
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamx.adam(schedule))
    step = make_step(tx, train_data, key)
    params = init_params(key)
    state = tx.init(params)

    half_way = options.steps // 2
    state_path, picture = options.out / "digits_state.npz", options.out / "digits.png"
    params_half_way = params
    history = History([], [])
    columns = (
        TextColumn("{task.description:<25}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=options.steps)
        for t in range(options.steps):
            if t == half_way:
                np.savez(state_path, **adamx.to_numpy(state))  # pyright: ignore[reportArgumentType]
                params_half_way = jax.tree.map(jnp.copy, params)
            params, state, value = step(params, state, t)
            history.losses.append(value)
            if (t + 1) % EVALUATE_EVERY == 0 or t + 1 == options.steps:
                history.evaluations.append((t + 1, *evaluate(params, test_data)))
                accuracy = float(history.evaluations[-1][2])
                progress.update(
                    task, completed=t + 1, description=f"training: {accuracy:.1%} right"
                )

        # The second half once more, from the file.
        task = progress.add_task("second half once more", total=options.steps - half_way)
        with np.load(state_path) as arrays:
            again = (params_half_way, adamx.from_numpy(tx.init(params), arrays))
        for t in range(half_way, options.steps):
            *again, _ = step(*again, t)
            progress.advance(task)

    draw(picture, history, params, test_data, schedule)
    same = jax.tree.all(jax.tree.map(np.array_equal, [params, state], again))
    verdict = "the same parameters, bit for bit" if same else "[red]DIFFERENT parameters[/]"
    console.print(f"resumed from [bold]{state_path}[/]: {verdict}", soft_wrap=True)
    console.print(f"picture of the run: [bold]{picture}[/]", soft_wrap=True)
    accuracy = float(history.evaluations[-1][2])
    console.print(f"held-out accuracy: [bold]{accuracy:.2%}[/] of {test_data.digits.size} images")
    if not same:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="at least 2 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data order and initialisation")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its peak")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the two files")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps: expected at least 2, found {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    console = Console(highlight=False)
    train(options, console)
    console.print(f"took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
