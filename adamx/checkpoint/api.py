"""Which format a file is in, and reading and writing it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from adamx.base.checks import check_choice
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.formats.adamx_safetensors import read_adamx, write_adamx
from adamx.checkpoint.formats.keras_archive import (
    read_archive,
    read_weights,
    write_archive,
    write_weights,
)
from adamx.checkpoint.formats.keras_h5 import is_whole_model, read_h5, write_h5
from adamx.checkpoint.formats.torch_save import LEGACY_SIGNATURE, read_torch, write_torch
from adamx.checkpoint.matching import Order
from adamx.checkpoint.untrusted.account import Progress
from adamx.checkpoint.untrusted.hdf5 import SIGNATURE, Reader
from adamx.checkpoint.writing.atomic import replace_file
from adamx.config.adam_config import AdamConfig

__all__ = ["FORMATS", "Format", "load", "save", "write"]

Format = Literal["safetensors", "torch", "keras", "h5", "weights.h5"]
FORMATS: tuple[str, ...] = get_args(Format)

_READERS: dict[str, Callable[[Path, AdamConfig | None, Progress | None], Checkpoint]] = {
    "safetensors": read_adamx,
    "torch": read_torch,
    "keras": read_archive,
    "h5": read_h5,
    "weights.h5": read_weights,
}
_Writer = Callable[
    [Path, Checkpoint, Path, Order | None, Progress | None],
    list[str],
]
_KERAS_WRITERS: dict[str, _Writer] = {
    "keras": write_archive,
    "h5": write_h5,
    "weights.h5": write_weights,
}
_SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".keras": "keras",
    ".weights.h5": "weights.h5",
    ".h5": "h5",
    ".hdf5": "h5",
}


def load(
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    config: AdamConfig | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Read the state of an Adam optimizer from a file of any framework.

    Args:
      path: a `.h5` file of Keras (TensorFlow 1.1, tf_keras's legacy and current optimizer,
        Keras 3), its `.keras` or `.weights.h5`; a file of `torch.save` with one optimizer's state
        dict anywhere in it; or adamx's own `.safetensors`.
      format: one of `FORMATS`; None to tell it from the content, whatever the file is called.
      config: hyperparameters in the place of the file's. Needed for `.weights.h5`, which has none.
      progress: called with the number of bytes just read.

    Returns:
      All that the file holds of the optimizer, and of the model's weights. Nothing in the file is
      executed, and memory is taken for what is there, not for what it claims.

    Raises:
      CheckpointError: the file is truncated, damaged, of another kind, or without the state of one
        Adam; the message names it.
      OSError: the file cannot be read.
      ImportError: the package is missing that reads the format; the message says what to install.
    """
    path = Path(path)
    if format is not None:
        check_choice("format", format, FORMATS)
    if config is not None and not isinstance(config, AdamConfig):
        raise TypeError(f"config: expected an AdamConfig, found {type(config).__name__}")
    with name_file(path, "file"):
        kind = format or _told_format(path)
    with name_file(path, f"{kind} file"):
        return _READERS[kind](path, config, progress)


def save(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    *,
    format: Format | None = None,
    template: str | os.PathLike[str] | None = None,
    order: Order | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write an optimizer state to a file. A crash leaves the file as it was.

    Args:
      path: where to.
      checkpoint: what to write.
      format: one of `FORMATS`; None to tell it from the suffix of `path`.
      template: an existing file of the model in this format. A copy of it is written, with the
        checkpoint's values instead of its weights, moments, iterations and hyperparameters, in its
        own order and names. Needed for Keras. For torch, None writes an optimizer's state dict,
        with the variables in the order of the model's weights; adamx's own format takes none.
      order: the file's names of the checkpoint's `params`, in their order, where they differ; or of
        those of `names`. Or, with a template, a mapping from its names, of weights and of the
        optimizer's variables, to those of the checkpoint.
      progress: called with the number of bytes just written.

    Between Keras and torch, the kernels of dense layers are transposed.

    Returns:
      What the file has no place for: names such as `params/hidden/kernel`; empty if all is in it.

    Raises:
      CheckpointError: the format cannot express the configuration; names or shapes do not fit the
        template; a value would lose precision.
      OSError, ImportError: as `load`.
    """
    return write(path, checkpoint, format, template, order, progress)


def write(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    format: Format | None,
    template: str | os.PathLike[str] | None,
    order: Order | None,
    progress: Progress | None,
    *,
    drain: bool = False,
) -> tuple[str, ...]:
    """`save`; with `drain`, the checkpoint may lose its arrays on the way, to save memory."""
    path = Path(path)
    if not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"checkpoint: expected a Checkpoint, found {type(checkpoint).__name__}")
    kind = format or _suffix_format(path)
    check_choice("format", kind, FORMATS)
    source = None if template is None else Path(template)
    if kind == "safetensors" and (source is not None or order is not None):
        raise CheckpointError(
            "template, order: expected none, since .safetensors keeps all as it is"
        )
    if kind in _KERAS_WRITERS and source is None:
        raise CheckpointError(
            f"{path}: expected template=, a {kind} file of the model that Keras saved after a step "
            "of training; it gives the architecture, the order and the names"
        )
    if source is not None:
        with name_file(source, "file"):
            found = _told_format(source)
        if found != kind:
            raise CheckpointError(f"{source}: expected a {kind} file as template, found {found}")
    with replace_file(path) as temporary:
        if kind == "safetensors":
            write_adamx(temporary, checkpoint, progress)
            left: list[str] = []
        elif kind == "torch":
            left = write_torch(temporary, checkpoint, source, order, drain)
            if progress:
                progress(temporary.stat().st_size)
        else:
            assert source is not None
            left = _KERAS_WRITERS[kind](temporary, checkpoint, source, order, progress)
    return tuple(left)


def _suffix_format(path: Path) -> str:
    for suffix, kind in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return kind
    raise CheckpointError(
        f"{path}: expected one of the suffixes {', '.join(_SUFFIXES)}, or format="
    )


def _told_format(path: Path) -> str:
    """The format, by content."""
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(SIGNATURE) or head[512:].startswith(SIGNATURE):
        with Reader.open(path) as reader:
            return "h5" if is_whole_model(reader) else "weights.h5"
    if head.startswith(b"PK\x03\x04"):
        return "torch" if b"data.pkl" in head or b"/version" in head else "keras"
    if head.startswith(LEGACY_SIGNATURE):
        return "torch"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    raise CheckpointError(
        "expected a checkpoint of Keras (HDF5 or .keras), torch or adamx (.safetensors), found "
        f"{'an empty file' if not head else 'something else'}"
    )
