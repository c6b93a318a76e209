"""A picture of what adamx's three conventions do differently: conventions.png.

"optax" and "torch" add epsilon to the corrected root, "keras" to the uncorrected one: in early
steps its epsilon counts up to 32 times as much, and where gradients are as small as that, it takes
smaller steps. AMSGrad divides by the largest second moment so far: "optax" compares corrected ones,
so that it never forgets a large first gradient; "torch" and "keras" compare uncorrected ones.
"""

from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import adamx

STYLES = {
    "optax": {"color": "#2f6db5", "lw": 2.5, "alpha": 0.55},
    "torch": {"color": "#c0392b", "lw": 1.5, "ls": "--", "zorder": 3},
    "keras": {"color": "#2e8b57", "lw": 2},
}


def directions(grads: jax.Array, **options: Any) -> jax.Array:
    """Adam's direction for each row of `grads` (steps, n): steps in units of the learning rate."""
    tx = adamx.scale_by_adam(**options)

    def step(state: optax.OptState, g: jax.Array) -> tuple[optax.OptState, optax.Updates]:
        direction, state = tx.update(g, state)
        return state, direction

    return jax.jit(lambda grads: jax.lax.scan(step, tx.init(grads[0]), grads)[1])(grads)


def losses(convention: Any, steps: int) -> np.ndarray:
    """The loss of a least-squares fit of 20 weights with gradients near 1e-8, over its start."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((200, 20)), jnp.float32)
    y = x @ jnp.asarray(rng.standard_normal(20), jnp.float32)
    tx = adamx.adam(0.02, convention=convention)

    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean((x @ w - y) ** 2)

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        w, state = carry
        value, grads = jax.value_and_grad(lambda w: 1e-8 * loss(w))(w)
        updates, state = tx.update(grads, state, w)
        return (optax.apply_updates(w, updates), state), value * 1e8

    w = jnp.zeros(20)
    return np.asarray(jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), length=steps)[1])(w))


def draw(path: Path) -> None:
    """Three panels: the first step, the start of a fit, AMSGrad after a large gradient."""
    figure, (first, fit, amsgrad) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")

    sizes = jnp.logspace(-11, -4, 141)
    steps = 300
    spike = jnp.full((steps, 1), 0.02).at[0].set(1.0)
    for convention, style in STYLES.items():
        label = f'"{convention}"'
        first.semilogx(
            sizes, directions(sizes[None], convention=convention)[0], label=label, **style
        )
        fit.semilogy(np.arange(1, steps + 1), losses(convention, steps), label=label, **style)
        moves = directions(spike, amsgrad=True, convention=convention)[:, 0]
        amsgrad.semilogy(np.arange(1, steps + 1), moves, label=label, **style)

    first.axvline(1e-8, color="gray", lw=0.8, ls=":")
    first.annotate("epsilon ", (1e-8, 0.93), ha="right", color="gray")
    first.set(title="The first step", xlabel="size of the gradient")
    first.set_ylabel("size of the step / learning rate")
    fit.set(
        title="A fit with gradients as small as epsilon", xlabel="step", ylabel="mean squared error"
    )
    amsgrad.set(title="AMSGrad: a gradient of 1, then of 0.02", xlabel="step")
    amsgrad.set_ylabel("size of the step / learning rate")
    for axes in (first, fit, amsgrad):
        axes.legend(frameon=False)
    common.save_figure(figure, (first, fit, amsgrad), path, dpi=130)


def main() -> None:
    picture = common.make_parser(__doc__, out=True).parse_args().out / "conventions.png"
    draw(picture)
    print(f"the picture is in {picture}")


if __name__ == "__main__":
    main()
