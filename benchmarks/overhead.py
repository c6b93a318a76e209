"""What a step costs outside of the kernel: JAX's passing of arrays, trees, and the kernel's start.

Run with `python -m benchmarks.overhead`. Every figure is the median over rounds, in microseconds;
the leaves have 16 elements, so that nothing is computed to speak of.

- passing: a jitted function that does nothing to N arrays but give them back, donated, per array;
- trees: the same N arrays as a dictionary instead of a list, whose names JAX sorts at each call;
- one kernel: a fused step on one leaf in a loop within one compiled function, per step, which is
  the start of the kernel and the few scalars computed before it;
- each leaf: the same on N leaves, what each adds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import adamx

LOOP = 200  # steps within one compiled function


def microseconds(call: Callable[[], Any], rounds: int) -> float:
    """The median time of a call that returns when all is done."""
    samples = []
    for _ in range(rounds + 3):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return 1e6 * statistics.median(samples[3:])


def passing(tree: Any, rounds: int) -> float:
    """A jitted function that gives back the arrays of a tree."""
    same = jax.jit(lambda tree: jax.tree.map(lambda x: x, tree), donate_argnums=0, keep_unused=True)
    now = [tree]

    def call() -> None:
        now[0] = same(now[0])
        jax.block_until_ready(now[0])

    return microseconds(call, rounds)


def stepping(leaves: int, rounds: int) -> float:
    """One fused step on leaves of 16 elements, of many in one compiled function."""
    optimizer = adamx.fused_adam(1e-3)
    params = [jnp.ones(16) for _ in range(leaves)]

    def loop(params: Any, state: Any, grads: Any) -> Any:
        def one(_: Any, carry: Any) -> Any:
            return optimizer.step(grads, *carry)

        return jax.lax.fori_loop(0, LOOP, one, (params, state))

    compiled = jax.jit(loop)
    state = optimizer.init(params)
    return (
        microseconds(lambda: jax.block_until_ready(compiled(params, state, params)), rounds) / LOOP
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--leaves", type=int, default=1000, help="N (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="default: %(default)s")
    options = parser.parse_args()
    n, rounds = options.leaves, options.rounds
    few = passing([jnp.ones(16)], rounds)
    as_list = passing([jnp.ones(16) for _ in range(n)], rounds)
    as_dict = passing({f"leaf{i}": jnp.ones(16) for i in range(n)}, rounds)
    one, several = stepping(1, rounds), stepping(100, rounds)
    print(f"calling a jitted function with one array: {few:.1f}")
    print(f"passing, each further array in and out: {(as_list - few) / (n - 1):.2f}")
    print(f"a dictionary of {n} names instead of a list, each array: {(as_dict - as_list) / n:.2f}")
    print(f"one kernel within a compiled function: {one:.1f}")
    print(f"each further leaf of a kernel: {(several - one) / 99:.2f}")


if __name__ == "__main__":
    main()
