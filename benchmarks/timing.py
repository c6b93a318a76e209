"""Who is how fast: all contenders in turn, round after round, compared within a round."""

import dataclasses
import gc
import math
import random
import time
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.contenders import ADAM, Contender, Task

__all__ = ["Spread", "geometric_mean", "ratio", "spread", "time_rounds", "warm_up"]

_SHORTEST = 0.01  # seconds that a sample lasts at least
_PAUSE = 2e-3  # seconds in which the threads of the one before give up spinning
_FEWEST = 3  # rounds, however short the time is
_WARM_UP = 4  # calls, of which the first is with other gradients


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and the quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    low, median, high = np.percentile(np.asarray(values), [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def ratio(seconds: Sequence[float], others: Sequence[float]) -> Spread:
    """Of the two times in each round. What slows a whole round down cancels out."""
    return spread(np.asarray(seconds) / np.asarray(others))


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def warm_up(contender: Contender, task: Task, reference: Contender | None) -> float:
    """A few steps; how far the parameters then are from the reference's.

    It is the largest difference of any parameter, as a part of the way that it can have gone.
    """
    contender.give(task.other_grads)
    contender.run(1)
    contender.give(task.grads)
    contender.run(_WARM_UP - 1)
    if reference is None:
        return 0.0
    way = ADAM[0] * _WARM_UP * contender.steps_per_call
    pairs = zip(contender.params(), reference.params(), strict=True)
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs) / way


def time_rounds(
    contenders: Mapping[str, Contender], rounds: int, seconds: float | None
) -> dict[str, list[float]]:
    """Seconds per step in each round, by contender.

    Each round times everyone once, in an order drawn anew, so that nobody always follows the same
    neighbour.
    """
    calls = {name: _calls(contender) for name, contender in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order, draw = list(contenders), random.Random(0)
    began = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            if seconds is not None and done >= _FEWEST and time.perf_counter() - began > seconds:
                break
            draw.shuffle(order)
            for name in order:
                samples[name].append(_sample(contenders[name], calls[name]))
    finally:
        gc.enable()
    return samples


def _calls(contender: Contender) -> int:
    """How many calls make a sample."""
    calls = 1
    while _seconds(contender, calls) < _SHORTEST:
        calls *= 2
    return calls


def _sample(contender: Contender, calls: int) -> float:
    time.sleep(_PAUSE)
    if calls > 1:
        contender.run(1)  # what is small is in the cache when steps follow one another
    return _seconds(contender, calls) / (calls * contender.steps_per_call)


def _seconds(contender: Contender, calls: int) -> float:
    began = time.perf_counter()
    contender.run(calls)
    return time.perf_counter() - began
