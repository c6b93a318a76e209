"""TensorFlow's checkpoints: of TensorFlow 1's Saver, tf.train.Checkpoint, and in a SavedModel."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import check_amsgrad
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, register
from adamx.checkpoint.formats._bundle_entries import Bundle
from adamx.checkpoint.formats._bundle_graph import GRAPH
from adamx.checkpoint.formats._bundle_names import find_in_names
from adamx.checkpoint.formats._bundle_objects import find_in_objects
from adamx.checkpoint.formats._bundle_optimizer import Optimizer
from adamx.checkpoint.formats._bundle_settings import (
    read_settings,
    read_steps,
    request_settings,
    warn_of_contradictions,
)
from adamx.checkpoint.untrusted.leveldb_table import FOOTER, MAGIC

__all__ = ["TensorFlowBundle"]

_INDEX = ".index"
_SHARD = re.compile(r"(.+)\.data-\d{5,}-of-\d{5,}")
_NEWEST = "checkpoint"  # a text file that names the newest of several
_NAMED = re.compile(rb'^model_checkpoint_path: "([^"\\\n]{1,1000})"', re.MULTILINE)
_SAVED_MODEL = ("variables", "variables")
# How an index begins: a key of no letters, and the number of shards.
_START = re.compile(rb"\x00\x00[\x02-\x7f]\x08", re.DOTALL)


class TensorFlowBundle(FileFormat):
    """An index, and the shards beside it; TensorFlow is not needed."""

    name = "tensorflow"
    title = "TensorFlow checkpoints"
    names = "told"
    config_of = "keras"
    suffixes = (_INDEX,)
    holds_config = False
    has_selectors = True
    writable = False
    instead = (
        "save a Keras file with a template of the model, load it in TensorFlow, and save it there "
        "with tf.train.Checkpoint"
    )

    def matches(self, head: Head) -> bool:
        """Whether it is an index, the prefix of one, or a folder with one or a SavedModel."""
        if head.start:
            return _START.match(head.start) is not None and head.examine(_ends_table)
        if f"{head.path.name}{_INDEX}" in head.entries and not head.path.is_dir():
            return True
        if any(name.endswith(_INDEX) for name in head.entries):
            return any(_SHARD.fullmatch(name) for name in head.entries)
        return head.path.joinpath(*_SAVED_MODEL).with_suffix(_INDEX).is_file()

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read weights and moments."""
        del values  # there are no templates
        config = source.config
        assert config is not None  # holds_config is False
        bundle, optimizer = _open(source)
        told = read_settings(bundle, optimizer)
        count, factors = read_steps(bundle, optimizer, config)
        check_amsgrad(bool(optimizer.nu_max), config)
        warn_of_contradictions(source.path, told | factors, optimizer, config)
        arrays = {
            field: _read_all(bundle, getattr(optimizer, field))
            for field in ("weights", "mu", "nu", "nu_max", "averages")
        }
        return Checkpoint(
            framework=optimizer.framework,
            version=None,
            config=config,
            count=count,
            names=tuple(optimizer.mu),
            params=arrays["weights"],
            mu=arrays["mu"],
            nu=arrays["nu"],
            nu_max=arrays["nu_max"],
            extra={f"average/{name}": array for name, array in arrays["averages"].items()},
            naming=dict.fromkeys(optimizer.mu, optimizer.naming),
            ordered=optimizer.ordered,
            not_read=tuple(name for name in bundle.entries if name not in bundle.read),
            notes=tuple(optimizer.notes),
        )

    def outline(self, path: Path) -> Iterable[str]:
        """The entries of the index."""
        for name, entry in Bundle(_find_prefix(path), None).entries.items():
            yield f"{name}: {entry.dtype or 'no numbers'} of shape {entry.shape}"

    def request_config(self, source: Source) -> CheckpointError:
        """The error for a missing `config=`, with what the file says about it."""
        return request_settings(*_open(source))


def _open(source: Source) -> tuple[Bundle, Optimizer]:
    bundle = Bundle(_find_prefix(source.path), source.progress)
    if GRAPH in bundle.entries:
        return bundle, find_in_objects(bundle, source.optimizer, source.weights)
    if source.weights is not None:
        raise CheckpointError(
            where="weights",
            expected="none, since TensorFlow 1 has one model in a checkpoint",
            found=repr(source.weights),
            argument="weights",
        )
    return bundle, find_in_names(bundle, source.optimizer)


def _read_all(bundle: Bundle, keys: dict[str, str]) -> dict[str, np.ndarray]:
    return {name: bundle.array(key) for name, key in keys.items()}


def _ends_table(path: Path) -> bool:
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - FOOTER))
        return file.read().endswith(MAGIC)


def _find_prefix(path: Path) -> Path:
    """What all files of the checkpoint begin with."""
    if path.is_file() and path.name.endswith(_INDEX):
        return path.with_name(path.name.removesuffix(_INDEX))
    if path.is_dir():
        return _find_in_folder(path)
    return path


def _find_in_folder(folder: Path) -> Path:
    prefix = folder.joinpath(*_SAVED_MODEL)
    if prefix.with_suffix(_INDEX).is_file():
        return prefix
    found = sorted(path.name.removesuffix(_INDEX) for path in folder.glob(f"*{_INDEX}"))
    newest = folder / _NEWEST
    if newest.is_file():
        with newest.open("rb") as file:
            match = _NAMED.search(file.read(1 << 16))
        # A folder may have been moved, so of the path in the file the name alone counts.
        name = match[1].decode().replace("\\", "/").rpartition("/")[2] if match else ""
        if name not in found:
            raise CheckpointError(
                where=_NEWEST,
                expected=f"the name of one of {listed(found)}",
                found=repr(name) if match else "none",
            )
        return folder / name
    if len(found) != 1:
        raise CheckpointError(
            expected=f"one checkpoint, or a file {_NEWEST} that names the newest",
            found=listed(found),
            remedy=f"load one of them, such as {found[-1]}",
        )
    return folder / found[0]


register(TensorFlowBundle())
