"""The names of a Keras model's variables, and which are trained, by its configuration.

The numbered files of Keras (`.keras`, `.weights.h5`) hold `layers/dense_1/vars/0`; the
configuration holds the layers, with the names that their user gave them.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adamx.checkpoint.errors import CheckpointError

__all__ = ["NOT_TRAINED", "Layer", "Variable", "guess_layers", "list_layers", "name_variables"]

# Weights that no optimizer updates, by the last part of their names.
NOT_TRAINED = {"moving_mean", "moving_variance", "mean", "variance", "count"}

_MODELS = {"Sequential", "Functional", "Model"}
_LONGEST_PREFIX = 500  # of the names of models within models

_KERNELS = (
    "Dense",
    "EinsumDense",
    *(f"Conv{n}D{kind}" for n in (1, 2, 3) for kind in ("", "Transpose")),
    "DepthwiseConv1D",
    "DepthwiseConv2D",
)
_OTHER_CLASSES = ("Embedding", "BatchNormalization", "LayerNormalization", "GroupNormalization")


@dataclass(frozen=True)
class Variable:
    """A variable of the model.

    Attributes:
      name: with its layer's.
      trained: whether its layer's configuration says so.
      trainable: whether it may be trained at all.
    """

    name: str
    trained: bool
    trainable: bool


@dataclass(frozen=True)
class Layer:
    """A layer that is no model itself."""

    group: str  # in the file
    name: str
    class_name: str
    config: Mapping[str, Any]
    trained: bool


def list_layers(
    config: Any, group: str = "", prefix: str = "", trained: bool = True
) -> list[Layer]:
    """The layers of a model's configuration in their order, those of models within it too.

    Returns:
      An empty list for a model that is no Sequential or Functional one: its configuration does
      not tell its layers.
    """
    if not isinstance(config, Mapping) or config.get("class_name") not in _MODELS:
        return []
    inner = config.get("config")
    entries = inner.get("layers") if isinstance(inner, Mapping) else inner  # TensorFlow 1.1: a list
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return []
    if len(group) + len(prefix) > _LONGEST_PREFIX:
        raise CheckpointError("the model's configuration: models are nested too deeply")
    layers: list[Layer] = []
    used: dict[str, int] = {}
    for entry in entries:
        settings = entry.get("config") if isinstance(entry, Mapping) else None
        class_name = entry.get("class_name") if isinstance(entry, Mapping) else None
        if not isinstance(class_name, str) or not isinstance(settings, Mapping | list):
            raise CheckpointError(
                f"the model's configuration: expected a layer, found {entry!r:.80}"
            )
        snake = _snake_case(class_name.rpartition(">")[2])
        used[snake] = used.get(snake, -1) + 1
        own_group = f"{group}layers/{snake}{f'_{used[snake]}' if used[snake] else ''}"
        settings = settings if isinstance(settings, Mapping) else {}
        name = str(settings.get("name", entry.get("name", snake)))
        own_trained = trained and settings.get("trainable", True) is not False
        if class_name in _MODELS:
            layers += list_layers(entry, f"{own_group}/", f"{prefix}{name}/", own_trained)
        else:
            layers.append(Layer(own_group, prefix + name, class_name, settings, own_trained))
    return layers


def guess_layers(paths: Iterable[str], names: Mapping[str, str]) -> tuple[list[Layer], bool]:
    """The layers of a file without a configuration, and whether they are in the model's order.

    The order is known if they are of one class: groups are numbered within each class. Those
    numbers are no names: without `names` of their own, variables keep their paths.
    """
    groups = dict.fromkeys(path.rpartition("/vars/")[0] for path in paths if "/vars/" in path)
    class_of = {_snake_case(name): name for name in (*_KERNELS, *_OTHER_CLASSES)}
    layers: list[Layer] = []
    kinds = set()
    for group in groups:
        kind = re.sub(r"_\d+$", "", group.removeprefix("layers/"))
        kinds.add(kind)
        if group in names:
            layers.append(
                Layer(group, _find_name(group, names), class_of.get(kind, kind), {}, True)
            )
    in_order = len(kinds) == 1 and all(group.count("/") == 1 for group in groups)
    return layers, in_order and len(layers) == len(groups)


def _find_name(group: str, names: Mapping[str, str]) -> str:
    """The outermost layer's name, and the path within that layer."""
    above = group.split("/")
    for count in range(1, len(above)):
        outer = "/".join(above[:count])
        if outer in names:
            return f"{names[outer]}/{'/'.join(above[count:])}"
    return names[group]


def name_variables(
    layers: Sequence[Layer], paths: Mapping[str, bool], names: Mapping[str, str]
) -> tuple[dict[str, Variable], bool]:
    """The model's variables by path in the file; and whether they are in the optimizer's order.

    Args:
      layers: of the configuration.
      paths: such as `layers/dense/vars/0`, and whether the variable is floating-point.
      names: by group, the layer's name that the file itself holds.
    """
    found: dict[str, Variable] = {}
    ordered = bool(layers)
    positions = {path: index for index, path in enumerate(paths)}
    in_text_order = sorted(paths)
    for layer in layers:
        own_name = layer.name.rpartition("/")[2]
        ordered &= names.get(layer.group, own_name) == own_name
        start = bisect_left(in_text_order, f"{layer.group}/")
        end = bisect_left(in_text_order, f"{layer.group}0")  # "0" is what follows "/"
        own = sorted(in_text_order[start:end], key=positions.__getitem__)
        floating = [path for path in own if paths[path]]
        groups = {path.rpartition("/")[0] for path in floating}
        ordered &= len(groups) < 2  # the order of layers within a layer is not recorded
        roles = _list_roles(layer) if groups == {f"{layer.group}/vars"} else []
        if layer.class_name in _KERNELS and len(floating) == 1:
            roles = ["kernel"]
        for path in own:
            role = _shorten(path.removeprefix(f"{layer.group}/"))
            if len(roles) == len(floating) and path in floating:
                role = roles[floating.index(path)]
            trainable = paths[path] and role not in NOT_TRAINED
            trained = layer.trained and trainable
            found[path] = Variable(f"{layer.name}/{role}", trained, trainable)
    for path, floating in paths.items():
        if path not in found:  # of a model that does not tell its layers
            found[path] = Variable(path, floating, floating)
            ordered &= not floating
    return found, ordered


def _shorten(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("vars", "layers"))


def _list_roles(layer: Layer) -> list[str]:
    """What the variables of a layer of Keras are called, in their order."""

    def chosen(**flags: str) -> Iterator[str]:
        return (role for flag, role in flags.items() if layer.config.get(flag, True))

    if layer.class_name == "EinsumDense":
        return ["kernel", "bias"] if layer.config.get("bias_axes") is not None else ["kernel"]
    if layer.class_name in _KERNELS:
        return ["kernel", *chosen(use_bias="bias")]
    if layer.class_name == "Embedding":
        return ["embeddings"]
    if layer.class_name == "BatchNormalization":
        return [*chosen(scale="gamma", center="beta"), "moving_mean", "moving_variance"]
    if layer.class_name in _OTHER_CLASSES:
        return [*chosen(scale="gamma", center="beta")]
    return []


def _snake_case(name: str) -> str:
    """The group's name for a class: `batch_normalization` for `BatchNormalization`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
