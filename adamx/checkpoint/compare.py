"""What differs between two checkpoints, and the size of what one holds; a block at a time."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamx.base.coded import CodedArray
from adamx.checkpoint.blocks import INTEGERS, iterate_blocks
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.fitting import fit
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup

__all__ = [
    "Distribution",
    "bring",
    "count_entries",
    "find_differences",
    "measure",
    "measure_steps",
]


def bring(
    a: Checkpoint, b: Checkpoint, order: Sequence[str] | None
) -> tuple[Checkpoint, list[str]]:
    """A with B's names and layouts, but its own precision; and what B cannot hold."""

    def like(
        theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """B's shapes, without memory for them, with the dtype that A's numbers have or fit into."""
        dtypes = {array.dtype for array in ours.values() if array.dtype.kind not in INTEGERS}
        wide = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float64)
        return {
            name: np.broadcast_to(
                np.zeros((), array.dtype if array.dtype.kind in INTEGERS else wide), array.shape
            )
            for name, array in theirs.items()
        }

    def join(checkpoint: Checkpoint) -> tuple[ParameterGroup, ...]:
        """One group, since hyperparameters are compared elsewhere."""
        return (dataclasses.replace(checkpoint.groups[0], names=checkpoint.names),)

    amsgrad = {group.config.amsgrad for group in (*a.groups, *b.groups)}
    a = dataclasses.replace(a, groups=join(a)) if len(amsgrad) == 1 else a
    b = dataclasses.replace(b, groups=join(b)) if len(amsgrad) == 1 else b
    target = dataclasses.replace(
        b,
        params=like(b.params if a.params else {}, a.params),
        mu=like(b.mu, a.mu),
        nu=like(b.nu, a.nu),
        nu_max=like(b.nu_max, a.nu_max),
        extra=like(b.extra, a.extra),
    )
    return fit(a, target, order, sides=("A", "B"))


def find_differences(a: Checkpoint, b: Checkpoint) -> dict[str, dict[str, str]]:
    """For each variable and kind of array: the largest difference, and how many entries differ."""
    kinds = {"mu": "m", "nu": "v", "nu_max": "v_max", "params": "weight", "extra": "average"}
    found: dict[str, dict[str, str]] = {}
    for field, kind in kinds.items():
        ours, theirs = getattr(a, field), getattr(b, field)
        for name in (name for name in theirs if name in ours):
            largest, entries = _difference(ours[name], theirs[name])
            cell = ""
            if entries:
                cell = f"{largest:.3g} in {entries} of {theirs[name].size}"
            elif _have_other_codes(ours[name], theirs[name]):
                cell = "0, other codes"
            if cell:
                found.setdefault(name.removeprefix("average/"), {})[kind] = cell
    return found


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """The largest absolute difference, and how many entries differ in any bit.

    Any NaN equals any other; 0 and -0 differ.
    """
    largest, entries = 0.0, 0
    with np.errstate(all="ignore"):
        for x, y in iterate_blocks(a, b):
            differ = (x != y) | (np.signbit(x) != np.signbit(y))
            differ &= ~(np.isnan(x) & np.isnan(y))
            if differ.any():
                sizes = np.abs(x[differ].astype(np.float64) - y[differ].astype(np.float64))
                largest = float(np.maximum(largest, sizes.max()))  # a lone NaN is the largest
                entries += int(np.count_nonzero(differ))
    return largest, entries


def _have_other_codes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether moments in 8 bits are the same numbers by other codes, and so rounded differently."""
    pairs = [array.coded for array in (a, b) if isinstance(array, CodedArray)]
    if len(pairs) < 2 or None in pairs:
        return False
    codes = [[x.tobytes() for moment in pair or () for x in moment] for pair in pairs]
    return codes[0] != codes[1]


def measure(array: np.ndarray, root: bool = False) -> dict[str, Any]:
    """Facts about an array or its square root, as JSON takes them: "nan" and "inf" are texts."""
    squares, nonfinite = 0.0, 0
    with np.errstate(all="ignore"):
        for (block,) in iterate_blocks(array):
            values = np.sqrt(block) if root else block.astype(np.float64, copy=False)
            nonfinite += values.size - int(np.count_nonzero(np.isfinite(values)))
            squares += float(values @ values)
    norm = math.sqrt(squares)
    return {
        "shape": array.shape,
        "dtype": "8bit" if isinstance(array, CodedArray) and array.coded else str(array.dtype),
        "norm": norm if math.isfinite(norm) else str(norm),
        "nonfinite": nonfinite,
    }


def measure_steps(
    m: np.ndarray, v: np.ndarray, config: AdamConfig, count: int
) -> dict[str, float | str]:
    """What the moments of a variable mean for its steps, in units of the learning rate.

    Returns:
      `largest_step`, the largest |m^| / sqrt(v^) of bias-corrected moments, where not all
      gradients were 0 ("inf" and "nan" are strings); `below_eps`, the share of entries whose
      sqrt(v^) is below 10 eps; `zero`, the share of entries whose moments are 0.
    """
    if not m.size or not count:
        return {"largest_step": 0.0, "below_eps": 0.0, "zero": float(bool(m.size))}
    corrections = _correct(config, count)
    least = 10 * config.eps
    # This convention adds epsilon to sqrt(v), before the bias correction.
    least /= math.sqrt(corrections[1]) if config.convention == "keras" else 1.0
    largest, below, zero = 0.0, 0, 0
    with np.errstate(all="ignore"):
        for first, second in iterate_blocks(m, v):
            size, root = np.abs(first) / corrections[0], np.sqrt(second / corrections[1])
            ratio = np.where(size == 0, 0.0, size / root)
            largest = float(np.maximum(largest, ratio.max(initial=0.0)))
            below += int(np.count_nonzero(root < least))
            zero += int(np.count_nonzero((size == 0) & (root == 0)))
    return {
        "largest_step": largest if math.isfinite(largest) else str(largest),
        "below_eps": below / m.size,
        "zero": zero / m.size,
    }


def _correct(config: AdamConfig, count: int) -> list[float]:
    """The bias corrections 1 - b**count of both moments; 1 before the first step."""
    decays = (float(config.b1), float(config.b2))
    return [-math.expm1(count * math.log(b)) if b and count else 1.0 for b in decays]


class Distribution(NamedTuple):
    """How the entries of a variable's moments are distributed, over powers of ten.

    Attributes:
      root: how many have a sqrt(v^) between two of `root_edges`; the first and the last take what
        is beyond, zeros the first.
      step: the same of |m^| / sqrt(v^).
      root_edges, step_edges: powers of ten.
      largest_step: the largest |m^| / sqrt(v^).
    """

    root: np.ndarray
    step: np.ndarray
    root_edges: np.ndarray
    step_edges: np.ndarray
    largest_step: float


def count_entries(m: np.ndarray, v: np.ndarray, config: AdamConfig, count: int) -> Distribution:
    """How the entries of a variable's moments are distributed."""
    corrections = _correct(config, count)
    root_edges, step_edges = np.linspace(-14, 4, 73), np.linspace(-6, 2, 65)
    root, step = np.zeros(72, np.int64), np.zeros(64, np.int64)
    largest = 0.0
    with np.errstate(all="ignore"):
        for first, second in iterate_blocks(np.abs(m), np.abs(v)):
            size, roots = first / corrections[0], np.sqrt(second / corrections[1])
            ratio = np.nan_to_num(np.where(size == 0, 0.0, size / roots), posinf=1e300)
            largest = max(largest, float(ratio.max(initial=0.0)))
            for counts, edges, values in ((root, root_edges, roots), (step, step_edges, ratio)):
                powers = np.nan_to_num(np.log10(values), nan=1e3, neginf=-1e3, posinf=1e3)
                powers = np.clip(powers, edges[0], edges[-1])
                counts += np.histogram(powers, edges)[0]
    return Distribution(root, step, root_edges, step_edges, largest)
