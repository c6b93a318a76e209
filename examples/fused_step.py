"""The digits network once more, with the fused step: gradients in, parameters out.

`adamx.fused_adamw(..., packed=True)` takes the gradients and returns the parameters. The moments
are kept in float32 and then in bfloat16, which halves them. Printed are the accuracy, the bytes of
the optimizer's state and the time. The network and the data are those of train_digits.py.
"""

import argparse
import time

import jax
import optax
from train_digits import BATCH, Data, Params, evaluate, init_params, load, loss, shift

import adamx


def train(options: argparse.Namespace, seed: int, moments: str) -> tuple[float, int, float]:
    """One run: the held-out accuracy, the bytes of the optimizer's state, the seconds."""
    data, test = load(seed)
    key = jax.random.key(seed)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, warmup_steps=options.steps // 10, decay_steps=options.steps
    )
    optimizer = adamx.fused_adamw(
        schedule, mu_dtype=moments, nu_dtype=moments, clip_global_norm=1.0, packed=True
    )

    @jax.jit
    def gradients(params: Params, t: int) -> Params:
        choose, move = jax.random.split(jax.random.fold_in(key, t))
        rows = jax.random.choice(choose, data.digits.size, (BATCH,), replace=False)
        batch = Data(shift(move, data.images[rows]), data.digits[rows])
        return jax.grad(loss)(params, batch)

    step = optimizer.jit()  # changes parameters and moments in place

    params = init_params(key)
    state = optimizer.init(params)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    start = time.perf_counter()
    for t in range(options.steps):
        params, state = step(gradients(params, t), params, state)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    return float(evaluate(params, test)[1]), size, seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=1500, help="of each run (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs to average (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its peak")
    options = parser.parse_args()
    status = adamx.native.status()
    print(f"compiled kernel {'in use' if status else 'not in use'}: {status.reason}")
    for moments in ("float32", "bfloat16"):
        runs = [train(options, seed, moments) for seed in range(options.seeds)]
        accuracy, size, seconds = (sum(column) / len(runs) for column in zip(*runs, strict=True))
        print(f"{moments} moments: {accuracy:.2%} right, {size:,.0f} bytes, {seconds:.1f} s a run")


if __name__ == "__main__":
    main()
