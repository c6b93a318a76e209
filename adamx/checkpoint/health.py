"""Find moments that no run of Adam can give.

With m and v that start at zero, and any gradients, Cauchy and Schwarz bound m after t steps:

    |m| <= sqrt(v) (1 - b1) / sqrt(1 - b2) sqrt(sum of (b1^2 / b2)^k for k < t)

since m is the sum of (1 - b1) b1^k g and v that of (1 - b2) b2^k g^2, over the steps k ago.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.blocks import iterate_blocks
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup

__all__ = ["Problem", "bound_ratio", "find_problems", "warn_of_problems"]

_Arrays = Mapping[str, np.ndarray]

# Rounding at each step lets v fall behind g^2 in narrow dtypes: to a third of it in bfloat16. And
# the square of a gradient below 1e-19 is 0 in float32.
_SLACK, _SLACK_IF_NARROW, _UNDERFLOW, _SMALLEST = 1.001, 2.0, 1e-36, 1e-17
_OUTLIER, _LARGE = 1e6, 1e4  # times the next largest sqrt(v); and at least so large
_MANY_STEPS = 10
_LOW_BITS = np.uint64((1 << 42) - 1)  # of a float64 that bfloat16 and float16 lack


class Problem(NamedTuple):
    """A finding about one variable.

    Attributes:
      field: "mu", "nu" or "nu_max".
      name: of the variable.
      finding: what is wrong, with numbers.
    """

    field: str
    name: str
    finding: str

    def __str__(self) -> str:
        return f"{self.field}/{self.name}: {self.finding}"


def find_problems(
    groups: Sequence[ParameterGroup],
    mu: _Arrays,
    nu: _Arrays,
    nu_max: _Arrays,
    is_quantised: bool = False,
) -> list[Problem]:
    """Everything in the moments that no run of Adam can give, in the order of the variables.

    Args:
      groups: of the variables.
      mu: the first moments by name.
      nu: the second moments by name.
      nu_max: AMSGrad's maxima by name.
      is_quantised: whether moments were kept in 8 bits, whose errors have no bound.
    """
    problems, are_fresh, are_zero = [], [], []
    for group in groups:
        for name in (name for name in group.names if name in mu):
            moments = {"mu": mu[name], "nu": nu[name]}
            moments |= {"nu_max": nu_max[name]} if name in nu_max else {}
            found = list(_check_values(name, moments))
            if not found and not is_quantised:
                found = list(_check_together(name, group, mu[name], nu[name]))
                is_late = group.count > _MANY_STEPS
                are_fresh.append(is_late and _is_fresh(group.config, mu[name], nu[name]))
                are_zero.append(is_late and not mu[name].any() and not nu[name].any())
            problems += found
    if not problems and are_fresh and (all(are_fresh) or all(are_zero)):
        # A single variable may be like this: some get no gradients, or only later.
        steps = groups[0].count
        text = f"as after 1 step, not {steps}" if all(are_fresh) else f"0 after {steps} steps"
        finding = f"m and v of this and all other variables are {text}"
        problems.append(Problem("mu", next(iter(mu)), finding))
    return problems


def warn_of_problems(problems: Sequence[Problem]) -> None:
    """Warn the caller of the public function that found them."""
    if problems:
        texts = listed(map(str, problems), most=3)
        warnings.warn(f"no run of Adam gives such moments: {texts}", stacklevel=3)


def bound_ratio(config: AdamConfig, count: float) -> float:
    """The largest |m| / sqrt(v) that Adam can have after `count` steps; it may be infinite."""
    b1, b2 = float(config.b1), float(config.b2)
    if not b2:
        return math.inf if b1 else 1.0
    power = 2 * math.log(b1) - math.log(b2) if b1 else -math.inf  # of b1^2 / b2
    if power == 0 or count * abs(power) < 1e-9:
        terms = count
    elif count * power > 700:
        terms = math.inf
    else:
        terms = math.expm1(count * power) / math.expm1(power)
    return (1 - b1) / math.sqrt(1 - b2) * math.sqrt(terms)


def _check_values(name: str, moments: _Arrays) -> Iterator[Problem]:
    """Values that are wrong by themselves."""
    for field, array in moments.items():
        if wrong := _Found.of(~np.isfinite(array)):
            yield Problem(field, name, f"{wrong} not finite")
        elif field != "mu" and (wrong := _Found.of(np.real(array) < 0)):
            yield Problem(field, name, f"{wrong} below 0")


def _check_together(
    name: str, group: ParameterGroup, m: np.ndarray, v: np.ndarray
) -> Iterator[Problem]:
    """What m, v and the count say of each other; a block at a time."""
    slack = _SLACK_IF_NARROW if _is_narrow(m) or _is_narrow(v) else _SLACK
    bound, final = (bound_ratio(group.config, count) for count in (group.count, math.inf))
    largest_m, largest_ratio, top, wrong = 0.0, 0.0, 0.0, _Found(m.shape)
    for first, second in _iterate_sizes(m, v):
        ratio = first / np.sqrt(second + _UNDERFLOW)
        largest_m = max(largest_m, float(first.max(initial=0.0)))
        largest_ratio = max(largest_ratio, float(ratio.max(initial=0.0)))
        top = max(top, math.sqrt(float(second.max(initial=0.0))))
        wrong.add(ratio > slack * bound)
    if group.count == 0 and (largest_m or top):
        yield Problem("mu", name, "not 0, though count is 0")
    elif not top and largest_m > _SMALLEST:
        yield Problem("nu", name, "all 0, though mu is not")
    elif top and wrong.count:
        steps = "1 step" if group.count == 1 else f"{group.count} steps"
        why = f"its betas allow {bound:.3g} after {steps}"
        if largest_ratio <= slack * final:
            why += f" and {final:.3g} later: is the count too small?"
        finding = f"{wrong} above what v allows: |m|/sqrt(v) is up to {largest_ratio:.3g}, {why}"
        yield Problem("mu", name, finding)
    if group.count and top > _LARGE:
        yield from _check_outliers(name, v, top)


def _is_narrow(array: np.ndarray) -> bool:
    """Whether all numbers fit in 16 bits, whatever the dtype: `from_state` widens bfloat16."""
    return all(not np.any(block.view(np.uint64) & _LOW_BITS) for (block,) in iterate_blocks(array))


def _check_outliers(name: str, v: np.ndarray, top: float) -> Iterator[Problem]:
    """A few entries far above all others, as an overflow leaves them."""
    rest, huge = 0.0, _Found(v.shape)
    for (block,) in iterate_blocks(v):
        root = np.sqrt(block)
        is_huge = root > top / _OUTLIER
        huge.add(is_huge)
        rest = max(rest, float(root[~is_huge].max(initial=0.0)))
    if rest and 100 * huge.count <= max(100, v.size):
        finding = f"{huge} far out: sqrt(v) is {top:.3g}, in all others at most {rest:.3g}"
        yield Problem("nu", name, finding)


def _is_fresh(config: AdamConfig, m: np.ndarray, v: np.ndarray) -> bool:
    """Whether m and v come from a single gradient g: (1 - b1) g and (1 - b2) g^2."""
    if not config.b1:
        return False
    only, has_moved = bound_ratio(config, 1), False
    for first, second in _iterate_sizes(m, v):
        moved = second > _UNDERFLOW
        has_moved |= bool(moved.any())
        if not np.allclose(first[moved] / np.sqrt(second[moved]), only, rtol=1e-3):
            return False
    return has_moved


def _iterate_sizes(m: np.ndarray, v: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """|m| and v in blocks."""
    size = np.abs(m) if np.iscomplexobj(m) else m  # blocks have the parts of complex numbers
    for first, second in iterate_blocks(size, np.real(v)):
        yield np.abs(first), second


class _Found:
    """Entries of an array that were found, block after block: `1 of 36 entries, at [1, 5],`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._seen, self._first, self.count = shape, 0, 0, 0

    @classmethod
    def of(cls, is_found: np.ndarray) -> Self | None:
        """Those of a whole array; None if there is none."""
        found = cls(is_found.shape)
        found.add(is_found.reshape(-1))
        return found if found.count else None

    def add(self, is_found: np.ndarray) -> None:
        """The next block, in the order of rows."""
        if not self.count:
            self._first = self._seen + int(np.argmax(is_found)) if is_found.size else 0
        self.count += int(np.count_nonzero(is_found))
        self._seen += is_found.size

    def __str__(self) -> str:
        if not self._shape:
            return "its one entry"
        first = [int(i) for i in np.unravel_index(self._first, self._shape)]
        at = f"at {first}" if self.count == 1 else f"the first at {first}"
        return f"{self.count} of {math.prod(self._shape)} entries, {at},"
