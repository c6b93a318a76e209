"""Take up a half-trained Keras model in JAX, and see what it costs to lose Adam's moments.

examples/data/digits_keras.keras is what Keras 3's `model.save` wrote after 600 steps on the
handwritten digits of scikit-learn. examples/data/record.py trained it, and recorded the loss of
each step before, and of 200 steps after, in which Keras itself went on.

With the moments, JAX goes on as Keras did: no loss differs by more than 2e-7, which is the rounding
of float32. Without them, Adam begins anew: its first step has no past to average over, and moves
every weight by the whole learning rate, up or down as one batch's gradient says. Late in training,
where gradients nearly cancel from batch to batch, that is far too much: the loss jumps from 0.002
to 0.12 and takes some 90 steps to come back. From other initial weights (`record.py --seed` 1 to 3)
it jumps to between 0.06 and 0.18. The earlier a run is taken up and the smaller its learning rate,
the less there is to see: with Keras's default, a tenth of the 0.01 here, next to nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from figures import BLUE, GRAY, ORANGE, choose_folder, save_figure

import adamx.checkpoint

try:
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[examples]"') from error

DATA = Path(__file__).parent / "data"
BATCH = 128
SHAPES = {"hidden1": (64, 32), "hidden2": (32, 32), "out": (32, 10)}  # the names of Keras's layers

Params = dict[str, dict[str, jax.Array]]


def batches(first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step from `first` to before `last`, images (128, 64) in 0 to 1 and digits (128,).

    As in data/record.py, the batch depends on the step number alone: the run goes on with those
    that come next.
    """
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    for t in range(first, last):
        rows = np.random.RandomState((0, t)).choice(len(digits), BATCH, replace=False)
        yield images[rows], digits[rows]


def loss(params: Params, images: jax.Array, digits: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats, of the same network as in Keras."""
    x = images
    for name in ("hidden1", "hidden2"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    logits = x @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, digits).mean()


def train(
    transformation: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    first: int,
    last: int,
) -> np.ndarray:
    """The losses of the steps from `first` to before `last`, each before its update."""

    @jax.jit
    def step(params: Params, state: optax.OptState, images: Any, digits: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, images, digits)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for images, digits in batches(first, last):
        params, state, value = step(params, state, images, digits)
        losses.append(value)
    return np.asarray(losses)


def draw(
    path: Path,
    framework: str,
    before: np.ndarray,
    uninterrupted: np.ndarray,
    kept: np.ndarray,
    lost: np.ndarray,
) -> None:
    """The loss around the hand-over and over the whole run, and how far JAX is from the old run."""
    steps = np.arange(1, before.size + 1)
    then = before.size + np.arange(1, uninterrupted.size + 1)
    # From the last step before the hand-over, so that the lines meet.
    joined = np.append(steps[-1], then)
    lost_line, kept_line = (np.append(before[-1], losses) for losses in (lost, kept))

    figure = plt.figure(figsize=(10, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    close = figure.add_subplot(grid[:, 0])
    whole = figure.add_subplot(grid[0, 1])
    apart = figure.add_subplot(grid[1, 1])

    close.semilogy(steps, before, color=GRAY, label=f"{framework}, recorded")
    close.semilogy(joined, lost_line, color=ORANGE, label="JAX, moments lost")
    close.semilogy(joined, kept_line, color=BLUE, lw=3, label="JAX, moments kept")
    close.semilogy(
        then, uninterrupted, color="black", lw=1, ls="--", label=f"{framework}, had it gone on"
    )
    first, last = before.size - 40, before.size + 120
    shown = np.concatenate([before[first:], kept[: last - before.size], lost[: last - before.size]])
    close.set(title="The loss around the hand-over", xlabel="step", ylabel="loss of a batch (nats)")
    close.set(xlim=(first, last), ylim=(shown.min() / 1.5, shown.max() * 4))
    close.legend(frameon=False, loc="upper right")
    close.annotate(
        "hand-over ",
        (before.size, 0.95),
        xycoords=("data", "axes fraction"),
        ha="right",
        color=GRAY,
    )

    whole.semilogy(steps, before, color=GRAY, lw=0.8)
    whole.semilogy(joined, lost_line, color=ORANGE, lw=0.8)
    whole.semilogy(joined, kept_line, color=BLUE, lw=0.8)
    whole.set(title="The whole run", ylabel="loss", xlim=(0, then[-1]))

    for losses, color in ((lost, ORANGE), (kept, BLUE)):
        # Losses that agree in every bit have no place on a logarithmic axis: put them at its foot.
        difference = np.maximum(np.abs(losses - uninterrupted), 1e-9)
        apart.semilogy(then, difference, color=color, lw=1)
    apart.set(title=f"How far JAX is from {framework}", xlabel="step", ylabel="difference in loss")
    apart.set_xlim(first, last)

    for axes in (close, whole, apart):
        axes.axvline(before.size, color=GRAY, lw=1, ls=":")
    save_figure(figure, (close, whole, apart), path)


def main() -> None:
    picture = choose_folder(__doc__) / "resume_from_keras.png"
    # A GPU would multiply matrices with fewer bits than the float32 that the model was trained in.
    jax.config.update("jax_default_matmul_precision", "highest")

    with np.load(DATA / "digits_keras.npz") as recorded:
        before, uninterrupted = recorded["before"], recorded["after"]
        framework = str(recorded["framework"])

    zeros = {
        name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}
        for name, shape in SHAPES.items()
    }
    # Keras's variables are named by layer, as the leaves of this tree are: nothing else to say.
    checkpoint = adamx.checkpoint.load(DATA / "digits_keras.keras")
    params = checkpoint.params_like(zeros)
    transformation, state = checkpoint.restore(params)

    first, last = checkpoint.count, checkpoint.count + uninterrupted.size
    kept = train(transformation, params, state, first, last)
    lost = train(transformation, params, transformation.init(params), first, last)

    print(f"{framework}: {checkpoint.count} steps done, taken up in JAX for {lost.size} more")
    print(f"{'loss:':<24}{'first step':>12}{'highest of 20':>16}{'largest difference':>21}")
    runs = {f"{framework}, going on": uninterrupted, "moments kept": kept, "moments lost": lost}
    for name, losses in runs.items():
        largest = np.abs(losses - uninterrupted).max()
        difference = "" if losses is uninterrupted else f"{largest:.1e}"
        print(f"{name:<24}{losses[0]:>12.4f}{losses[:20].max():>16.4f}{difference:>21}")
    draw(picture, framework, before, uninterrupted, kept, lost)
    print(f"the picture is in {picture}")


if __name__ == "__main__":
    main()
