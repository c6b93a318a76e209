"""Directions of Adam with stored moments beside exact ones, on the gradients of one training."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Absent
from benchmarks.forms import FORMS, Form
from benchmarks.trainings import TRAININGS, Training

__all__ = ["Row", "compare", "measure"]

B1, B2, EPS, RATE = 0.9, 0.999, 1e-8, 1e-3
AT = (20, 100, 500, 1000, 2000, 5000)  # steps of which there are rows; and the last


class Row(NamedTuple):
    """The directions of one form at one step, in parts of those of exact Adam.

    Attributes:
      step, form: which.
      error: the root mean square difference, of the root mean square direction.
      size: the mean magnitude, of the exact one's.
      largest: the largest entry of all steps so far, of the exact run's.
    """

    step: int
    form: str
    error: float
    size: float
    largest: float


def measure(training: Training, forms: Mapping[str, Form], steps: int) -> Iterator[Row]:
    """Rows of forms with float32 parameters, on the gradients of exact Adam's training.

    Exact Adam is computed in double precision, and its directions alone move the parameters.
    """
    init_key, draw_key, form_key = jax.random.split(jax.random.key(0), 3)
    params = training.init(init_key)
    gradient = jax.jit(jax.grad(training.loss))
    draw = jax.jit(lambda t: training.draw(jax.random.fold_in(draw_key, t)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    running = {}
    for name, form in forms.items():
        # From 0 and with a learning rate of 1, a step leads to minus the direction.
        optimizer = form.make(1.0, form_key)
        running[name] = jax.jit(optimizer.step), optimizer.init(params)
    exact = {name: (np.zeros(p.shape), np.zeros(p.shape)) for name, p in params.items()}
    largest = dict.fromkeys(["exact", *forms], 0.0)
    for t in range(1, steps + 1):
        grads, right = gradient(params, *draw(t)), {}
        for name, g in grads.items():
            wide = np.asarray(g, np.float64)
            m, v = exact[name]
            m, v = B1 * m + (1 - B1) * wide, B2 * v + (1 - B2) * wide**2
            exact[name] = m, v
            right[name] = m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)
        flat = np.concatenate([right[name].ravel() for name in sorted(right)])
        largest["exact"] = max(largest["exact"], np.abs(flat).max())
        for form, (step, state) in running.items():
            moved, state = step(grads, zeros, state)
            running[form] = step, state
            ours = np.concatenate([np.asarray(moved[k], np.float64).ravel() for k in sorted(moved)])
            largest[form] = max(largest[form], np.abs(ours).max())
            if t in AT or t == steps:
                error = np.sqrt(np.mean((-ours - flat) ** 2) / np.mean(flat**2))
                size = np.abs(ours).mean() / np.abs(flat).mean()
                yield Row(t, form, error, size, largest[form] / largest["exact"])
        params = {k: p - RATE * jnp.float32(right[k]) for k, p in params.items()}


def compare(steps: int) -> None:
    """Print the rows of all trainings."""
    forms, ratios = {}, []
    for name, form in FORMS.items():
        if form.read == "float32":  # of the others, the moments are those of one of these
            try:
                form.make(1.0, jax.random.key(0))
            except Absent as error:
                print(f"{name} skipped: {error}")
            else:
                forms[name] = form
    for name, make in TRAININGS.items():
        print(f"{name:12} {'step':>5} {'moments':22} {'error':>8} {'size':>7} {'largest':>8}")
        errors: dict[tuple[int, str], float] = {}
        for row in measure(make(), forms, steps):
            errors[row.step, row.form] = row.error
            numbers = f"{100 * row.error:7.2f}% {row.size:7.3f} {row.largest:8.2f}"
            print(f"{'':12} {row.step:5} {row.form:22} {numbers}", flush=True)
        late = [t for t, form in errors if form == "flashoptim-jax" and t >= 100]
        ratios += [errors[t, "8 bits"] / errors[t, "flashoptim-jax"] for t in late]
    if ratios:
        mean = np.exp(np.mean(np.log(ratios)))
        print(f"8 bits: {mean:.2f} of flashoptim-jax's error, geometric mean from step 100 on")
