"""The weights in DeepSpeed's files of models, beside those that the optimizer updates."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._deepspeed_flat import assemble, scatter, split_each
from adamx.checkpoint.formats._deepspeed_state import State
from adamx.checkpoint.formats._torch_template import check_tied, refuse_template
from adamx.checkpoint.formats._torch_tensors import is_tensor
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.torch_tensors import Tensor, make_tensor

__all__ = ["gather_weights", "replace_weights"]

_Model = Mapping[str, Any]


def gather_weights(
    models: Sequence[_Model],
    found: State,
    account: Account,
    progress: Progress | None,
    *,
    values: bool,
    is_third: bool,
) -> dict[str, Any]:
    """The weights in the model's order: those of the optimizer, buffers, and frozen ones.

    Args:
      models: what the models' files hold.
      found: the optimizer.
      account: what the values are charged to.
      progress: called with the number of bytes just read.
      values: whether they are read.
      is_third: whether the model's files are of ZeRO-3, which each rank has.
    """
    module = models[0].get("module")
    module = module if isinstance(module, dict) else {}
    shared = models[0].get("shared_params")
    shared = shared if isinstance(shared, dict) else {}
    frozen = _gather_frozen(models, account, progress, values=values) if is_third else {}
    buffers = models[0].get("buffer_names")
    buffers = buffers if isinstance(buffers, list | set | tuple) else ()
    weights: dict[str, Any] = {}
    for name, tensor in module.items():
        own = found.masters.get(shared.get(name, name))
        if own is not None:
            weights[name] = own
        elif name in frozen:
            weights[name] = frozen[name]
        elif not is_third or name in buffers:  # ZeRO-3 leaves empty ones of the others
            weights[name] = tensor
    return weights | {n: array for n, array in found.masters.items() if n not in weights}


def _gather_frozen(
    models: Sequence[_Model], account: Account, progress: Progress | None, *, values: bool
) -> dict[str, np.ndarray]:
    """The frozen weights, which ZeRO-3 splits over the ranks."""
    gathered: dict[str, np.ndarray] = {}
    for name, shape in _list_frozen(models[0]).items():
        parts = [(model.get("frozen_param_fragments") or {}).get(name) for model in models]
        pieces = split_each({name: shape}, len(models))
        gathered |= assemble(
            f"frozen {name}",
            parts,
            {name: shape},
            pieces,
            account,
            progress,
            values=values,
            is_padded_with_zeros=False,
        )
    return gathered


def _list_frozen(model: _Model) -> dict[str, tuple[int, ...]]:
    told = model.get("frozen_param_shapes") or {}
    return {name: tuple(shape) for name, shape in told.items() if math.prod(shape)}


def replace_weights(models: Sequence[_Model], weights: Mapping[str, np.ndarray]) -> None:
    """Put weights into what the models' files hold, in the dtypes that they have there.

    Those that ZeRO-3 updates are only in the optimizer's files.
    """
    frozen = _list_frozen(models[0]) if models[0].get("frozen_param_fragments") else {}
    for name in frozen.keys() & weights.keys():
        parts = [model["frozen_param_fragments"] for model in models]
        if all(part[name].shape == frozen[name] for part in parts):  # ZeRO-2 has them whole
            vectors = [_narrow(name, weights[name], part[name].dtype) for part in parts]
        else:
            pieces = split_each({name: frozen[name]}, len(models))
            vectors = scatter({name: weights[name]}, pieces, [part[name] for part in parts])
        for part, vector in zip(parts, vectors, strict=True):
            part[name] = vector
    for name, own in (models[0].get("shared_params") or {}).items():
        if name in weights:
            check_tied(weights, name, own)
    for model in models:
        module = model.get("module")
        module = module if isinstance(module, dict) else {}
        for name, tensor in list(module.items()):
            array = weights.get(name)
            if array is None or not is_tensor(tensor) or (array.size and not tensor.size):
                continue
            if tensor.shape != array.shape:
                raise refuse_template(
                    f"shape {array.shape}, as param_shapes says",
                    tensor.shape,
                    "use a template whose files are of one model",
                    f"module: {name}",
                )
            module[name] = _narrow(name, array, tensor.dtype)


def _narrow(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> Tensor:
    """A weight in the model's dtype, rounded to nearest."""
    with np.errstate(over="ignore"):  # an error below
        narrow = array.astype(dtype)
    if (np.isfinite(array) & ~np.isfinite(narrow)).any():
        raise CheckpointError(
            where=f"params/{name}",
            expected=f"numbers that {dtype}, the model's dtype in the template, can hold",
            found=f"{np.abs(array[~np.isfinite(narrow)]).max():.3g}",
            argument="template",
        )
    return make_tensor(narrow)
