"""One workload from end to end: build the contenders, see that they agree, time them."""

import dataclasses
import sys
from collections.abc import Sequence

from benchmarks.contenders import Absent, Contender, task_of
from benchmarks.races import RACES
from benchmarks.timing import Spread, ratio, spread, time_rounds, warm_up
from benchmarks.workloads import WORKLOADS, size

__all__ = ["Measured", "Result", "measure"]


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
    base: str  # the contender that the others are compared with
    contenders: dict[str, Measured]
    absent: dict[str, str]  # the reason, by contender

    def time(self, name: str) -> Spread:
        """Seconds per step."""
        return spread(self.contenders[name].seconds)

    def speed(self, name: str, other: str | None = None) -> Spread:
        """How many times as fast as another one is a contender; as the base."""
        others = self.contenders[self.base if other is None else other]
        return ratio(others.seconds, self.contenders[name].seconds)


def measure(
    workload: str,
    names: Sequence[str],
    moments: str,
    threads: int,
    in_graph: int,
    rounds: int,
    seconds: float | None,
) -> Result:
    shapes, race = WORKLOADS[workload], RACES[moments]
    task = task_of(shapes, moments, threads, in_graph)
    built: dict[str, Contender] = {}
    distances: dict[str, float] = {}
    absent: dict[str, str] = {}
    # The base first, since the others are compared with it.
    for name in sorted(names, key=lambda name: name != race.base):
        _tell(f"{workload}: {name}")
        try:
            built[name] = race.contenders[name](task)
        except Absent as error:
            absent[name] = str(error)
            continue
        distances[name] = warm_up(built[name], task, built.get(race.base))
        if not distances[name] <= race.farthest:
            raise SystemExit(
                f"{workload}: the parameters of {name} are {distances[name]:.1e} of their way from "
                f"those of {race.base}, more than {race.farthest}: it does other work"
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
    return Result(size(shapes), len(shapes), race.base, contenders, absent)


def _tell(progress: str) -> None:
    """Say on a terminal what is measured, until the next line is written over it."""
    if sys.stderr.isatty():
        print(progress, end="\033[K\r", file=sys.stderr, flush=True)
