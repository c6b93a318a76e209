"""The digits network once more, with the fused step: gradients in, parameters out.

`adamx.fused_adamw(..., packed=True)` takes the gradients and returns the parameters. The moments
are kept in float32 and then in bfloat16, which halves them. Printed are the accuracy, the bytes of
the optimizer's state and the time. The network and the data are those of train_digits.py.
"""

import argparse
import time

import common
import jax

import adamx


def train(options: argparse.Namespace, seed: int, moments: str) -> tuple[float, int, float]:
    """One run: the held-out accuracy, the bytes of the optimizer's state, the seconds."""
    data, test = common.load_data(seed)
    key = jax.random.key(seed)
    schedule = common.make_schedule(options.learning_rate, options.steps)
    optimizer = adamx.fused_adamw(
        schedule, mu_dtype=moments, nu_dtype=moments, clip_global_norm=1.0, packed=True
    )

    @jax.jit
    def gradients(params: common.Params, t: int) -> common.Params:
        return jax.grad(common.loss)(params, common.choose_batch(data, key, t))

    step = optimizer.jit()  # changes parameters and moments in place

    params = common.init_params(key)
    state = optimizer.init(params)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    start = time.perf_counter()
    for t in range(options.steps):
        params, state = step(gradients(params, t), params, state)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    return float(common.evaluate(params, test)[1]), size, seconds


def main() -> None:
    options = common.make_parser(__doc__, steps=1500, seeds=3, learning_rate=3e-3).parse_args()
    status = adamx.native.status()
    print(f"compiled kernel {'in use' if status else 'not in use'}: {status.reason}")
    for moments in ("float32", "bfloat16"):
        runs = [train(options, seed, moments) for seed in range(options.seeds)]
        accuracy, size, seconds = (sum(column) / len(runs) for column in zip(*runs, strict=True))
        print(f"{moments} moments: {accuracy:.2%} right, {size:,.0f} bytes, {seconds:.1f} s a run")


if __name__ == "__main__":
    main()
