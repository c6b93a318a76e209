"""HDF5 files of Keras whose variables are numbered: `.weights.h5`, and the one within `.keras`."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._keras_layers import Layer, Variable, guess_layers, name_variables
from adamx.checkpoint.formats._keras_settings import is_constant
from adamx.checkpoint.formats._keras_slots import SlotOrder, pack
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.writing.hdf5_copy import copy_hdf5

__all__ = ["Numbered", "name_slots", "read_numbered", "write_numbered"]

_OPTIMIZER = "optimizer/vars"


@dataclasses.dataclass(frozen=True)
class Numbered:
    """What an HDF5 file of numbered variables holds."""

    variables: dict[str, Variable]  # by path, in the model's order where that is known
    ordered: bool
    weights: dict[str, np.ndarray]  # by name
    optimizer: list[np.ndarray]

    def list_trained(self) -> list[str]:
        return [variable.name for variable in self.variables.values() if variable.trained]


def read_numbered(reader: Reader, layers: list[Layer] | None) -> Numbered:
    group = reader.group(_OPTIMIZER)
    own = {} if group is None else reader.datasets(group)
    if not own:
        raise CheckpointError(
            expected="the variables of an optimizer",
            found="none",
            remedy="tf_keras's legacy optimizers write none into .keras files: save as .h5 there. "
            "save_weights writes them only if the model is compiled",
        )
    if list(own) != [str(index) for index in range(len(own))]:
        raise CheckpointError(
            where=_OPTIMIZER, expected=f"the names 0 to {len(own) - 1}", found="others"
        )
    variables, ordered = _name_all(reader, layers)
    arrays = {v.name: reader.array(reader.present(path)) for path, v in variables.items()}
    if len(arrays) != len(variables):
        raise CheckpointError("two layers have the same name")
    return Numbered(variables, ordered, arrays, [reader.array(d) for d in own.values()])


def _name_all(reader: Reader, layers: list[Layer] | None) -> tuple[dict[str, Variable], bool]:
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
        layers, ordered = guess_layers(paths, names)
    variables, named = name_variables(layers, paths, names)
    return variables, ordered and named


def name_slots(held: Numbered, order: SlotOrder) -> list[str] | None:
    """The variables of the optimizer, if the file tells them: number and shapes must agree."""
    trained = held.list_trained()
    count = order.count_variables(len(held.optimizer))
    if not held.ordered or len(trained) != count:
        return None
    for (kind, index), array in zip(order.list_kinds(count), held.optimizer, strict=True):
        if kind not in ("count", "rate") and array.shape != held.weights[trained[index]].shape:
            return None
    return trained


def write_numbered(
    template: Reader,
    target: Path | io.RawIOBase,
    checkpoint: Checkpoint,
    layers: list[Layer] | None,
) -> None:
    order = SlotOrder(
        has_rate=checkpoint.framework == "keras3" and is_constant(checkpoint.config),
        averages=any(name.startswith("average/") for name in checkpoint.extra),
        interleaved=True,
        amsgrad=checkpoint.config.amsgrad,
    )
    variables, _ = _name_all(template, layers)
    arrays = {path: checkpoint.params[variable.name] for path, variable in variables.items()}
    for index, array in enumerate(pack(checkpoint, order)):
        arrays[f"{_OPTIMIZER}/{index}"] = array
    copy_hdf5(template, target, arrays, texts={}, whole=_OPTIMIZER)
