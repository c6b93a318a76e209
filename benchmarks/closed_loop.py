"""Losses of trainings whose Adam is stored in various forms, beside those of float32.

Each form trains by its own directions. A seed has the same initial parameters and batches in every
form, so that losses can be compared in pairs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contenders import Absent
from benchmarks.forms import FLOAT32, FORMS, READ_NARROW, Form
from benchmarks.trainings import TRAININGS, Params, Training

__all__ = ["Estimate", "compare", "estimate", "schedule", "train"]

PEAK = 1e-3  # learning rate
LAST = 200  # steps over which the training loss is averaged


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float

    def __format__(self, sign: str) -> str:
        return f"{self.mean:{sign}.5f} ± {self.error:.5f}"


def estimate(values: np.ndarray) -> Estimate:
    """Of one number for each seed."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(np.mean(values)), float(error))


def schedule(steps: int) -> optax.Schedule:
    """The learning rate: a twentieth of the steps to the peak, then a cosine to 0."""
    return optax.schedules.warmup_cosine_decay_schedule(0.0, PEAK, max(steps // 20, 1), steps)


def _rounded(tree: Params, dtype: str) -> Params:
    """Float32 arrays with numbers of a dtype. XLA may leave out a cast to it and back, not this."""
    info = jnp.finfo(dtype)
    return {
        name: jax.lax.reduce_precision(x.astype(jnp.float32), info.nexp, info.nmant)
        for name, x in tree.items()
    }


def train(training: Training, form: Form, steps: int, seeds: Sequence[int]) -> np.ndarray:
    """The mean of the last training losses and the held-out loss of each seed, [seeds, 2]."""

    def run(seed: jax.Array) -> jax.Array:
        init_key, draw_key, form_key = jax.random.split(jax.random.key(seed), 3)
        optimizer = form.make(schedule(steps), form_key)
        initial = training.init(init_key)
        params = {name: p.astype(form.params) for name, p in initial.items()}

        def one(now: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            batch = training.draw(jax.random.fold_in(draw_key, t))
            read = _rounded(now[0], form.read)
            loss, grads = jax.value_and_grad(training.loss)(read, *batch)
            return optimizer.step(_rounded(grads, form.read), *now), loss

        (params, _), losses = jax.lax.scan(one, (params, optimizer.init(params)), jnp.arange(steps))
        held_out = training.held_out_loss(_rounded(params, form.read))
        return jnp.stack([losses[-LAST:].mean(), held_out])

    return np.asarray(jax.jit(lambda seeds: jax.lax.map(run, seeds))(jnp.asarray(seeds)), float)


def _line(form: str, losses: np.ndarray | None, less: np.ndarray | None) -> str:
    """A row of the table: the losses of a form, and how much more they are than another's."""
    line = f"  {form:35}"
    for i in range(2):
        mean = "" if losses is None else f"{estimate(losses[:, i]):}"
        more = "" if less is None else f"{estimate(less[:, i]):+}"
        line += f"{mean:20}{more:22}"
    return line.rstrip()


def compare(steps: int, seeds: int, names: Sequence[str] = tuple(TRAININGS)) -> None:
    """Print the losses of these trainings in all forms, and how near 8 bits are to float32."""
    verdicts = []
    for name in names:
        training = TRAININGS[name]()
        print(f"{name}: {steps:,} steps, {seeds} seeds; mean ± standard error")
        columns = f"{'training loss':20}{'minus float32':22}{'held-out loss':20}minus float32"
        print(f"  {'':35}{columns}", flush=True)
        losses: dict[str, np.ndarray] = {}
        for form in FORMS:
            try:
                losses[form] = train(training, FORMS[form], steps, range(seeds))
            except Absent as error:
                print(f"  {form} skipped: {error}")
                continue
            less = None if form == FLOAT32 else losses[form] - losses[FLOAT32]
            print(_line(form, losses[form], less), flush=True)
            if FORMS[form].params != "float32":
                print(_line(f"  minus {READ_NARROW}", None, losses[form] - losses[READ_NARROW]))
        pairs = zip(losses["8 bits"].T, losses[FLOAT32].T, strict=True)
        away = [(ours.mean() - theirs.mean()) / estimate(theirs).error for ours, theirs in pairs]
        verdicts.append(f"{name} {away[0]:+.2f} and {away[1]:+.2f}")
    print("8 bits minus float32, training and held-out loss, in standard errors of float32:")
    print("  " + ", ".join(verdicts))
