"""The picture of `adamx inspect --plot`: how the moments of each variable are distributed."""

from pathlib import Path
from typing import Any

import numpy as np

from adamx.checkpoint import Checkpoint
from adamx.checkpoint.compare import count_entries
from adamx.cli.output import make_printable

__all__ = ["draw_moments"]

_MOST = 60  # variables in one picture, those with the largest steps
_LONGEST = 40  # characters of a name


def draw_moments(path: Path, checkpoint: Checkpoint) -> None:
    """Draw a row for each variable, sorted by its largest step: an unhealthy layer comes first.

    Args:
      path: of the picture; its suffix selects the format.
      checkpoint: of which the first and the second moments are drawn.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            '--plot needs the package matplotlib: pip install "adamx[plot]", or in a checkout of '
            'adamx pip install -e ".[plot]"',
            name=error.name,
        ) from error

    rows = []
    for group in checkpoint.groups:
        for name in (name for name in group.names if name in checkpoint.mu):
            m, v = checkpoint.mu[name], checkpoint.nu[name]
            rows.append((name, count_entries(m, v, group.config, group.count)))
    rows.sort(key=lambda row: -row[1].largest_step)
    hidden = len(rows) - _MOST
    rows = rows[:_MOST]
    figure = Figure(figsize=(11, 1.6 + 0.22 * max(len(rows), 4)), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    titles = ("root of the second moment, √v̂", "step over learning rate, |m̂| / √v̂")
    names = [_shorten(name) for name, _ in rows]
    for axis, title, part in zip(axes, titles, ("root", "step"), strict=True):
        counts = [getattr(found, part) for _, found in rows]
        edges = getattr(rows[0][1], f"{part}_edges") if rows else np.array([0.0, 1.0])
        _draw_rows(axis, counts, edges)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("power of ten")
    axes[0].set_yticks(range(len(names)), names, fontsize=7)
    axes[1].tick_params(left=False)
    count = f"the {_MOST} of {len(rows) + hidden} variables with the largest steps"
    what = count if hidden > 0 else "sorted by the largest step"
    figure.suptitle(f"{what}; darker: more of a variable's entries", fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_rows(axis: Any, counts: list[np.ndarray], edges: np.ndarray) -> None:
    shares = np.array([row / max(row.sum(), 1) for row in counts]).reshape(len(counts), -1)
    if not shares.size:
        return
    # By roots, so that a few entries are seen beside many.
    extent = (edges[0], edges[-1], len(counts) - 0.5, -0.5)
    shown = np.sqrt(shares)
    axis.imshow(shown, aspect="auto", extent=extent, cmap="Blues", interpolation="nearest")
    axis.grid(axis="x", alpha=0.3)


def _shorten(name: str) -> str:
    name = make_printable(name)
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST:]}"
