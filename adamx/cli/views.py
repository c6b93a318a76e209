"""Read what can be read of a file that `load` refuses, and collect the reasons."""

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adamx.checkpoint import Checkpoint, CheckpointError, load
from adamx.checkpoint.errors import name_file
from adamx.checkpoint.format import FileFormat
from adamx.config.adam_config import AdamConfig

__all__ = ["View", "view"]

_MOST_LINES = 100
_MOST_CHOICES = 8


@dataclasses.dataclass(frozen=True)
class View:
    """A file as it is read with some options that the user did not give.

    Attributes:
      options: arguments of `load`, without hyperparameters.
      checkpoint: what these options give; None if it still cannot be read.
      is_configured: whether the hyperparameters are the file's or the user's.
      obstacles: why it cannot be read without these options.
      outline: what is in the file, a text for each part, if there is no checkpoint.
    """

    options: Mapping[str, str]
    checkpoint: Checkpoint | None
    is_configured: bool
    obstacles: tuple[CheckpointError, ...]
    outline: tuple[str, ...] = ()


def view(path: Path, form: FileFormat, **options: Any) -> Iterator[View]:
    """Each optimizer in a file, as far as it can be read.

    Missing hyperparameters are made up. Of several optimizers each is read, of several models the
    first.

    Args:
      path: of the file.
      form: its format.
      **options: arguments of `load` that the user gave.
    """
    given = {name: value for name, value in options.items() if value is not None}

    def look(more: dict[str, Any], obstacles: tuple[CheckpointError, ...]) -> Iterator[View]:
        told = {name: key for name, key in more.items() if name != "config"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                checkpoint = load(path, **(given | more))
        except CheckpointError as error:
            found, is_new = (*obstacles, error), error.argument not in given | more
            if error.argument == "config" and is_new:
                yield from look({**more, "config": AdamConfig()}, found)
            elif error.where.endswith("amsgrad") and more.get("config") == AdamConfig():
                yield from look({**more, "config": AdamConfig(amsgrad=True)}, obstacles)
            elif is_new and error.argument == "optimizer" and error.choices:
                for choice in error.choices[:_MOST_CHOICES]:
                    yield from look({**more, "optimizer": choice}, found)
            elif is_new and error.argument == "weights" and error.choices:
                yield from look({**more, "weights": error.choices[0]}, found)
            else:
                yield View(told, None, False, found, _outline(form, path))
        else:
            yield View(told, checkpoint, "config" not in more, obstacles)

    return look({}, ())


def _outline(form: FileFormat, path: Path) -> tuple[str, ...]:
    """What a file holds; empty if that cannot be read either."""
    lines: list[str] = []
    with contextlib.suppress(CheckpointError, ImportError), name_file(path, form.name):
        lines.extend(itertools.islice(form.outline(path), _MOST_LINES))
    return tuple(lines)
