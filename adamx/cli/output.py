"""The output of the command `adamx`: text, tables and a progress bar."""

import contextlib
import glob
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamx.base.errors import AdamxError
from adamx.base.trees import listed
from adamx.checkpoint.untrusted.account import Progress
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_schedules import KerasSchedule

__all__ = [
    "count_noun",
    "explain",
    "list_effective",
    "list_fields",
    "make_printable",
    "measure_size",
    "narrow",
    "print_table",
    "shorten",
    "show",
    "show_progress",
]

_LARGE = 64 << 20  # bytes; from here on the user has to wait

# The option for each argument of the library.
_OPTIONS = {
    "checkpoint": "--set FIELD=VALUE",
    "config": "--config FILE, or --set FIELD=VALUE",
    "format": "--to FORMAT",
    "generation": "--generation NAME",
    "names": "--names FILE",
    "optimizer": "--optimizer KEY",
    "order": "--order FILE",
    "strict": "--names FILE, or without --strict",
    "template": "--template FILE",
    "weights": "--weights KEY",
}


def list_fields(config: AdamConfig) -> dict[str, Any]:
    """The fields, with a schedule as Keras writes it."""
    fields = config.plain_fields()
    if isinstance(rate := fields["learning_rate"], KerasSchedule):
        fields["learning_rate"] = rate.to_config()
    return fields


def list_effective(config: AdamConfig) -> dict[str, Any]:
    """The fields, without those that have no effect and that each framework sets in its way."""
    idle = config.idle_fields()
    return {name: value for name, value in list_fields(config).items() if name not in idle}


def show(value: Any) -> str:
    """The value for users: for example `0.01 in float32` for the double that is equal to it."""
    if isinstance(value, Mapping):
        arguments = ", ".join(f"{k}={show(v)}" for k, v in value["config"].items())
        return f"{value['class_name']}({arguments})"
    if isinstance(value, float) and float(narrow(value)) == value != float(str(narrow(value))):
        return f"{narrow(value)!s} in float32"
    return str(value)


def narrow(number: float) -> np.float32:
    """The number rounded to float32."""
    with np.errstate(all="ignore"):
        return np.float32(number)


def shorten(names: Sequence[str], params: Iterable[str]) -> str:
    """The first names; all weights, if they are among them, are only counted."""
    weights = {f"params/{name}" for name in params}
    if weights and weights <= set(names):
        names = [count_noun(len(weights), "weight"), *(n for n in names if n not in weights)]
    return listed(names, most=5)


def count_noun(count: int, name: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def make_printable(text: str, keep: str = "") -> str:
    """The text without control characters of a terminal, since names in a file are untrusted."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def explain(error: Exception) -> str:
    """What an error says, and the option that helps."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return make_printable(f"{error.filename}: {error.strerror}")
    option = _OPTIONS.get(error.argument or "") if isinstance(error, AdamxError) else None
    hint = f"\nOn the command line: {option}" if option else ""
    return make_printable(f"{error}{hint}", keep="\n")


def measure_size(path: Path) -> int:
    """The bytes of a file, of all files in a folder, or of those that share a prefix."""
    if path.is_file():
        return path.stat().st_size
    found = path.rglob("*") if path.is_dir() else path.parent.glob(f"{glob.escape(path.name)}.*")
    return sum(file.stat().st_size for file in found if file.is_file())


@contextlib.contextmanager
def show_progress(doing: str, size: int) -> Iterator[Progress | None]:
    """A bar on standard error, if that is a terminal, the file is large and rich is installed."""
    if size < _LARGE or not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress as Bar
    except ImportError:
        yield None
        return

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(make_printable(doing)), total=None)  # until it is known to move

        def advance(count: int) -> None:
            bar.update(task, advance=count, total=size)

        yield advance


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows under their columns' names: numbers to the right, the rest to the left."""
    lines = [dict(zip(rows[0], rows[0], strict=True))]
    lines += [{column: make_printable(text) for column, text in row.items()} for row in rows]
    widths = {column: max(_width(line[column]) for line in lines) for column in rows[0]}

    def align(column: str, text: str) -> str:
        space = " " * (widths[column] - _width(text))
        is_number = column.startswith(("norm", "largest", "below", "zero"))
        return space + text if is_number else text + space

    for line in lines:
        print("  ".join(align(column, text) for column, text in line.items()).rstrip())


def _width(text: str) -> int:
    """The columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)
