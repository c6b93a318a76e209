"""The picture: for each workload, how many times as fast as one of them everyone is."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Result

__all__ = ["draw"]

_COLORS = {
    "step": "#1f6fb4",
    "packed": "#0b3c6f",
    "update": "#8dbbe3",
    "optax": "#8a8a8a",
    "torch-fused": "#d9622b",
    "torch-foreach": "#f0b08f",
    "keras": "#b5443c",
    "limit": "#d8d8d8",
    "float32": "#1f6fb4",
    "bfloat16": "#8dbbe3",
    "8bit": "#2a8a57",
    "update-8bit": "#8fcba9",
    "flashoptim": "#d9622b",
}


def draw(results: Mapping[str, Result], subtitle: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for r in results.values() for name in r.contenders))
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    height = 0.9 + rows * (0.7 + 0.24 * len(names))
    figure, grid = plt.subplots(rows, columns, figsize=(9, height), squeeze=False, sharey=True)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    for axes, (workload, result) in zip(grid.flat, results.items(), strict=False):
        here = [name for name in names if name in result.contenders]
        speeds = {name: result.speed(name) for name in here}
        end = max(spread.high for spread in speeds.values())
        for name, spread in speeds.items():
            y = names.index(name)
            errors = [[spread.median - spread.low], [spread.high - spread.median]]
            axes.barh(y, spread.median, 0.78, color=_COLORS[name])
            if name != result.base:
                axes.errorbar(spread.median, y, xerr=errors, color="black", capsize=2.5)
            label = axes.text(spread.high + 0.02 * end, y, f"{spread.median:.2f}", va="center")
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        axes.axvline(1, color="#555555", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.16 * end)
        axes.set_yticks(range(len(names)), names, fontsize=10)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.spines[["top", "right", "left"]].set_visible(False)
        leaves = "leaf" if result.leaves == 1 else "leaves"
        title = f"{workload}: {result.parameters / 1e6:.3g} million in {result.leaves:,} {leaves}"
        axes.set_title(title, fontsize=10.5, loc="left")
    grid[0, 0].invert_yaxis()  # the axes share it
    base = next(iter(results.values())).base
    title = f"A step of Adam: how many times as fast as {base} (median, quartiles)"
    figure.suptitle(f"{title}\n{subtitle}", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
