"""Keras's `.keras`: an archive with a configuration and numbered variables."""

import contextlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._keras_layers import list_layers
from adamx.checkpoint.formats._keras_names import name_slots
from adamx.checkpoint.formats._keras_numbered import read_numbered, write_numbered
from adamx.checkpoint.formats._keras_optimizers import describe_rest, read_accumulation
from adamx.checkpoint.formats._keras_settings import (
    find_optimizer,
    is_constant,
    read_config,
    write_settings,
)
from adamx.checkpoint.formats._keras_slots import SlotOrder, unpack
from adamx.checkpoint.untrusted.account import Account, parse_json
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.untrusted.zip_reader import (
    Member,
    list_members,
    open_member,
    read_member,
    verify,
)
from adamx.checkpoint.writing.zip_writer import large_member
from adamx.config.keras_config import Generation

__all__ = ["KerasArchive"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_HEADER = re.compile(
    rb"PK\x03\x04.{26}(?:metadata\.json|config\.json|model\.weights\.h5)", re.DOTALL
)


class KerasArchive(FileFormat):
    """What `model.save` of Keras 3 and tf_keras writes."""

    name = "keras"
    title = "Keras 3 and tf_keras"
    names = "inferred from the order of the layers"
    config_of = "keras"
    suffixes = (".keras",)
    extra = "checkpoint"
    packages = ("h5py",)
    template = "required"

    def matches(self, head: Head) -> bool:
        """Whether a member that Keras writes is among the first."""
        return head.start.startswith(b"PK\x03\x04") and bool(_HEADER.search(head.start))

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the configuration and the variables; of a template, the configuration is its own."""
        path, config = source.path, source.config if values else None
        parts = _find_parts(path)
        account = Account(path.stat().st_size)
        described = _read_json(path, parts[_CONFIG], account)
        version = str(_read_json(path, parts[_METADATA], account).get("keras_version", ""))
        generation: Generation = "keras3" if _read_major(version) >= 3 else "tf_keras"
        optimizer = find_optimizer(_list_optimizer(described), generation == "keras3", config)
        settings = optimizer.settings
        with (
            _open_weights(path, parts[_WEIGHTS], checked=values) as weights,
            Reader.open(weights, source.progress, values, account) as reader,
        ):
            layers = list_layers(described)
            held = read_numbered(reader, layers, optimizer.is_scaled, values=values)
        is_given = config is not None
        config = config or read_config(optimizer.adam, generation, is_template=not values)
        order = SlotOrder(
            has_rate=generation == "keras3"
            and not isinstance(settings.get("learning_rate"), Mapping),
            averages=bool(settings.get("use_ema")),
            interleaved=True,
            amsgrad=config.amsgrad,
            steps=read_accumulation(settings),
        )
        names, notes = name_slots(held, order, has_flags=True)
        return unpack(
            held.optimizer,
            names,
            order,
            framework=generation,
            version=version,
            config=config,
            params=held.weights,
            notes=notes + describe_rest(settings, held.is_scaled, held.loss_scale),
            momentum=settings.get("ema_momentum"),
            config_is_given=is_given,
            is_template=not values,
        )

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write a copy of the template with other values."""
        assert template is not None
        old = template.path
        parts = _find_parts(old)
        with zipfile.ZipFile(old) as archive:
            described = _read_json(old, parts[_CONFIG], Account(old.stat().st_size))
            optimizer = find_optimizer(
                _list_optimizer(described), new.framework == "keras3", new.config
            )
            settings = write_settings(new, optimizer.adam)
            optimizer.adam["config"] = settings
            order = SlotOrder(
                has_rate=new.framework == "keras3" and is_constant(new.config),
                averages=any(name.startswith("average/") for name in new.extra),
                interleaved=True,
                amsgrad=new.config.amsgrad,
                steps=read_accumulation(settings),
            )
            with (
                _open_weights(old, parts[_WEIGHTS], checked=False) as old_weights,
                Reader.open(old_weights, target.progress) as reader,
                large_member(target.path, _WEIGHTS) as weights,
            ):
                layers = list_layers(described)
                write_numbered(reader, weights, new, layers, order, optimizer.is_scaled)
            with zipfile.ZipFile(target.path, "a") as written:
                written.writestr(_CONFIG, json.dumps(described))
                for info in archive.infolist():
                    if info.filename not in (_CONFIG, _WEIGHTS) and not info.is_dir():
                        with archive.open(info) as part, written.open(info.filename, "w") as copy:
                            shutil.copyfileobj(part, copy)
        return []


def _list_optimizer(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """The serialised optimizer of a model's configuration."""
    compiled = described.get("compile_config")
    optimizer = compiled.get("optimizer") if isinstance(compiled, Mapping) else None
    settings = optimizer.get("config") if isinstance(optimizer, Mapping) else None
    if not isinstance(optimizer, Mapping) or not isinstance(settings, Mapping):
        raise CheckpointError(
            where=_CONFIG,
            expected="the configuration of an optimizer in compile_config",
            found="none: the model was not compiled when it was saved",
        )
    return optimizer


def _read_major(version: str) -> int:
    head = version.partition(".")[0]
    if not head.isdecimal():
        raise CheckpointError(where=_METADATA, expected="a keras_version", found=f"{version!r:.80}")
    return int(head[:9])


def _find_parts(path: Path) -> dict[str, Member]:
    """The members of the archive that Keras puts there, by name."""
    found: dict[str, Member] = {}
    for member in list_members(path):
        if member.name in (_CONFIG, _METADATA, _WEIGHTS):
            if member.name in found:
                raise CheckpointError(f"the archive has two members called {member.name}")
            found[member.name] = member
    for name in (_CONFIG, _METADATA, _WEIGHTS):
        if name not in found:
            raise CheckpointError(expected=f"{name} in the archive", found="none")
    return found


def _read_json(path: Path, member: Member, account: Account) -> dict[str, Any]:
    value = parse_json(read_member(path, member), account)
    if not isinstance(value, dict):
        raise CheckpointError(where=member.name, expected="a JSON object", found="another value")
    return value


@contextlib.contextmanager
def _open_weights(path: Path, member: Member, checked: bool) -> Iterator[io.BufferedReader]:
    """The weights as a stream within the archive; their checksum is verified in parallel."""
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        check = pool.submit(verify, path, member) if checked else None
        yield open_member(file, member)
        if check is not None:
            check.result()


register(KerasArchive())
