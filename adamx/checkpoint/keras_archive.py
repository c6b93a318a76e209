"""Files of Keras whose variables are numbered: `.keras` archives and `.weights.h5`."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adamx.checkpoint.files import CheckpointError, Progress
from adamx.checkpoint.fitting import fitted
from adamx.checkpoint.hdf5 import Reader
from adamx.checkpoint.keras_layers import Layer, Variable, layers_in, layers_of, name_variables
from adamx.checkpoint.keras_state import (
    Layout,
    config_of,
    is_constant,
    keras_settings,
    pack,
    unpack,
)
from adamx.checkpoint.record import Checkpoint
from adamx.config import AdamConfig
from adamx.keras_config import Generation

__all__ = ["read_archive", "read_weights", "write_archive", "write_weights"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_OPTIMIZER = "optimizer/vars"
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """What an HDF5 file of numbered variables holds."""

    variables: dict[str, Variable]  # by path, in the model's order where that is known
    ordered: bool
    weights: dict[str, np.ndarray]  # by name
    optimizer: list[np.ndarray]

    def trained(self) -> list[str]:
        return [variable.name for variable in self.variables.values() if variable.trained]


def read_archive(
    path: Path, config: AdamConfig | None, progress: Progress | None, values: bool = True
) -> Checkpoint:
    """Read a `.keras` file of tf_keras or Keras 3; without `values`, shapes and dtypes alone."""
    with _opened(path) as archive:
        described = _json(archive, _CONFIG)
        version = str(_json(archive, _METADATA).get("keras_version", ""))
        generation: Generation = "keras3" if _major(version) >= 3 else "tf_keras"
        compiled = described.get("compile_config")
        optimizer = compiled.get("optimizer") if isinstance(compiled, Mapping) else None
        settings = optimizer.get("config") if isinstance(optimizer, Mapping) else None
        if not isinstance(settings, Mapping):
            raise CheckpointError(
                "config.json: expected the configuration of an optimizer in compile_config, found "
                "none: the model was not compiled when it was saved"
            )
        with (
            _member(archive, path, checked=values) as stream,
            Reader.open(stream, progress, values) as reader,
        ):
            held = _read_numbered(reader, layers_of(described))
        is_given = config is not None
        config = config or config_of(optimizer, generation)
        has_rate = generation == "keras3" and not isinstance(settings.get("learning_rate"), Mapping)
        averages = bool(settings.get("use_ema"))
        layout = Layout(has_rate, averages, interleaved=True, amsgrad=config.amsgrad)
        return unpack(
            held.optimizer,
            _names(held, layout),
            layout,
            framework=generation,
            version=version,
            config=config,
            params=held.weights,
            momentum=settings.get("ema_momentum"),
            config_is_given=is_given,
        )


def read_weights(
    path: Path, config: AdamConfig | None, progress: Progress | None, values: bool = True
) -> Checkpoint:
    """Read a `.weights.h5` file of Keras 3 or tf_keras, which holds no configuration."""
    if config is None:
        raise CheckpointError(
            "config: expected an AdamConfig, since a .weights.h5 file holds no hyperparameters; "
            'give config=AdamConfig.from_keras({...}, "keras3") with those of the run'
        )
    with Reader.open(path, progress, values) as reader:
        held = _read_numbered(reader, None)
    layout = _told_layout(held, config)
    return unpack(
        held.optimizer,
        _names(held, layout),
        layout,
        framework="keras3" if layout.has_rate or callable(config.learning_rate) else "tf_keras",
        version=None,
        config=config,
        params=held.weights,
        config_is_given=values,
    )


def write_archive(
    path: Path,
    checkpoint: Checkpoint,
    template: Path,
    order: Sequence[str] | None,
    progress: Progress | None,
) -> list[str]:
    """Write a copy of a `.keras` file with the values of `checkpoint`; return what was left out."""
    target = read_archive(template, None, None, values=False)
    result, left = fitted(checkpoint, target, order)
    with (
        _opened(template) as archive,
        _member(archive, template, checked=False) as stream,
        Reader.open(stream, progress) as reader,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        described = _json(archive, _CONFIG)
        optimizer = described["compile_config"]["optimizer"]
        optimizer["config"] = keras_settings(result, optimizer)
        weights = Path(folder) / _WEIGHTS
        _write_numbered(reader, weights, result, layers_of(described))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as written:
            for info in archive.infolist():
                if info.filename == _CONFIG:
                    written.writestr(_CONFIG, json.dumps(described))
                elif info.filename == _WEIGHTS:
                    written.write(weights, _WEIGHTS)
                elif not info.is_dir():
                    with archive.open(info) as old, written.open(info.filename, "w") as new:
                        shutil.copyfileobj(old, new, _BLOCK)
    return left


def write_weights(
    path: Path,
    checkpoint: Checkpoint,
    template: Path,
    order: Sequence[str] | None,
    progress: Progress | None,
) -> list[str]:
    """Write a copy of a `.weights.h5` file with the values of `checkpoint`."""
    any_rate = dataclasses.replace(checkpoint.config, learning_rate=0.0, decay=0.0)
    target = read_weights(template, any_rate, None, values=False)
    result, left = fitted(checkpoint, target, order)
    keras_settings(result, {})
    with Reader.open(template, progress) as reader:
        _write_numbered(reader, path, result, None)
    return [*left, "config"]


def _read_numbered(reader: Reader, layers: list[Layer] | None) -> _Numbered:
    group = reader.group(_OPTIMIZER)
    own = {} if group is None else reader.datasets(group)
    if not own:
        raise CheckpointError(
            "expected the variables of an optimizer, found none. tf_keras's legacy optimizers "
            "write none into .keras files: save as .h5 there. save_weights writes them only if "
            "the model is compiled"
        )
    if list(own) != [str(index) for index in range(len(own))]:
        raise CheckpointError(f"{_OPTIMIZER}: expected the names 0 to {len(own) - 1}, found others")
    variables, ordered = _variables(reader, layers)
    arrays = {v.name: reader.array(reader.member(path)) for path, v in variables.items()}
    if len(arrays) != len(variables):
        raise CheckpointError("two layers have the same name")
    return _Numbered(variables, ordered, arrays, [reader.array(d) for d in own.values()])


def _variables(reader: Reader, layers: list[Layer] | None) -> tuple[dict[str, Variable], bool]:
    """The model's variables by path, and whether they are in the optimizer's order."""
    root = reader.group("")
    paths, names = {}, {}
    for path, dataset in reader.datasets(root).items():
        top = path.partition("/")[0]
        if top in ("optimizer", "metrics") or path.rpartition("/")[0].rpartition("/")[2] != "vars":
            continue
        paths[path] = dataset.dtype.kind in "fV"
        group = path.rpartition("/")[0]
        name = reader.text(reader.group(group), "name")
        if name is not None:
            names[group.removesuffix("/vars")] = name
    ordered = True
    if layers is None:
        layers, ordered = layers_in(paths, names)
    variables, named = name_variables(layers, paths, names)
    return variables, ordered and named


def _names(held: _Numbered, layout: Layout) -> list[str] | None:
    """The variables of the optimizer, if the file tells them: number and shapes must agree."""
    trained = held.trained()
    count = layout.variables(len(held.optimizer))
    if not held.ordered or len(trained) != count:
        return None
    for (kind, index), array in zip(layout.kinds(count), held.optimizer, strict=True):
        if kind not in ("count", "rate") and array.shape != held.weights[trained[index]].shape:
            return None
    return trained


def _told_layout(held: _Numbered, config: AdamConfig) -> Layout:
    """The one layout that the shapes of the variables allow."""
    fitting = []
    for has_rate in (True, False):
        for averages in (False, True):
            layout = Layout(has_rate, averages, interleaved=True, amsgrad=config.amsgrad)
            with contextlib.suppress(CheckpointError):
                if _is_consistent(held, layout):
                    fitting.append(layout)
    named = [layout for layout in fitting if _names(held, layout)]
    fitting = named if len(named) == 1 else fitting
    if len(fitting) != 1:
        raise CheckpointError(
            f"optimizer/vars: expected the variables of one Adam with amsgrad={config.amsgrad}, "
            f"found {len(held.optimizer)} that fit {len(fitting)} layouts; a .keras file tells more"
        )
    return fitting[0]


def _is_consistent(held: _Numbered, layout: Layout) -> bool:
    count = layout.variables(len(held.optimizer))
    shapes: dict[int, tuple[int, ...]] = {}
    for (kind, index), array in zip(layout.kinds(count), held.optimizer, strict=True):
        expected = () if kind in ("count", "rate") else shapes.setdefault(index, array.shape)
        if array.shape != expected:
            return False
    left = sorted(array.shape for array in held.weights.values())
    for shape in shapes.values():
        if shape not in left:
            return False
        left.remove(shape)
    return bool(shapes)


def _write_numbered(
    template: Reader, path: Path, checkpoint: Checkpoint, layers: list[Layer] | None
) -> None:
    layout = Layout(
        has_rate=checkpoint.framework == "keras3" and is_constant(checkpoint.config),
        averages=any(name.startswith("average/") for name in checkpoint.extra),
        interleaved=True,
        amsgrad=checkpoint.config.amsgrad,
    )
    variables, _ = _variables(template, layers)
    arrays = {place: checkpoint.params[variable.name] for place, variable in variables.items()}
    for index, array in enumerate(pack(checkpoint, layout)):
        arrays[f"{_OPTIMIZER}/{index}"] = array
    template.copy_with(path, arrays, {}, whole=_OPTIMIZER)


def _major(version: str) -> int:
    head = version.partition(".")[0]
    if not head.isdecimal():
        raise CheckpointError(f"metadata.json: expected a keras_version, found {version!r:.80}")
    return int(head[:9])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise CheckpointError("the archive has two members of the same name")
        for name in (_CONFIG, _METADATA, _WEIGHTS):
            if name not in names:
                raise CheckpointError(f"expected {name} in the archive, found {names[:10]}")
            info = archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise CheckpointError(
                    f"{name}: expected it as Keras stores it, found it compressed or encrypted; "
                    "unpack the archive, and pack it anew with `zip -0`"
                )
            if info.compress_size != info.file_size or info.file_size > path.stat().st_size:
                raise CheckpointError(f"{name}: claims {info.file_size} bytes; the file has less")
        yield archive


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    value = json.loads(archive.read(name))
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, path: Path, checked: bool) -> Iterator[BinaryIO]:
    """The weights as a stream within the archive, and meanwhile its checksum compared."""
    info = archive.getinfo(_WEIGHTS)
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        file.seek(info.header_offset)
        header = file.read(30)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        check = pool.submit(_read_through, path) if checked else None
        yield io.BufferedReader(_Part(file, start, info.file_size), _BLOCK)
        if check is not None:
            check.result()


def _read_through(path: Path) -> None:
    with zipfile.ZipFile(path) as archive, archive.open(_WEIGHTS) as member:
        while member.read(_BLOCK):  # raises at the end if the checksum is wrong
            pass


class _Part(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._at += count
        return count
