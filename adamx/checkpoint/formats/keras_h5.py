"""Whole-model HDF5 files: TensorFlow 1.1, tf_keras's legacy and current optimizer, Keras 3."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.fitting import fit
from adamx.checkpoint.formats._keras_layers import NOT_TRAINED, layers_of
from adamx.checkpoint.formats._keras_slots import (
    Layout,
    check_optimizer,
    config_of,
    keras_settings,
    pack,
    unpack,
)
from adamx.checkpoint.matching import Order
from adamx.checkpoint.untrusted.account import Progress, parse_json
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.writing.hdf5_copy import copy_hdf5
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_config import Generation, told_generation

__all__ = ["is_whole_model", "read_h5", "write_h5"]

_MODEL, _OPTIMIZER, _NAMES, _TRAINING = (
    "model_weights",
    "optimizer_weights",
    "weight_names",
    "training_config",
)


_Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Described:
    """What the attributes of the file say."""

    version: str
    training: dict[str, Any]
    generation: Generation
    layout: Layout
    weights: dict[str, str]  # by name of a weight, the path of its dataset
    names: list[str] | None  # of the optimizer's variables, in its order
    slots: list[str]  # paths of the optimizer's datasets, in its order


def is_whole_model(reader: Reader) -> bool:
    """Whether the file is of the kind that this module reads."""
    return reader.group(_MODEL) is not None or reader.group(_OPTIMIZER) is not None


def read_h5(
    path: Path, config: AdamConfig | None, progress: Progress | None, values: bool = True
) -> Checkpoint:
    """Read the HDF5 file of a whole model; without `values`, shapes and dtypes alone."""
    with Reader.open(path, progress, values) as reader:
        described = _described(reader, config)
        optimizer = described.training["optimizer_config"]
        is_given = config is not None
        config = config or config_of(optimizer, described.generation)
        arrays = [reader.array(reader.present(slot)) for slot in described.slots]
        weights = {n: reader.array(reader.present(p)) for n, p in described.weights.items()}
        if described.generation == "tf1":
            names = _sorted_names(reader, arrays, described.weights, weights)
        else:
            names = described.names
        return unpack(
            arrays,
            names,
            described.layout,
            framework=described.generation,
            version=described.version,
            config=config,
            params=weights,
            momentum=optimizer["config"].get("ema_momentum"),
            config_is_given=is_given,
        )


def write_h5(
    path: Path,
    checkpoint: Checkpoint,
    template: Path,
    order: Order | None,
    progress: Progress | None,
) -> list[str]:
    """Write a copy of a whole model's file with the values of `checkpoint`."""
    with name_file(template, "template"):
        target = read_h5(template, None, None, values=False)
    result, left = fit(checkpoint, target, order)
    with Reader.open(template, progress) as reader:
        described = _described(reader, None)
        optimizer = described.training["optimizer_config"]
        settings = keras_settings(result, optimizer)
        layout = _layout(described.generation, settings)
        if layout != described.layout:
            raise CheckpointError(
                "template: expected an optimizer with the checkpoint's settings, found variables "
                f"for {described.layout} instead of {layout}; compile the template's model with "
                f"{settings}, train it for a step and save it"
            )
        optimizer["config"] = settings
        arrays = {place: result.params[name] for name, place in described.weights.items()}
        arrays |= dict(zip(described.slots, pack(result, layout), strict=True))
        training = json.dumps(described.training)
        copy_hdf5(reader, path, arrays, texts={_TRAINING: training}, whole=_OPTIMIZER)
    return left


def _described(reader: Reader, config: AdamConfig | None) -> _Described:
    root = reader.root
    group = reader.group(_OPTIMIZER)
    stored = reader.text(root, _TRAINING)
    if group is None or stored is None:
        raise CheckpointError(
            "expected optimizer_weights and training_config, found a file without the state of an "
            "optimizer; save the compiled model with include_optimizer=True"
        )
    training = parse_json(stored, reader.account)
    optimizer = training.get("optimizer_config") if isinstance(training, dict) else None
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("config"), dict):
        raise CheckpointError("training_config: expected an optimizer_config, found none")
    check_optimizer(optimizer, config)
    version = reader.text(root, "keras_version") or ""
    settings = optimizer["config"]
    generation = _generation(version, optimizer)
    layout = _layout(generation, settings)
    slots = reader.texts(group, _NAMES)
    if slots is None or len(set(slots)) != len(slots):
        raise CheckpointError(
            f"{_OPTIMIZER}: expected weight_names, each once; found {slots!r:.200}"
        )
    weights = _weights(reader)
    names = None
    if generation != "tf1":
        names = _slot_names(slots, layout, generation, weights)
    return _Described(
        version,
        training,
        generation,
        layout,
        weights,
        names,
        [f"{_OPTIMIZER}/{slot}" for slot in slots],
    )


def _generation(version: str, optimizer: Mapping[str, Any]) -> Generation:
    if re.match(r"([3-9]|\d\d)\.", version):
        return "keras3"
    if str(optimizer.get("class_name")).startswith("Custom>"):
        return "tf_keras"
    return told_generation(optimizer["config"])


def _layout(generation: Generation, settings: Mapping[str, Any]) -> Layout:
    current = generation in ("tf_keras", "keras3")
    return Layout(
        has_rate=generation == "keras3" and not isinstance(settings.get("learning_rate"), Mapping),
        averages=current and bool(settings.get("use_ema")),
        interleaved=current,
        amsgrad=bool(settings.get("amsgrad")),
    )


def _weights(reader: Reader) -> dict[str, str]:
    """By name of each of the model's weights, the path of its dataset."""
    model = reader.group(_MODEL)
    weights: dict[str, str] = {}
    for layer in (reader.texts(model, "layer_names") or []) if model is not None else []:
        group = reader.present(layer, model)
        for name in reader.texts(group, _NAMES) or []:
            plain = name.removesuffix(":0")
            key = plain if "/" in plain else f"{layer}/{plain}"
            if key in weights:  # of a layer that two models share
                key = f"{layer}/{key}"
            if key in weights:
                raise CheckpointError(f"{_MODEL}: two weights are called {key}")
            weights[key] = f"{_MODEL}/{layer}/{name}"
    return weights


def _slot_names(
    slots: Sequence[str], layout: Layout, generation: Generation, weights: Mapping[str, str]
) -> list[str]:
    """The names of the optimizer's variables, told by those of their moments."""
    count = layout.variables(len(slots))
    by_kind: dict[str, list[str]] = {}
    for (kind, _), slot in zip(layout.kinds(count), slots, strict=True):
        if kind in ("mu", "nu", "nu_max"):
            by_kind.setdefault(kind, []).append(_variable_name(slot, kind, generation))
    names = by_kind.get("mu", [])
    for kind, others in by_kind.items():
        for name, other in zip(names, others, strict=True):
            if name != other:
                raise CheckpointError(
                    f"{_OPTIMIZER}: expected {kind} of {name}, found that of {other}"
                )
    if generation == "keras3":  # sequential_hidden_kernel
        flat: dict[str, str | None] = {}
        for weight in weights:
            key = weight.replace("/", "_")
            flat[key] = None if key in flat else weight  # of two such, it may be either
        return [flat.get(name) or name for name in names]
    for count in range(_DEEPEST_SCOPE):  # Adam/hidden/kernel, training/Adam/hidden/kernel
        short = ["/".join(name.split("/")[count:]) for name in names]
        if all(name in weights for name in short):
            return short
    return names


_DEEPEST_SCOPE = 4


def _variable_name(slot: str, kind: str, generation: Generation) -> str:
    """`hidden/kernel` of `Adam/hidden/kernel/m:0`, `Adam/m/hidden/kernel:0` and the like."""
    short = {"mu": "m", "nu": "v", "nu_max": "vhat"}[kind]
    long = {"mu": "momentum", "nu": "velocity", "nu_max": "velocity_hat"}[kind]
    pattern = {
        "tf_keras_legacy": rf"(.+)/{short}(?:_\d+)?:0",
        "tf_keras": rf"(?:.*?/)??{short}/(.+):0",
        "keras3": rf"[^/]*/(.+)_{long}",
    }[generation]
    match = re.fullmatch(pattern, slot)
    if match is None:
        raise CheckpointError(f"{_OPTIMIZER}: expected {kind} in this place, found {slot}")
    return match[1]


def _sorted_names(
    reader: Reader, slots: Sequence[np.ndarray], weights: Mapping[str, str], arrays: _Arrays
) -> list[str] | None:
    """TensorFlow 1.1's own order of its variables, whose slots have no names: sorted by name.

    Args:
      reader: of the file.
      slots: the optimizer's arrays.
      weights: by name of a weight, the path of its dataset: with its layer and TensorFlow's name.
      arrays: the weights.

    Returns:
      None where number and shapes do not agree with what the model's configuration says.
    """
    stored = reader.text(reader.root, "model_config")
    layers = layers_of(parse_json(stored, reader.account)) if stored else []
    is_trained = {layer.name.rpartition("/")[2]: layer.trained for layer in layers}

    def trains(name: str, layer: str) -> bool:
        inner = layer if layer in is_trained else name.split("/")[0]  # in a model within the model
        return is_trained.get(inner, True) and name.rpartition("/")[2] not in NOT_TRAINED

    own_names: dict[str, str] = {}
    for name, path in weights.items():
        layer, _, own_name = path.removeprefix(f"{_MODEL}/").partition("/")
        if trains(name, layer):
            own_names[name] = own_name  # with ":0": "b10:0" stands before "b1:0"
    trained = sorted(own_names, key=own_names.__getitem__)
    shapes = [arrays[name].shape for name in trained]
    return trained if [slot.shape for slot in slots[1:]] == shapes * 2 else None
