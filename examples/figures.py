"""What the examples that draw share: their option, their colours and the end of a figure."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[examples]"') from error

# The palette of Okabe and Ito, which the colour-blind can tell apart.
GRAY, BLUE, ORANGE = "#6b6b6b", "#56b4e9", "#d55e00"


def choose_folder(doc: str | None) -> Path:
    """The folder of `--out`, made if it is not there; `doc` is the example's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the picture")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_figure(figure: Any, axes: Iterable[Any], path: Path, dpi: int = 90) -> None:
    """Write a figure with a light grid and no frame, and forget it."""
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
