"""Whole-model HDF5 files: TensorFlow 1.1, tf_keras's legacy and current optimizer, Keras 3."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._keras_heads import MODEL, OPTIMIZER, holds_whole_model, starts_hdf5
from adamx.checkpoint.formats._keras_layers import NOT_TRAINED, list_layers
from adamx.checkpoint.formats._keras_optimizers import (
    Optimizer,
    describe_rest,
    read_accumulation,
    read_scale,
)
from adamx.checkpoint.formats._keras_settings import find_optimizer, read_config, write_settings
from adamx.checkpoint.formats._keras_slots import Names, SlotOrder, pack, unpack
from adamx.checkpoint.untrusted.account import parse_json
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.writing.hdf5_copy import copy_hdf5
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_config import Generation, told_generation

__all__ = ["KerasH5"]

_NAMES, _TRAINING = "weight_names", "training_config"
_OF_SCALER = 4  # variables of Keras 3's LossScaleOptimizer, which come first


_Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Described:
    """What the attributes of the file say."""

    version: str
    training: dict[str, Any]
    optimizer: Optimizer
    loss_scale: str | None  # the path of its dataset
    generation: Generation
    order: SlotOrder
    weights: dict[str, str]  # by name of a weight, the path of its dataset
    names: list[str]  # of the optimizer's variables, in its order; none of TensorFlow 1.1's
    slots: list[str]  # paths of the optimizer's datasets, in its order


class KerasH5(FileFormat):
    """What `model.save` of every generation of Keras writes into `.h5`."""

    name = "h5"
    title = "TensorFlow 1.1, tf_keras and Keras 3, whole models"
    names = "told, or inferred from the order of the layers"
    config_of = "keras"
    suffixes = (".h5", ".hdf5")
    extra = "checkpoint"
    packages = ("h5py",)
    template = "required"

    def matches(self, head: Head) -> bool:
        """Whether it is HDF5 of a whole model."""
        return starts_hdf5(head) and head.examine(holds_whole_model)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read attributes and arrays; of a template, the configuration is its own."""
        config = source.config if values else None
        with Reader.open(source.path, source.progress, values) as reader:
            described = _describe(reader, config)
            optimizer = described.optimizer
            is_given = config is not None
            config = config or read_config(
                optimizer.adam, described.generation, is_template=not values
            )
            arrays = [reader.array(reader.present(slot)) for slot in described.slots]
            weights = {n: reader.array(reader.present(p)) for n, p in described.weights.items()}
            names: Names = dict.fromkeys(described.names, "file")
            if described.generation == "tf1":
                sorted_names = _sort_names(reader, arrays, described.weights, weights)
                names = dict.fromkeys(sorted_names, "inferred")
            scale = None
            if described.loss_scale is not None:
                array = reader.array(reader.present(described.loss_scale))
                scale = read_scale(described.loss_scale, array)
            return unpack(
                arrays,
                names,
                described.order,
                framework=described.generation,
                version=described.version,
                config=config,
                params=weights,
                notes=describe_rest(optimizer.settings, optimizer.is_scaled, scale),
                momentum=optimizer.settings.get("ema_momentum"),
                config_is_given=is_given,
                is_template=not values,
            )

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write a copy of the template with other values."""
        assert template is not None
        with Reader.open(template.path, target.progress) as reader:
            described = _describe(reader, None)
            adam = described.optimizer.adam
            settings = write_settings(new, adam)
            order = _order_of(described.generation, settings)
            if order != described.order:
                raise CheckpointError(
                    where="template",
                    expected="an optimizer with the checkpoint's settings",
                    found=f"variables for {described.order} instead of {order}",
                    remedy=f"compile the template's model with {settings}, train it for a step and "
                    "save it",
                    argument="template",
                )
            adam["config"] = settings
            arrays = {path: new.params[name] for name, path in described.weights.items()}
            arrays |= dict(zip(described.slots, pack(new, order), strict=True))
            training = json.dumps(described.training)
            copy_hdf5(reader, target.path, arrays, texts={_TRAINING: training}, whole=(OPTIMIZER,))
        return []


def _describe(reader: Reader, config: AdamConfig | None) -> _Described:
    root = reader.root
    group = reader.group(OPTIMIZER)
    stored = reader.text(root, _TRAINING)
    if group is None or stored is None:
        raise CheckpointError(
            expected="optimizer_weights and training_config",
            found="a file without the state of an optimizer",
            remedy="save the compiled model with include_optimizer=True",
        )
    training = parse_json(stored, reader.account)
    optimizer = training.get("optimizer_config") if isinstance(training, dict) else None
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("config"), dict):
        raise CheckpointError(where=_TRAINING, expected="an optimizer_config", found="none")
    version = reader.text(root, "keras_version") or ""
    is_keras3 = re.match(r"([3-9]|\d\d)\.", version) is not None
    found = find_optimizer(optimizer, is_keras3, config)
    generation = "keras3" if is_keras3 else _find_generation(found.adam)
    order = _order_of(generation, found.settings)
    slots = reader.texts(group, _NAMES)
    if slots is None or len(set(slots)) != len(slots):
        raise CheckpointError(
            where=OPTIMIZER, expected="weight_names, each once", found=f"{slots!r:.200}"
        )
    weights = _list_weights(reader)
    scale = None
    if found.is_scaled and is_keras3:
        own, slots = slots[:_OF_SCALER], slots[_OF_SCALER:]
        scale = next(
            (f"{OPTIMIZER}/{name}" for name in own if name.endswith("/dynamic_scale")), None
        )
    names: list[str] = []
    if generation != "tf1":
        names = _name_slots(slots, order, generation, weights)
    return _Described(
        version,
        training,
        found,
        scale,
        generation,
        order,
        weights,
        names,
        [f"{OPTIMIZER}/{slot}" for slot in slots],
    )


def _find_generation(optimizer: Mapping[str, Any]) -> Generation:
    if str(optimizer.get("class_name")).startswith("Custom>"):
        return "tf_keras"
    return told_generation(optimizer["config"])


def _order_of(generation: Generation, settings: Mapping[str, Any]) -> SlotOrder:
    current = generation in ("tf_keras", "keras3")
    return SlotOrder(
        has_rate=generation == "keras3" and not isinstance(settings.get("learning_rate"), Mapping),
        averages=current and bool(settings.get("use_ema")),
        interleaved=current,
        amsgrad=bool(settings.get("amsgrad")),
        steps=read_accumulation(settings) if generation == "keras3" else 1,
    )


def _list_weights(reader: Reader) -> dict[str, str]:
    """By name of each of the model's weights, the path of its dataset."""
    model = reader.group(MODEL)
    weights: dict[str, str] = {}
    for layer in (reader.texts(model, "layer_names") or []) if model is not None else []:
        group = reader.present(layer, model)
        for name in reader.texts(group, _NAMES) or []:
            plain = name.removesuffix(":0")
            key = plain if "/" in plain else f"{layer}/{plain}"
            if key in weights:  # of a layer that two models share
                key = f"{layer}/{key}"
            if key in weights:
                raise CheckpointError(f"two weights are called {key}", where=MODEL)
            weights[key] = f"{MODEL}/{layer}/{name}"
    return weights


def _name_slots(
    slots: Sequence[str], order: SlotOrder, generation: Generation, weights: Mapping[str, str]
) -> list[str]:
    """The names of the optimizer's variables, by those of their moments."""
    count = order.count_variables(len(slots))
    by_kind: dict[str, list[str]] = {}
    for (kind, _), slot in zip(order.list_kinds(count), slots, strict=True):
        if kind in ("mu", "nu", "nu_max"):
            by_kind.setdefault(kind, []).append(_read_name(slot, kind, generation))
    names = by_kind.get("mu", [])
    if len(set(names)) != len(names):
        raise CheckpointError(where=OPTIMIZER, expected="moments of each variable once")
    for kind, others in by_kind.items():
        for name, other in zip(names, others, strict=True):
            if name != other:
                raise CheckpointError(
                    where=OPTIMIZER, expected=f"{kind} of {name}", found=f"that of {other}"
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


def _read_name(slot: str, kind: str, generation: Generation) -> str:
    """`hidden/kernel` of `Adam/hidden/kernel/m:0`, `Adam/m/hidden/kernel:0` and the like."""
    short = {"mu": "m", "nu": "v", "nu_max": "vhat"}[kind]
    long = {"mu": "momentum", "nu": "velocity", "nu_max": "velocity_hat"}[kind]
    pattern = {
        "tf_keras_legacy": rf"(.+)/{short}(?:_\d+)?:0",
        "tf_keras": rf"(?:.*?/)??{short}/(.+):0",
        "keras3": rf"(?:[^/]*/)+([^/]+)_{long}",
    }[generation]
    match = re.fullmatch(pattern, slot)
    if match is None:
        raise CheckpointError(where=OPTIMIZER, expected=f"{kind} at this position", found=slot)
    return match[1]


def _sort_names(
    reader: Reader, slots: Sequence[np.ndarray], weights: Mapping[str, str], arrays: _Arrays
) -> list[str]:
    """TensorFlow 1.1's own order of its variables, whose slots have no names: sorted by name.

    Args:
      reader: of the file.
      slots: the optimizer's arrays.
      weights: by name of a weight, the path of its dataset: with its layer and TensorFlow's name.
      arrays: the weights.

    Returns:
      No names where number and shapes do not agree with what the model's configuration says.
    """
    stored = reader.text(reader.root, "model_config")
    layers = list_layers(parse_json(stored, reader.account)) if stored else []
    is_trained = {layer.name.rpartition("/")[2]: layer.trained for layer in layers}

    def trains(name: str, layer: str) -> bool:
        inner = layer if layer in is_trained else name.split("/")[0]  # in a model within the model
        return is_trained.get(inner, True) and name.rpartition("/")[2] not in NOT_TRAINED

    own_names: dict[str, str] = {}
    for name, path in weights.items():
        layer, _, own_name = path.removeprefix(f"{MODEL}/").partition("/")
        if trains(name, layer):
            own_names[name] = own_name  # with ":0": "b10:0" stands before "b1:0"
    trained = sorted(own_names, key=own_names.__getitem__)
    shapes = [arrays[name].shape for name in trained]
    return trained if [slot.shape for slot in slots[1:]] == shapes * 2 else []


register(KerasH5())
