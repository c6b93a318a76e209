"""What rounding at random, or keeping residuals, adds to a step with bfloat16 parameters.

Run with `python -m benchmarks.rounding`. One leaf of 16 million parameters, first moment in
bfloat16, gradients in float32; everything jitted, donated, warmed up and blocked until ready. The
variants take turns, and the figure is the median over the rounds of the ratio within a round to
the step that rounds to nearest, with the second moment in float32.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx


def jax_bits(key: int) -> optax.GradientTransformation:
    """Stochastic rounding with `jax.random.bits` itself, for the comparison."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        bits = jax.random.bits(jax.random.fold_in(jax.random.key(key), state), params.shape)
        pattern = jax.lax.bitcast_convert_type(params.astype(jnp.float32) + updates, jnp.uint32)
        pattern = (pattern + (bits & 0xFFFF)) & np.uint32(0xFFFF0000)
        rounded = jax.lax.bitcast_convert_type(pattern, jnp.float32)
        return rounded - params.astype(jnp.float32), state + 1

    def init(params: Any) -> jax.Array:
        del params
        return jnp.zeros([], jnp.int32)

    return optax.GradientTransformation(init, update)


def variants() -> dict[str, optax.GradientTransformation]:
    """The transformations, the one that the others are compared with first."""
    adam = functools.partial(adamx.adam, 1e-3, mu_dtype="bfloat16")
    narrow = functools.partial(adam, nu_dtype="bfloat16")
    return {
        "to nearest": adam(),
        "stochastic_round": optax.chain(adam(), adamx.stochastic_round(0)),
        "residual_params, 8 bits": optax.chain(adam(), adamx.residual_params(8)),
        "residual_params, 16 bits": optax.chain(adam(), adamx.residual_params(16)),
        "stochastic_round with jax.random.bits": optax.chain(adam(), jax_bits(0)),
        "bfloat16 nu, to nearest": narrow(),
        "bfloat16 nu, stochastic_round and nu_key": optax.chain(
            narrow(nu_key=0), adamx.stochastic_round(0)
        ),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=2**24, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    options = parser.parse_args()
    grads = jnp.asarray(np.random.default_rng(0).standard_normal(options.size), jnp.float32)
    runs = {}
    for name, tx in variants().items():

        def step(params: Any, state: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = jnp.ones(options.size, jnp.bfloat16)
        runs[name] = [jax.jit(step, donate_argnums=(0, 1)), (params, tx.init(params))]
    seconds = {name: [] for name in runs}
    for round_ in range(options.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run[1] = jax.block_until_ready(run[0](*run[1]))
            if round_:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    base = np.array(seconds["to nearest"])
    for name, taken in seconds.items():
        low, middle, high = np.quantile(np.array(taken) / base, (0.25, 0.5, 0.75))
        ms = 1e3 * float(np.median(taken))
        print(f"{name:<42} {ms:7.1f} ms  {middle:5.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
