"""Files of Keras whose variables are numbered: `.keras` archives and `.weights.h5`."""

import contextlib
import dataclasses
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.fitting import fit
from adamx.checkpoint.formats._keras_layers import (
    Layer,
    Variable,
    layers_in,
    layers_of,
    name_variables,
)
from adamx.checkpoint.formats._keras_slots import (
    Layout,
    check_optimizer,
    config_of,
    is_constant,
    keras_settings,
    pack,
    unpack,
)
from adamx.checkpoint.matching import Order
from adamx.checkpoint.untrusted.account import Account, Progress, parse_json
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.untrusted.zip_reader import Member, content, members, stream, verify
from adamx.checkpoint.writing.hdf5_copy import copy_hdf5
from adamx.checkpoint.writing.zip_writer import large_member
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_config import Generation

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
    parts = _parts(path)
    account = Account(path.stat().st_size)
    described = _json(path, parts[_CONFIG], account)
    version = str(_json(path, parts[_METADATA], account).get("keras_version", ""))
    generation: Generation = "keras3" if _major(version) >= 3 else "tf_keras"
    compiled = described.get("compile_config")
    optimizer = compiled.get("optimizer") if isinstance(compiled, Mapping) else None
    settings = optimizer.get("config") if isinstance(optimizer, Mapping) else None
    if not isinstance(optimizer, Mapping) or not isinstance(settings, Mapping):
        raise CheckpointError(
            "config.json: expected the configuration of an optimizer in compile_config, found "
            "none: the model was not compiled when it was saved"
        )
    check_optimizer(optimizer, config)
    with (
        _weights(path, parts[_WEIGHTS], checked=values) as weights,
        Reader.open(weights, progress, values, account) as reader,
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
    order: Order | None,
    progress: Progress | None,
) -> list[str]:
    """Write a copy of a `.keras` file with the values of `checkpoint`; return what was left out."""
    with name_file(template, "template"):
        target = read_archive(template, None, None, values=False)
    result, left = fit(checkpoint, target, order)
    parts = _parts(template)
    with zipfile.ZipFile(template) as archive:
        described = _json(template, parts[_CONFIG], Account(template.stat().st_size))
        optimizer = described["compile_config"]["optimizer"]
        optimizer["config"] = keras_settings(result, optimizer)
        with (
            _weights(template, parts[_WEIGHTS], checked=False) as old_weights,
            Reader.open(old_weights, progress) as reader,
            large_member(path, _WEIGHTS) as weights,
        ):
            _write_numbered(reader, weights, result, layers_of(described))
        with zipfile.ZipFile(path, "a") as written:
            written.writestr(_CONFIG, json.dumps(described))
            for info in archive.infolist():
                if info.filename not in (_CONFIG, _WEIGHTS) and not info.is_dir():
                    with archive.open(info) as old, written.open(info.filename, "w") as new:
                        shutil.copyfileobj(old, new)
    return left


def write_weights(
    path: Path,
    checkpoint: Checkpoint,
    template: Path,
    order: Order | None,
    progress: Progress | None,
) -> list[str]:
    """Write a copy of a `.weights.h5` file with the values of `checkpoint`."""
    any_rate = dataclasses.replace(checkpoint.config, learning_rate=0.0, decay=0.0)
    with name_file(template, "template"):
        target = read_weights(template, any_rate, None, values=False)
    result, left = fit(checkpoint, target, order)
    keras_settings(result, {})
    if target.framework == "keras3" and not is_constant(result.config):
        raise CheckpointError(
            f"learning_rate: {template} is of a model with a number for it, the checkpoint has a "
            "schedule, and Keras would drop the whole state; make a template with the schedule"
        )
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
    arrays = {v.name: reader.array(reader.present(path)) for path, v in variables.items()}
    if len(arrays) != len(variables):
        raise CheckpointError("two layers have the same name")
    return _Numbered(variables, ordered, arrays, [reader.array(d) for d in own.values()])


def _variables(reader: Reader, layers: list[Layer] | None) -> tuple[dict[str, Variable], bool]:
    """The model's variables by path, and whether they are in the optimizer's order."""
    root = reader.root
    paths, names = {}, {}
    for path, dataset in reader.datasets(root).items():
        top = path.partition("/")[0]
        if top in ("optimizer", "metrics") or path.rpartition("/")[0].rpartition("/")[2] != "vars":
            continue
        paths[path] = dataset.is_floating
        group = path.rpartition("/")[0]
        name = reader.text(reader.present(group), "name")
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
    """The one layout that the number and the shapes of the variables allow."""
    fitting = []
    for has_rate in (True, False):
        layout = Layout(has_rate, False, interleaved=True, amsgrad=config.amsgrad)
        with contextlib.suppress(CheckpointError):
            if _is_consistent(held, layout):
                fitting.append(layout)
    if len(fitting) != 1:
        raise CheckpointError(
            f"optimizer/vars: expected the variables of Adam with amsgrad={config.amsgrad}, found "
            f"{len(held.optimizer)} that are not, or not only, those: averages of the weights or "
            "accumulated gradients, say. Save the model as .keras, which tells what they are"
        )
    return fitting[0]


def _is_consistent(held: _Numbered, layout: Layout) -> bool:
    count = layout.variables(len(held.optimizer))
    shapes: dict[int, tuple[int, ...]] = {}
    for (kind, index), array in zip(layout.kinds(count), held.optimizer, strict=True):
        expected = () if kind in ("count", "rate") else shapes.setdefault(index, array.shape)
        if array.shape != expected:
            return False
    weights = Counter(array.shape for array in held.weights.values())
    return bool(shapes) and Counter(shapes.values()) <= weights


def _write_numbered(
    template: Reader,
    target: Path | BinaryIO,
    checkpoint: Checkpoint,
    layers: list[Layer] | None,
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
    copy_hdf5(template, target, arrays, texts={}, whole=_OPTIMIZER)


def _major(version: str) -> int:
    head = version.partition(".")[0]
    if not head.isdecimal():
        raise CheckpointError(f"metadata.json: expected a keras_version, found {version!r:.80}")
    return int(head[:9])


def _parts(path: Path) -> dict[str, Member]:
    """The members of the archive that Keras puts there, by name."""
    found: dict[str, Member] = {}
    for member in members(path):
        if member.name in (_CONFIG, _METADATA, _WEIGHTS):
            if member.name in found:
                raise CheckpointError(f"the archive has two members called {member.name}")
            found[member.name] = member
    for name in (_CONFIG, _METADATA, _WEIGHTS):
        if name not in found:
            raise CheckpointError(f"expected {name} in the archive, found none")
    return found


def _json(path: Path, member: Member, account: Account) -> dict[str, Any]:
    value = parse_json(content(path, member), account)
    if not isinstance(value, dict):
        raise CheckpointError(f"{member.name}: expected a JSON object, found another value")
    return value


@contextlib.contextmanager
def _weights(path: Path, member: Member, checked: bool) -> Iterator[BinaryIO]:
    """The weights as a stream within the archive, and meanwhile its checksum compared."""
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        check = pool.submit(verify, path, member) if checked else None
        yield stream(file, member)
        if check is not None:
            check.result()
