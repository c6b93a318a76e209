"""Read and write checkpoints in any registered format."""

import contextlib
import dataclasses
import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from adamx.base.checks import check_choice
from adamx.base.errors import InvalidType
from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.fitting import fit, fit_moments
from adamx.checkpoint.format import FORMATS, FileFormat, Head, Source, Target
from adamx.checkpoint.matching import Order
from adamx.checkpoint.naming import check_told
from adamx.checkpoint.overrides import Override, check_override, list_contradictions, override
from adamx.checkpoint.untrusted.account import Progress
from adamx.checkpoint.writing.atomic import check_place, make_folder, replace_file
from adamx.config.adam_config import AdamConfig

__all__ = ["Format", "find_target", "load", "recognise", "save", "write"]

Format = Annotated[str, "one of FORMATS"]


def load(
    path: str | os.PathLike[str],
    *,
    config: Override | None = None,
    optimizer: str | None = None,
    weights: str | None = None,
    strict: bool = False,
    format: Format | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Read the state of an Adam optimizer from a file or folder of any framework.

    Args:
      path: a file, a folder or a prefix of files, in one of `FORMATS`.
      config: hyperparameters to use instead of the file's. A mapping of fields of `AdamConfig`,
        such as `{"learning_rate": 3e-4}`, changes only these fields. Formats that store no
        hyperparameters need an `AdamConfig`.
      optimizer: which of several optimizers to read: its dotted key in the file, such as "optG".
      weights: which of several models' weights are those of the optimizer: their dotted key.
      strict: whether to raise if the file does not store the name of each variable.
      format: one of `FORMATS`; None to detect it from the content, whatever the file is called.
      progress: called with the number of bytes just read.

    Returns:
      All that the file holds of the optimizer, and of the model's weights. Nothing in the file is
      executed, and sizes that it states are never trusted.

    Raises:
      CheckpointError: the file is truncated, damaged, of another kind, or without the state of one
        Adam; the message names it.
      OSError: the file cannot be read.
      ImportError: the package that reads the format is missing; the message says what to install.

    Warns:
      UserWarning: `config` is an `AdamConfig` that contradicts the file's hyperparameters. All of
        its fields count; a mapping changes only those that it names.
    """
    path = Path(path)
    if format is not None:
        check_choice("format", format, tuple(FORMATS))
    check_override(config)
    form = recognise(path) if format is None else FORMATS[format]
    source = Source(path, None, progress, optimizer=optimizer, weights=weights)
    checkpoint = _read_overridden(form, source, config)
    if strict:
        with name_file(path, form.name):
            check_told(checkpoint)
    return checkpoint


def _read_overridden(form: FileFormat, source: Source, config: Override | None) -> Checkpoint:
    """The checkpoint in a file, with the hyperparameters of the caller."""
    if not form.holds_config and isinstance(config, AdamConfig):
        return _read(form, dataclasses.replace(source, config=config), values=True)
    try:
        checkpoint = _read(form, source, values=True)
    except CheckpointError as error:
        # The file has hyperparameters that adamx does not know, but nothing else is wrong.
        if error.argument != "config" or not isinstance(config, AdamConfig):
            raise
        return _read(form, dataclasses.replace(source, config=config), values=True)
    if config is None:
        return checkpoint
    with name_file(source.path, form.name):
        new = override(checkpoint, config)
    if isinstance(config, AdamConfig):
        changed = list_contradictions(checkpoint.groups, config)
        if changed:
            warnings.warn(
                f"{source.path}: config= contradicts the file: {'; '.join(changed)}. To change "
                "some fields and keep the others, pass a mapping, such as "
                "config={'learning_rate': 3e-4}",
                stacklevel=3,
            )
    return new


def save(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    *,
    format: Format | None = None,
    template: str | os.PathLike[str] | None = None,
    order: Order | None = None,
    optimizer: str | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write an optimizer state to a file. A crash leaves the file as it was.

    Args:
      path: where to write. If the format is a folder, nothing may exist there.
      checkpoint: what to write.
      format: one of `FORMATS`; None to choose it by the suffix of `path`.
      template: an existing file or folder of the model in this format. A copy of it is written,
        with the checkpoint's values instead of its weights, moments, counts and hyperparameters, in
        its order and names. Some formats need one (Keras), some take none (adamx's own); for torch,
        None writes an optimizer's state dict, with the variables in the checkpoint's order.
      order: where names differ, the file's names of the checkpoint's `params` or `names`, in their
        order. Or, with a template, a mapping from its names of weights and of variables to those of
        the checkpoint. torch knows parameters by position only: without a template, if
        `checkpoint.ordered` is False, give `checkpoint.names` in the model's order.
      optimizer: which of several optimizers in the template: its dotted key.
      weights: which of several models' weights in the template: their dotted key.
      progress: called with the number of bytes just written.

    Between Keras and torch, the kernels of dense layers are transposed.

    Returns:
      What the file cannot hold: names such as `params/hidden/kernel`; empty if it holds all. Also
      parts of the template that (may) count steps but are copied unchanged, such as `scheduler.pt`.

    Raises:
      CheckpointError: the format cannot express the configuration; names or shapes do not fit the
        template; a value would lose precision.
      OSError, ImportError: as `load`.
    """
    if not isinstance(checkpoint, Checkpoint):
        found = type(checkpoint).__name__
        raise InvalidType(where="checkpoint", expected="a Checkpoint", found=found)
    copy = dataclasses.replace(checkpoint)
    keys = {"optimizer": optimizer, "weights": weights}
    return write(Path(path), copy, format, template, order, progress, **keys)


def write(
    path: Path,
    checkpoint: Checkpoint,
    format: Format | None,
    template: str | os.PathLike[str] | None,
    order: Order | None,
    progress: Progress | None,
    *,
    optimizer: str | None = None,
    weights: str | None = None,
) -> tuple[str, ...]:
    """Like `save`, but drop the checkpoint's arrays on the way: none is in memory twice."""
    form = find_target(path, format, template)
    # Of a template's hyperparameters, only those matter that decide which variables exist.
    config, source = checkpoint.groups[0].config, None
    if template is not None:
        source = Source(Path(template), config, progress, optimizer=optimizer, weights=weights)
    _check_template(form, path, source, order)
    form.check(checkpoint, source)
    new, left = _fit(form, checkpoint, source, order)
    for field in ("params", "mu", "nu", "nu_max", "extra"):
        dict(checkpoint.drain(field))
    place = make_folder if form.is_folder else replace_file
    with _naming_extra(form), place(path) as temporary:
        left += form.write(Target(temporary, progress), new, source)
    return tuple(left)


def find_target(
    path: Path, format: Format | None, template: str | os.PathLike[str] | None = None
) -> FileFormat:
    """The format to write: by `format`, by the suffix, or by a template that is a folder.

    Raises:
      CheckpointError: none of them decides, or adamx only reads the format.
      OSError, ImportError: there can be no file at `path`; a package is missing.
    """
    if format is not None:
        check_choice("format", format, tuple(FORMATS))
    if format is None and not _list_by_suffix(path) and template and Path(template).is_dir():
        form = recognise(Path(template))
    else:
        form = _find_by_suffix(path) if format is None else FORMATS[format]
    if not form.writable:
        raise CheckpointError(
            where=str(path),
            expected="a format that adamx writes",
            found=form.description,
            remedy=form.instead,
            argument="format",
        )
    check_place(path, is_folder=form.is_folder)
    with _naming_extra(form):
        for package in form.packages:
            importlib.import_module(package)
    return form


def recognise(path: Path) -> FileFormat:
    """The format of a file or folder, by content.

    Raises:
      CheckpointError: it is of none.
    """
    with name_file(path, "file"):
        head = Head.of(path)
        for form in FORMATS.values():
            if form.matches(head):
                return form
        known = sorted(form.description for form in FORMATS.values())
        raise CheckpointError(
            expected=f"a checkpoint of {'; '.join(known)}",
            found=head.describe(),
            remedy="pass the file or folder that the training program saved",
        )


def _read(form: FileFormat, source: Source, *, values: bool) -> Checkpoint:
    kind = f"{form.name} file" if values else "template"
    with name_file(source.path, kind), _naming_extra(form):
        chosen = {"optimizer": source.optimizer, "weights": source.weights}
        chosen = {name: key for name, key in chosen.items() if key is not None}
        if chosen and not form.has_selectors:
            raise CheckpointError(
                where=", ".join(chosen),
                expected=f"none, since {form.description} holds one optimizer and one model",
                found=", ".join(map(repr, chosen.values())),
                argument=next(iter(chosen)),
            )
        if source.config is None and not form.holds_config:
            raise form.request_config(source)
        return form.read(source, values=values)


def _fit(
    form: FileFormat, checkpoint: Checkpoint, source: Source | None, order: Order | None
) -> tuple[Checkpoint, list[str]]:
    """The checkpoint that `form` is to write, and what it leaves out."""
    if source is not None:
        plan = _read(form, dataclasses.replace(source, progress=None), values=False)
        try:
            return fit(checkpoint, plan, order)
        except CheckpointError as error:
            raise error.within(str(source.path)) from error.__cause__
    if form.framework is not None:
        return fit_moments(checkpoint, form.framework, order)
    return dataclasses.replace(checkpoint), []


def _check_template(
    form: FileFormat, path: Path, source: Source | None, order: Order | None
) -> None:
    """Raise unless there is a template where the format needs or allows one."""
    if form.template == "none" and (source is not None or order is not None):
        raise CheckpointError(
            where="template, order",
            expected=f"neither, since {form.description} stores the checkpoint as it is",
        )
    if form.template == "required" and source is None:
        raise CheckpointError(
            where=str(path),
            expected=f"template=, a checkpoint of this model in the format {form.name!r}",
            remedy="It provides architecture, order and names: save it after a step of training",
            argument="template",
        )
    if source is not None and (found := recognise(source.path)) is not form:
        raise CheckpointError(
            where=str(source.path),
            expected=f"a template in the format {form.name!r}",
            found=found.name,
            argument="template",
        )


def _list_by_suffix(path: Path) -> list[tuple[str, FileFormat]]:
    name = path.name.lower()
    return [(s, form) for form in FORMATS.values() for s in form.suffixes if name.endswith(s)]


def _find_by_suffix(path: Path) -> FileFormat:
    fitting = _list_by_suffix(path)
    if not fitting:
        known = [s for form in FORMATS.values() if form.writable for s in form.suffixes]
        raise CheckpointError(
            where=str(path),
            expected=f"one of the suffixes {listed(known, most=99)}, or format=",
            argument="format",
        )
    return max(fitting, key=lambda pair: len(pair[0]))[1]


@contextlib.contextmanager
def _naming_extra(form: FileFormat) -> Iterator[None]:
    """Say what to install where a package is missing."""
    try:
        yield
    except ImportError as error:
        if form.extra is None:
            raise
        package = (error.name or "").partition(".")[0] or form.extra
        raise ImportError(
            f'{form.description} needs the package {package}: pip install "adamx[{form.extra}]", '
            f'or in a checkout of adamx pip install -e ".[{form.extra}]"',
            name=error.name,
        ) from error
