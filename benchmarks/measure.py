"""One workload from end to end: build the contenders, see that they agree, time them."""

import dataclasses
import sys
from collections.abc import Callable, Sequence

import optax

import adamx
from benchmarks.contenders import (
    ADAM,
    Absent,
    Contender,
    Task,
    adamx_step,
    keras_adam,
    optax_adam,
    task_of,
)
from benchmarks.limit import limit
from benchmarks.timing import Spread, ratio, spread, time_rounds, warm_up
from benchmarks.torch_contenders import torch_adam
from benchmarks.workloads import WORKLOADS, size

__all__ = ["BASE", "CONTENDERS", "Measured", "Result", "measure"]

BASE = "optax"  # whose time, and whose parameters, the others are compared with


def _update(task: Task) -> Contender:
    dtype = task.moments
    tx = adamx.adam(*ADAM, mu_dtype=dtype, nu_dtype=dtype)
    return optax_adam(task, tx)


# In the order of tables and pictures.
CONTENDERS: dict[str, Callable[[Task], Contender]] = {
    "step": lambda task: adamx_step(task, packed=False),
    "packed": lambda task: adamx_step(task, packed=True),
    "update": _update,
    "optax": lambda task: optax_adam(task, optax.adam(*ADAM)),
    "torch-fused": lambda task: torch_adam(task, "fused"),
    "torch-foreach": lambda task: torch_adam(task, "foreach"),
    "keras": keras_adam,
    "limit": limit,
}

# How far parameters may be from optax's, as a part of the way gone, by the dtype of adamx's
# moments. The farthest seen were 5e-5 and 1e-2. On the other side, b2 = 0.99 in place of 0.999
# comes to 2e-3, b1 = 0.8 to 3e-2, and moments without the correction of their bias to 13.
_TOLERANCE = {"float32": 2e-4, "bfloat16": 3e-2}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of one contender on one workload; see `Contender` for the last two."""

    seconds: list[float]  # per step, by round
    distance: float  # of its parameters from the base's; see `warm_up`
    peak: float | None
    compile_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Result:
    """One workload."""

    parameters: int
    leaves: int
    contenders: dict[str, Measured]
    absent: dict[str, str]  # the reason, by contender

    def time(self, name: str) -> Spread:
        """Seconds per step."""
        return spread(self.contenders[name].seconds)

    def speed(self, name: str, base: str = BASE) -> Spread:
        """How many times as fast as another one is a contender."""
        return ratio(self.contenders[base].seconds, self.contenders[name].seconds)


def measure(
    workload: str,
    names: Sequence[str],
    moments: str,
    threads: int,
    in_graph: int,
    rounds: int,
    seconds: float | None,
) -> Result:
    shapes = WORKLOADS[workload]
    task = task_of(shapes, moments, threads, in_graph)
    built: dict[str, Contender] = {}
    distances: dict[str, float] = {}
    absent: dict[str, str] = {}
    # The base first, since the others are compared with it.
    for name in sorted(names, key=lambda name: name != BASE):
        _tell(f"{workload}: {name}")
        try:
            built[name] = CONTENDERS[name](task)
        except Absent as error:
            absent[name] = str(error)
            continue
        distances[name] = warm_up(built[name], task, built.get(BASE))
        if not distances[name] <= _TOLERANCE[moments]:
            raise SystemExit(
                f"{workload}: the parameters of {name} are {distances[name]:.1e} of their way from "
                f"those of {BASE}, more than {_TOLERANCE[moments]}: it does other work"
            )
    # Nobody needs the other gradients any more.
    task.other_grads.clear()
    _tell(f"{workload}: timing")
    samples = time_rounds(built, rounds, seconds)
    _tell("")
    contenders = {
        name: Measured(
            samples[name], distances[name], built[name].peak, built[name].compile_seconds
        )
        for name in names
        if name in built
    }
    return Result(size(shapes), len(shapes), contenders, absent)


def _tell(progress: str) -> None:
    """Say on a terminal what is measured, until the next line is written over it."""
    if sys.stderr.isatty():
        print(progress, end="\033[K\r", file=sys.stderr, flush=True)
