"""The memory that Adam takes: between steps, and at most in a training step.

`python -m benchmarks.footprint NAME` measures one step in a process of its own; it is a part of
`python -m benchmarks.memory bytes`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import adamx
from benchmarks.contenders import Absent, Optimizer, from_optax, total
from benchmarks.forms import FORMS, Form
from benchmarks.trainings import Training, transformer

__all__ = ["OPTIMIZERS", "Peak", "at_rest", "compare", "measure", "peak"]

OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "optax.adamw": lambda: from_optax(optax.adamw(1e-3)),
    "adamx.adamw": lambda: from_optax(adamx.adamw(1e-3)),
    "adamx.fused_adamw": lambda: Optimizer(*adamx.fused_adamw(1e-3)),
    "adamx.adamw, 8 bits": lambda: from_optax(adamx.adamw(1e-3, moments="8bit")),
    "adamx.fused_adamw, 8 bits": lambda: Optimizer(*adamx.fused_adamw(1e-3, moments="8bit")),
}
WIDTH, SMALL = 1024, 64  # with which the model has 50.6 and 0.2 million parameters


class Peak(NamedTuple):
    """The most memory that one training step takes, in bytes.

    Attributes:
      parameters: how many there are.
      xla: by XLA's account: parameters, state, gradients, activations and temporary arrays.
      process: by how much the resident memory of a process grew, from before it had parameters.
    """

    parameters: int
    xla: int
    process: int


def model(width: int) -> Training:
    return transformer(width, blocks=4, heads=16, length=16)


def at_rest(form: Form, params: Any) -> float:
    """Bytes that parameters and state take between steps, for each parameter.

    Args:
      form: how they are stored.
      params: a tree of float32 arrays or `jax.ShapeDtypeStruct`; nothing is allocated.

    Raises:
      Absent: the optimizer is of a package that is not installed.
    """
    optimizer = form.make(1e-3, jax.random.key(0))
    kept = jax.eval_shape(lambda params: optax.tree.cast(params, form.params), params)
    arrays = jax.tree.leaves((kept, jax.eval_shape(optimizer.init, kept)))
    return sum(x.size * x.dtype.itemsize for x in arrays) / _count(params)


def _count(params: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


def _resident() -> int:
    """The most bytes of memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(optimizer: Optimizer, training: Training) -> Peak:
    """Do one training step, and say what it takes at most; meant for a new process."""
    batch = jax.block_until_ready(training.draw(jax.random.key(1)))
    before = _resident()

    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        return optimizer.step(jax.grad(training.loss)(params, *batch), params, state)

    params = jax.block_until_ready(training.init(jax.random.key(0)))
    state = jax.block_until_ready(jax.jit(optimizer.init)(params))
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    count = _count(params)
    jax.block_until_ready(compiled(params, state, batch))
    return Peak(count, total(compiled.memory_analysis()), _resident() - before)


def measure(name: str, width: int) -> tuple[Peak, Peak]:
    """The peaks of two new processes: of one that compiles, and of one that finds it compiled."""
    with tempfile.TemporaryDirectory() as cache:
        keep_all = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        keep_all |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
        environment = os.environ | keep_all | {"JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, "-m", "benchmarks.footprint", name, "--width", str(width)]
        outputs = [subprocess.check_output(command, env=environment, text=True) for _ in range(2)]
    first, second = (Peak(*json.loads(output)) for output in outputs)
    return first, second


def compare(width: int = WIDTH) -> None:
    """Print both tables, of bytes for each parameter."""
    params = jax.eval_shape(model(width).init, jax.random.key(0))
    print("parameters and state between steps, bytes for each parameter")
    for name, form in FORMS.items():
        if form.read != form.params:
            continue  # stored as another one
        try:
            print(f"  {name:28}{at_rest(form, params):7.3f}")
        except Absent as error:
            print(f"  {name} skipped: {error}")
    count = _count(params)
    print(f"one training step of {count / 1e6:.1f} million parameters, at most")
    print(f"  {'':28}{'by XLA':>8}{'process':>10}{'compiled before':>18}{'less a small model':>21}")
    for name in OPTIMIZERS:
        (first, second), (_, small) = measure(name, width), measure(name, SMALL)
        sizes = second.xla, first.process, second.process, second.process - small.process
        columns = zip(sizes, (8, 10, 18, 21), strict=True)
        print(f"  {name:28}" + "".join(f"{size / count:{w}.2f}" for size, w in columns), flush=True)


def main() -> None:
    """The command line of one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=OPTIMIZERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    options = parser.parse_args()
    print(json.dumps(peak(OPTIMIZERS[options.name](), model(options.width))))


if __name__ == "__main__":
    main()
