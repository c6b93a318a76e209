"""Folders of DeepSpeed: ZeRO of stages 1 to 3, and Universal Checkpoints."""

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, register
from adamx.checkpoint.formats._deepspeed_files import (
    UNIVERSAL,
    find_files,
    find_folder,
    is_checkpoint,
    read_file,
)
from adamx.checkpoint.formats._deepspeed_flat import assemble, split_each
from adamx.checkpoint.formats._deepspeed_universal import read_universal
from adamx.checkpoint.formats._deepspeed_zero import State, read_shapes, read_zero
from adamx.checkpoint.formats._folders import measure
from adamx.checkpoint.formats._torch_search import find_state
from adamx.checkpoint.formats._torch_state import read_state
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.stand_ins import StandIn

__all__ = ["DeepSpeed"]

# What a model's file holds beside weights and what the trainer adds.
_OWN = {"module", "buffer_names", "optimizer", "param_shapes", "shared_params"}
_OWN |= {"frozen_param_shapes", "frozen_param_fragments", "skipped_steps", "global_steps"}
_OWN |= {"global_samples", "dp_world_size", "mp_world_size", "checkpoint_parallel_dimensions"}
_OWN |= {"ds_config", "ds_version", "universal_checkpoint_info"}

_Model = Mapping[str, Any]


class DeepSpeed(FileFormat):
    """What `save_checkpoint` of DeepSpeed's engine writes."""

    name = "deepspeed"
    title = "DeepSpeed"
    names = "told"
    config_of = "torch"
    writable = False
    instead = "save with format='torch', and load that file where the model is"

    def matches(self, head: Head) -> bool:
        """Whether a folder has its files, or a folder in it has."""
        return bool(head.entries) and head.path.is_dir() and head.examine(is_checkpoint)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Put the optimizer together, with the float32 weights that it moves."""
        folder = find_folder(source.path)
        account = Account(measure(folder))
        files = find_files(folder)
        models = [read_file(path, account) for path in files.model]
        _check_parallel(models[0])
        shapes = read_shapes(models[0])
        notes: list[str] = []
        if (folder / UNIVERSAL).is_dir():
            found = read_universal(folder / UNIVERSAL, shapes, account)
        elif files.optimizer:
            told = [read_file(path, account) for path in files.optimizer]
            found = read_zero(told, shapes, account, source.progress)
            notes += _note_engine(told[0])
        else:
            raise CheckpointError(
                expected="*_optim_states.pt, which ZeRO writes",
                found=listed([path.name for path in files.model]),
                remedy="without ZeRO the optimizer is in mp_rank_00_model_states.pt: give that "
                "file",
            )
        is_third = files.model[0].name.startswith("zero_")  # only there each rank has a file
        saved = {
            "optimizer": {"state": found.state, "param_groups": found.groups},
            "module": _gather_weights(models, found, account, source.progress, is_third=is_third),
        }
        checkpoint = read_state(find_state(saved, source), account, source, values=values)
        notes += checkpoint.notes
        notes.append("the weights are the float32 ones that the optimizer moves")
        others = [key for key, value in models[0].items() if key not in _OWN and value is not None]
        return dataclasses.replace(checkpoint, notes=notes, not_read=others)


def _check_parallel(model: _Model) -> None:
    """Raise if the tensors are split in other ways than over the ranks of ZeRO."""
    sizes = {"mp_world_size": model.get("mp_world_size")}
    degrees = model.get("checkpoint_parallel_dimensions")
    sizes |= degrees if isinstance(degrees, dict) else {}
    split = [
        f"{key}={reprlib.repr(size):.20}" for key, size in sizes.items() if size not in (None, 1)
    ]
    if split:
        raise CheckpointError(
            expected="a model that is not split (data parallel only)",
            found=listed(split),
            remedy="load it with DeepSpeed, and save full tensors",
        )


def _gather_weights(
    models: Sequence[_Model],
    found: State,
    account: Account,
    progress: Progress | None,
    *,
    is_third: bool,
) -> dict[str, Any]:
    """The weights in the model's order: those of the optimizer, buffers, and frozen ones."""
    module = models[0].get("module")
    module = module if isinstance(module, dict) else {}
    shared = models[0].get("shared_params")
    shared = shared if isinstance(shared, dict) else {}
    frozen = _gather_frozen(models, account, progress) if is_third else {}
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
    models: Sequence[_Model], account: Account, progress: Progress | None
) -> dict[str, np.ndarray]:
    """What ZeRO-3 splits of the weights that no optimizer moves."""
    told = models[0].get("frozen_param_shapes") or {}
    shapes = {name: tuple(shape) for name, shape in told.items()}
    gathered: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if not math.prod(shape):
            continue
        parts = [(model.get("frozen_param_fragments") or {}).get(name) for model in models]
        pieces = split_each({name: shape}, len(models))
        gathered |= assemble(
            f"frozen {name}",
            parts,
            {name: shape},
            pieces,
            account,
            progress,
            is_padded_with_zeros=False,
        )
    return gathered


def _note_engine(file: Mapping[str, Any]) -> list[str]:
    """What DeepSpeed does around the optimizer's step, and is left behind."""
    held = file["optimizer_state_dict"]
    notes: list[str] = []
    settings = file.get("ds_config")
    settings = settings if isinstance(settings, dict) else {}
    scaler, norm = held.get("loss_scaler"), held.get("clip_grad", settings.get("gradient_clipping"))
    scale = scaler.attributes.get("cur_scale") if isinstance(scaler, StandIn) else None
    if scale not in (None, 1):
        notes.append(
            f"the loss scale {reprlib.repr(scale):.20} is not carried over: no moment contains it"
        )
    if norm:
        told = f"{reprlib.repr(norm):.20}"
        notes.append(
            f"DeepSpeed clips gradients to a global norm of {told}: to go on so, give "
            f"config={{'clip_global_norm': {told}}}"
        )
    return notes


register(DeepSpeed())
