"""HDF5 files of Keras whose variables are numbered: `.weights.h5`, and the one within `.keras`."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._keras_layers import Layer, Variable, guess_layers, name_variables
from adamx.checkpoint.formats._keras_optimizers import read_scale
from adamx.checkpoint.formats._keras_slots import SlotOrder, pack
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.untrusted.hdf5_messages import Dataset
from adamx.checkpoint.writing.hdf5_copy import copy_hdf5

__all__ = ["Numbered", "read_numbered", "write_numbered"]

_OPTIMIZER = "optimizer/vars"
_INNER = "optimizer/inner_optimizer/vars"  # of the Adam within a LossScaleOptimizer
_OF_SCALER = 4  # Keras 3: iterations, learning rate, counter, loss scale; tf_keras writes none


@dataclasses.dataclass(frozen=True)
class Numbered:
    """What an HDF5 file of numbered variables holds.

    Attributes:
      variables: the model's by path, in its order where that is known.
      ordered: whether it is.
      weights: by name.
      optimizer: the Adam's variables.
      name: the Adam's; None if the file has none.
      is_scaled: whether a LossScaleOptimizer is around it.
      loss_scale: the present one, if the file has it.
    """

    variables: dict[str, Variable]
    ordered: bool
    weights: dict[str, np.ndarray]
    optimizer: list[np.ndarray]
    name: str | None
    is_scaled: bool
    loss_scale: float | None


def read_numbered(
    reader: Reader,
    layers: list[Layer] | None,
    is_scaled: bool | None = None,
    *,
    values: bool,
) -> Numbered:
    """The variables of the model and of its Adam.

    Args:
      reader: of the file.
      layers: of the model's configuration; None if there is none.
      is_scaled: whether a LossScaleOptimizer is around the Adam; None to detect it in the file.
      values: whether the reader reads them.
    """
    if is_scaled is None:
        is_scaled = reader.group(_INNER) is not None
    group = _INNER if is_scaled else _OPTIMIZER
    own = _list_numbered(reader, group)
    if not own:
        raise CheckpointError(
            expected="the variables of an optimizer",
            found="none",
            remedy="tf_keras's legacy optimizers write none into .keras files: save as .h5 "
            "instead. save_weights writes them only if the model is compiled",
        )
    variables, ordered = _name_all(reader, layers)
    arrays = {v.name: reader.array(reader.present(path)) for path, v in variables.items()}
    if len(arrays) != len(variables):
        raise CheckpointError("two layers have the same name")
    optimizer = [reader.array(dataset) for dataset in own]
    return Numbered(
        variables,
        ordered,
        arrays,
        optimizer,
        reader.text(reader.present(group), "name"),
        is_scaled,
        _compare_copies(reader, optimizer, values) if is_scaled else None,
    )


def _list_numbered(reader: Reader, path: str) -> list[Dataset]:
    group = reader.group(path)
    own = {} if group is None else reader.datasets(group)
    if list(own) != [str(index) for index in range(len(own))]:
        raise CheckpointError(where=path, expected=f"the names 0 to {len(own) - 1}", found="others")
    return list(own.values())


def _compare_copies(reader: Reader, inner: list[np.ndarray], values: bool) -> float | None:
    """The loss scale of a LossScaleOptimizer, which writes the Adam's variables a second time."""
    outer = _list_numbered(reader, _OPTIMIZER)
    first = len(outer) - len(inner)
    if first not in (0, _OF_SCALER):
        raise CheckpointError(
            where=_OPTIMIZER,
            expected=f"{len(inner)} or {len(inner) + _OF_SCALER} variables, since the inner "
            f"optimizer has {len(inner)}",
            found=len(outer),
        )
    for index, array in enumerate(inner):
        other = reader.array(outer[first + index])
        is_same = other.dtype == array.dtype and other.shape == array.shape
        if is_same and values:
            is_same = np.array_equal(_view_bytes(other), _view_bytes(array))
        if not is_same:
            raise CheckpointError(
                where=f"{_OPTIMIZER}/{first + index}",
                expected=f"the same as {_INNER}/{index}",
                found="another array",
            )
    if not first:
        return None
    return read_scale(f"{_OPTIMIZER}/{_OF_SCALER - 1}", reader.array(outer[_OF_SCALER - 1]))


def _view_bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


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


def write_numbered(
    template: Reader,
    target: Path | io.RawIOBase,
    checkpoint: Checkpoint,
    layers: list[Layer] | None,
    order: SlotOrder,
    is_scaled: bool | None = None,
) -> None:
    """Write a copy of a file with the values of a checkpoint, its optimizer's in that order."""
    if is_scaled is None:
        is_scaled = template.group(_INNER) is not None
    variables, _ = _name_all(template, layers)
    arrays = {path: checkpoint.params[variable.name] for path, variable in variables.items()}
    first = 0
    if is_scaled:
        outer = _list_numbered(template, _OPTIMIZER)
        first = len(outer) - len(_list_numbered(template, _INNER))
        for index, dataset in enumerate(outer[:first]):
            arrays[f"{_OPTIMIZER}/{index}"] = template.array(dataset)
    for index, array in enumerate(pack(checkpoint, order)):
        arrays[f"{_OPTIMIZER}/{first + index}"] = array
        if is_scaled:
            arrays[f"{_INNER}/{index}"] = array
    copy_hdf5(template, target, arrays, texts={}, whole=(_OPTIMIZER, _INNER))
