"""Train a small network on real handwritten digits with adamx in an Optax chain.

The 1,797 images of 8 by 8 pixels that come with scikit-learn: four fifths to train, the rest to
measure the accuracy. Halfway the optimizer's state is written to digits_state.npz; at the end it
is read back, and the second half repeated from it and compared. digits.png shows the run. The data,
the network and its loss are in common.py.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress

import adamx

EVALUATE_EVERY = 25


class History(NamedTuple):
    """How the run went."""

    losses: list[jax.Array]  # of each step's batch
    evaluations: list[tuple[int, jax.Array, jax.Array]]  # step, held-out loss, held-out accuracy


def make_step(tx: optax.GradientTransformation, data: common.Data, key: jax.Array) -> Any:
    """One compiled training step: parameters, state and step number to new ones, and the loss."""

    def step(params: common.Params, state: optax.OptState, t: int) -> Any:
        batch = common.choose_batch(data, key, t)
        value, grads = jax.value_and_grad(common.loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    # Donated: the new parameters and moments are written where the old ones were.
    return jax.jit(step, donate_argnums=(0, 1))


def train(options: argparse.Namespace, console: Console) -> None:
    """The whole run."""
    data, test = common.load_data(options.seed)
    key = jax.random.key(options.seed)
    schedule = common.make_schedule(options.learning_rate, options.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamx.adam(schedule))
    step = make_step(tx, data, key)
    params = common.init_params(key)
    state = tx.init(params)

    half_way, state_path = options.steps // 2, options.out / "digits_state.npz"
    params_half_way = params
    history = History([], [])
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=options.steps)
        for t in range(options.steps):
            if t == half_way:
                np.savez(state_path, **adamx.to_numpy(state))  # pyright: ignore[reportArgumentType]
                params_half_way = jax.tree.map(jnp.copy, params)
            params, state, value = step(params, state, t)
            history.losses.append(value)
            if (t + 1) % EVALUATE_EVERY == 0 or t + 1 == options.steps:
                history.evaluations.append((t + 1, *common.evaluate(params, test)))
                about = f"training: {history.evaluations[-1][2]:.1%} right"
                progress.update(task, completed=t + 1, description=about)

        # The second half once more, from the file.
        task = progress.add_task("second half once more", total=options.steps - half_way)
        with np.load(state_path) as arrays:
            again = (params_half_way, adamx.from_numpy(tx.init(params), arrays))
        for t in range(half_way, options.steps):
            *again, _ = step(*again, t)
            progress.advance(task)

    picture = options.out / "digits.png"
    draw(picture, history, params, test, schedule)
    same = jax.tree.all(jax.tree.map(np.array_equal, [params, state], again))
    verdict = "the same parameters, bit for bit" if same else "[red]DIFFERENT parameters[/]"
    console.print(f"resumed from [bold]{state_path}[/]: {verdict}", soft_wrap=True)
    console.print(f"picture of the run: [bold]{picture}[/]", soft_wrap=True)
    accuracy = float(history.evaluations[-1][2])
    console.print(f"held-out accuracy: [bold]{accuracy:.2%}[/] of {test.digits.size} images")
    if not same:
        raise SystemExit(1)


def draw(
    path: Path, history: History, params: common.Params, test: common.Data, schedule: Any
) -> None:
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
    label = f"training, mean of {window} steps"
    left.semilogy(steps[window - 1 :], smooth, color=blue, label=label)
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

    guesses = common.logits(params, test.images)
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
    common.save_figure(figure, (left, right), path, dpi=130)


def main() -> None:
    parser = common.make_parser(__doc__, out=True, steps=1500, seed=0, learning_rate=3e-3)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps: expected at least 2, found {options.steps}")
    started = time.perf_counter()
    console = Console(highlight=False)
    train(options, console)
    console.print(f"took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
