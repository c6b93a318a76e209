"""How far each implementation's update direction is from Adam computed in double precision.

Run with `python -m benchmarks.accuracy`. The gradients are float32 numbers from a normal
distribution; the reference gets the same numbers, and the hyperparameters as the doubles that a
user writes (0.9, 0.999). The error is relative, over the entries of one array.
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx

STEPS = (1, 10, 100, 1_000, 10_000, 100_000)
B1, B2, EPS = 0.9, 0.999, 1e-8

# Takes the gradients (steps, size) that lead from one row of the table to the next; returns the
# direction after the last of them. It keeps its state in between.
Contender = Callable[[np.ndarray], np.ndarray]


def gradients(size: int, seed: int) -> Iterator[np.ndarray]:
    """One float32 array (steps since the last row of the table, size) for each row."""
    rng = np.random.default_rng(seed)
    for before, last in zip((0, *STEPS), STEPS, strict=False):
        yield rng.standard_normal((last - before, size), dtype=np.float32)


def reference(size: int) -> Contender:
    """Algorithm 1 of Kingma & Ba in double precision."""
    m, v, t = np.zeros(size), np.zeros(size), 0

    def run(grads: np.ndarray) -> np.ndarray:
        nonlocal m, v, t
        for g in grads.astype(np.float64):
            m, v, t = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2, t + 1
        return m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)

    return run


def transformation(tx: optax.GradientTransformation, size: int) -> Contender:
    """An Optax transformation that is not scaled by a learning rate."""
    state = tx.init(jnp.zeros(size))

    @jax.jit
    def scan(state: Any, grads: jax.Array) -> tuple[Any, Any]:
        def body(carry, g):
            direction, state = tx.update(g, carry[1])
            return (direction, state), None

        return jax.lax.scan(body, (jnp.zeros(size), state), grads)[0]

    def run(grads: np.ndarray) -> np.ndarray:
        nonlocal state
        direction, state = scan(state, jnp.asarray(grads))
        return np.asarray(direction, np.float64)

    return run


def torch_adam(size: int) -> Contender:
    """torch.optim.Adam, its parameters put to zero so that they show the direction exactly."""
    import torch  # pyright: ignore[reportMissingImports]

    param = torch.nn.Parameter(torch.zeros(size))
    optimizer = torch.optim.Adam([param], lr=1.0, betas=(B1, B2), eps=EPS)

    def run(grads: np.ndarray) -> np.ndarray:
        for g in torch.from_numpy(grads):
            param.data.zero_()
            param.grad = g
            optimizer.step()
        return -param.detach().numpy().astype(np.float64)

    return run


CONTENDERS: dict[str, Callable[[int], Contender]] = {
    "adamx": lambda size: transformation(adamx.scale_by_adam(B1, B2, EPS), size),
    "optax": lambda size: transformation(optax.scale_by_adam(B1, B2, EPS), size),
    "torch": torch_adam,
}


def measure(
    names: Iterable[str], size: int = 1024, seed: int = 0
) -> dict[str, dict[int, tuple[float, float]]]:
    """The median and the 99th percentile of the relative error, by implementation and step."""
    exact, others = reference(size), {name: CONTENDERS[name](size) for name in names}
    errors: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in others}
    for step, grads in zip(STEPS, gradients(size, seed), strict=True):
        expected = exact(grads)
        for name, run in others.items():
            error = np.abs(run(grads) / expected - 1)
            errors[name][step] = float(np.median(error)), float(np.percentile(error, 99))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="entries of the array")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    installed = [name for name in CONTENDERS if importlib.util.find_spec(name)]
    errors = measure(installed, options.size, options.seed)
    print(f"{'step':>8}" + "".join(f"{name:>20}" for name in errors))
    print(" " * 8 + f"{'median':>12}{'99%':>8}" * len(errors))
    for step in STEPS:
        cells = (errors[name][step] for name in errors)
        print(f"{step:>8,}" + "".join(f"{median:>12.1e}{high:>8.0e}" for median, high in cells))


if __name__ == "__main__":
    main()
