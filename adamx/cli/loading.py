"""The options that say how a file is read, and the checkpoint that they give."""

import argparse
import ast
import dataclasses
import json
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamx.base.errors import AdamxError
from adamx.checkpoint import FORMATS, Checkpoint, CheckpointError, load
from adamx.checkpoint.api import recognise
from adamx.checkpoint.errors import convert_error, name_file
from adamx.checkpoint.format import FileFormat
from adamx.checkpoint.naming import check_told
from adamx.checkpoint.overrides import override
from adamx.cli.output import make_printable, measure_size, show_progress
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_config import GENERATIONS

__all__ = ["add_options", "find_config", "load_file", "read_order"]

_FIELDS = tuple(field.name for field in dataclasses.fields(AdamConfig))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all commands have."""
    bare = ", ".join(form.name for form in FORMATS.values() if not form.holds_config)
    about = "hyperparameters as JSON: Keras's get_config() for files of Keras and TensorFlow, a "
    about += f"parameter group for torch's; needed for files without them ({bare})"
    parser.add_argument("--config", type=Path, metavar="FILE", help=about)
    about = "the version of Keras that wrote --config, if its keys do not identify it"
    parser.add_argument("--generation", choices=GENERATIONS, help=about)
    about = "set a hyperparameter: learning_rate=1e-3, convention=torch, clip_value=None; may be "
    about += "repeated"
    settings = {"type": _setting, "action": "append", "default": []}
    parser.add_argument("--set", metavar="FIELD=VALUE", help=about, **settings)
    about = "which of several optimizers: its dotted key in the file"
    parser.add_argument("--optimizer", metavar="KEY", help=about)
    about = "which of several models' weights: their dotted key in the file"
    parser.add_argument("--weights", metavar="KEY", help=about)
    about = "names of variables that the file does not name: one per line, in the file's order"
    parser.add_argument("--names", type=Path, metavar="FILE", help=about)
    about = "fail if the names of variables are not stored in the file"
    parser.add_argument("--strict", action="store_true", help=about)


def _setting(text: str) -> tuple[str, Any]:
    """A field of AdamConfig and its value, of `field=value`."""
    field, _, value = text.partition("=")
    if field not in _FIELDS:
        raise argparse.ArgumentTypeError(f"expected FIELD=VALUE, with one of {', '.join(_FIELDS)}")
    try:
        return field, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return field, value


def load_file(
    path: Path,
    arguments: argparse.Namespace,
    *,
    prefers_own: bool = False,
    default: AdamConfig | None = None,
) -> tuple[Checkpoint, Checkpoint]:
    """The checkpoint in a file, and the same with the hyperparameters of `--set`.

    Args:
      path: the file.
      arguments: of the command, with the options of `add_options`.
      prefers_own: whether a file that has hyperparameters keeps them in spite of `--config`.
      default: the hyperparameters of a format without them, if the user gives none.
    """
    settings, form = dict(arguments.set), recognise(path)
    config = find_config(form, arguments, prefers_own=prefers_own)
    is_made_up = config is None and default is not None and not form.holds_config
    if is_made_up:
        config = default
    with (
        warnings.catch_warnings(record=True) as caught,
        show_progress(f"reading {path.name}", measure_size(path)) as progress,
    ):
        warnings.simplefilter("always")
        keys = {"optimizer": arguments.optimizer, "weights": arguments.weights}
        try:
            checkpoint = load(path, config=config, progress=progress, **keys)
        except CheckpointError as error:
            # The format stores hyperparameters, but this file has none: `--set` provides them.
            is_bare = error.argument == "config" and error.where == f"{path}: config"
            if config is not None or not settings or not is_bare:
                raise
            convention = {"convention": "torch"} if form.config_of == "torch" else {}
            config = _make_config(convention | settings)
            checkpoint = load(path, config=config, progress=progress, **keys)
    names = read_order(arguments.names)
    with name_file(path, form.name):
        is_told = set(checkpoint.naming.values()) == {"file"}
        if names is not None and is_told:
            note = f"--names is not used for {path}, which stores the names of its variables"
            print(make_printable(f"adamx: warning: {note}"), file=sys.stderr)
        elif names is not None:
            checkpoint = checkpoint.rename(names)
        if arguments.strict:
            check_told(checkpoint)
    for warning in () if is_made_up else caught:  # of contradictions to hyperparameters
        print(make_printable(f"adamx: warning: {warning.message}"), file=sys.stderr)
    if not settings:
        return checkpoint, checkpoint
    try:
        return checkpoint, override(checkpoint, settings)
    except CheckpointError as error:
        where = error.where.removeprefix("config").removeprefix(": ")
        raise error.replace(where=f"--set {where}".rstrip(), argument=None) from error


def find_config(
    form: FileFormat, arguments: argparse.Namespace, *, prefers_own: bool = False
) -> AdamConfig | None:
    """The hyperparameters to load a file with; None for its own. For arguments see `load_file`."""
    if arguments.config is not None and not (prefers_own and form.holds_config):
        return _read_config(arguments.config, arguments.generation, form)
    if arguments.set and not form.holds_config:
        return _make_config(dict(arguments.set))
    return None


def _make_config(settings: Mapping[str, Any]) -> AdamConfig:
    try:
        return AdamConfig(**settings)
    except AdamxError as error:
        raise convert_error(error, where=f"--set {error.where}".rstrip()) from error


def _read_config(path: Path, generation: Any, form: FileFormat) -> AdamConfig:
    """The hyperparameters in a JSON file, of the framework that wrote the checkpoint."""
    try:
        described = json.loads(path.read_bytes())
        is_torchs = isinstance(described, Mapping) and bool({"lr", "betas"} & described.keys())
        if form.config_of == "torch" and not is_torchs:
            raise CheckpointError(
                expected=f"a parameter group of torch, with lr and betas, for {form.description}",
                found="the configuration of another framework, whose Adam differs from torch's",
                remedy="pass a parameter group, or set single fields with --set FIELD=VALUE",
            )
        if form.config_of == "keras" and is_torchs:
            raise CheckpointError(
                expected=f"the get_config() of a Keras optimizer, for {form.description}",
                found="a parameter group of torch, whose Adam differs from Keras's",
                remedy="pass the get_config(), or set single fields with --set FIELD=VALUE",
            )
        if is_torchs:
            return AdamConfig.from_torch(described)
        return AdamConfig.from_keras(described, generation)
    except (TypeError, ValueError) as error:
        raise convert_error(error).within(str(path)) from error


def read_order(path: Path | None) -> list[str] | None:
    """The names in a text file, one a line, without comments."""
    if path is None:
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return [name for name in names if name]
