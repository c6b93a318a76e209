"""What the Adams of other libraries do in cases where they differ.

Run with `python -m benchmarks.peers`; libraries that are not installed are left out. The README's
table has its marks: `pip install torch keras bitsandbytes flashoptim-jax`.
"""

import argparse
import importlib.metadata
import os
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx

RATE, STEPS, SIZE = 1e-3, 50, 4096

# A step on gradients of 1, from parameters of 1: takes their dtype, the gradients' shape and the
# learning rate; returns the parameters after some steps.
Run = Callable[[str, tuple[int, ...], float], np.ndarray]


def transformation(tx: Callable[[float], Any]) -> Run:
    """An Optax transformation."""

    def run(dtype: str, shape: tuple[int, ...], rate: float) -> np.ndarray:
        params, made = jnp.ones(SIZE, dtype), tx(rate)
        state = made.init(params)
        for _ in range(STEPS):
            updates, state = made.update(jnp.ones(shape, dtype), state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params, np.float64)

    return run


def of_adamx(rate: float) -> Any:
    """adamx, which rounds at random where parameters are narrow."""
    return optax.chain(adamx.adam(rate), adamx.stochastic_round(0))


def of_torch(make: Callable[..., Any]) -> Run:
    """An optimizer of torch's kind."""

    def run(dtype: str, shape: tuple[int, ...], rate: float) -> np.ndarray:
        import torch  # pyright: ignore[reportMissingImports]

        params = torch.nn.Parameter(torch.ones(SIZE, dtype=getattr(torch, dtype)))
        optimizer = make([params], lr=rate)
        for _ in range(STEPS):
            params.grad = torch.ones(shape, dtype=params.dtype)
            optimizer.step()
        return params.detach().double().numpy()

    return run


def of_keras(dtype: str, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """Keras 3 on JAX."""
    import keras  # pyright: ignore[reportMissingImports]

    params, optimizer = keras.Variable(np.ones(SIZE), dtype=dtype), keras.optimizers.Adam(rate)
    optimizer.build([params])
    for _ in range(STEPS):
        optimizer.apply([jnp.ones(shape, dtype)], [params])
    return np.asarray(params.numpy(), np.float64)


def of_flashoptim(dtype: str, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """flashoptim-jax, with its 24-bit parameters."""
    import flashoptim_jax  # pyright: ignore[reportMissingImports]

    params, optimizer = jnp.ones(SIZE, dtype), flashoptim_jax.flash_adam(rate, fused=False)
    state = optimizer.init(params)
    for _ in range(STEPS):
        params, state = optimizer.step(params, state, jnp.ones(shape, dtype))
    return np.asarray(params, np.float64)


def make_contenders() -> dict[str, Run]:
    """By distribution, those that are installed."""
    contenders: dict[str, Run] = {
        "adamx": transformation(of_adamx),
        "optax": transformation(optax.adam),
    }

    def torch_adam(params: Any, lr: float) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        return torch.optim.Adam(params, lr=lr)

    def eight_bits(params: Any, lr: float) -> Any:
        import bitsandbytes  # pyright: ignore[reportMissingImports]

        return bitsandbytes.optim.Adam8bit(params, lr=lr)

    others = {
        "torch": of_torch(torch_adam),
        "keras": of_keras,
        "flashoptim-jax": of_flashoptim,
        "bitsandbytes": of_torch(eight_bits),
    }
    installed = {each.name for each in importlib.metadata.distributions()}
    return contenders | {name: run for name, run in others.items() if name in installed}


def raises(run: Run, *arguments: Any) -> bool:
    """Whether a call is refused."""
    try:
        run(*arguments)
    except Exception:
        return True
    return False


def moves(run: Run) -> bool:
    """Whether updates of 1e-3 move bfloat16 parameters around 1 by the right mean."""
    moved = 1 - run("bfloat16", (SIZE,), RATE).mean()
    return abs(moved / (RATE * STEPS) - 1) < 0.05


def measure(run: Run) -> dict[str, bool]:
    """What one of them does, by row of the table."""
    return {
        "small updates of bfloat16 parameters survive": moves(run),
        "a gradient of another shape is an error": raises(run, "float32", (1,), RATE),
        "a negative learning rate is an error": raises(run, "float32", (SIZE,), -RATE),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    jax.config.update("jax_platforms", "cpu")
    warnings.simplefilter("ignore")  # of other libraries
    columns = {}
    for name, run in make_contenders().items():
        version = adamx.__version__ if name == "adamx" else importlib.metadata.version(name)
        columns[f"{name} {version}"] = measure(run)
    for column, marks in columns.items():
        print(column)
        for row, holds in marks.items():
            print(f"  {row}: {'yes' if holds else 'no'}")


if __name__ == "__main__":
    main()
