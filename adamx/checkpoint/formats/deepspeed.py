"""Folders of DeepSpeed: ZeRO of stages 1 to 3, and Universal Checkpoints."""

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._counts import count_steps
from adamx.checkpoint.formats._deepspeed_files import (
    UNIVERSAL,
    find_files,
    find_folder,
    is_checkpoint,
    read_file,
)
from adamx.checkpoint.formats._deepspeed_state import read_shapes
from adamx.checkpoint.formats._deepspeed_universal import read_universal
from adamx.checkpoint.formats._deepspeed_weights import gather_weights
from adamx.checkpoint.formats._deepspeed_writing import Opened, write_folder
from adamx.checkpoint.formats._deepspeed_zero import open_zero, read_zero
from adamx.checkpoint.formats._folders import measure
from adamx.checkpoint.formats._torch_search import find_state
from adamx.checkpoint.formats._torch_state import read_state
from adamx.checkpoint.formats._torch_template import (
    check_expressible,
    refuse_template,
    replace_state,
)
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.stand_ins import StandIn

__all__ = ["DeepSpeed"]

# What a model's file holds beside weights and what the trainer adds.
_OWN = {"module", "buffer_names", "optimizer", "param_shapes", "shared_params"}
_OWN |= {"frozen_param_shapes", "frozen_param_fragments", "skipped_steps", "global_steps"}
_OWN |= {"global_samples", "dp_world_size", "mp_world_size", "checkpoint_parallel_dimensions"}
_OWN |= {"ds_config", "ds_version", "universal_checkpoint_info"}

_MASTERS = "the weights are the float32 ones that the optimizer updates"

_Model = Mapping[str, Any]


class DeepSpeed(FileFormat):
    """What `save_checkpoint` of DeepSpeed's engine writes."""

    name = "deepspeed"
    title = "DeepSpeed"
    names = "told"
    config_of = "torch"
    template = "required"

    def matches(self, head: Head) -> bool:
        """Whether a folder has its files, or a folder in it has."""
        return bool(head.entries) and head.path.is_dir() and head.examine(is_checkpoint)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Assemble the optimizer's state, and the float32 weights that it updates."""
        opened = _open_folder(source, values=values)
        found = find_state(opened.saved, source)
        checkpoint = read_state(found, opened.account, source, values=values)
        notes = _note_engine(opened.optimizers[0]) if opened.optimizers else []
        return dataclasses.replace(
            checkpoint,
            notes=[*notes, *checkpoint.notes, _MASTERS],
            not_read=_list_others(opened.models[0]),
        )

    def check(self, checkpoint: Checkpoint, template: Source | None) -> None:
        """Raise unless torch can express the configuration, the count and the moments."""
        check_expressible(checkpoint, has_template=template is not None)

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write a copy of the template's step with another state and other weights."""
        assert template is not None  # it is required
        opened = _open_folder(template, values=False)
        found = find_state(opened.saved, template)
        old = read_state(found, opened.account, template, values=False)
        if bool(old.nu_max) != bool(new.nu_max):
            raise refuse_template(
                f"an optimizer with amsgrad={bool(new.nu_max)}",
                f"one with amsgrad={bool(old.nu_max)}",
            )
        replace_state(found, new)
        more = count_steps(new) - count_steps(old)
        left = write_folder(target, template.path, opened, new.params, more)
        return [*_list_others(opened.models[0]), *left]


def _open_folder(source: Source, *, values: bool) -> Opened:
    folder = find_folder(source.path)
    account = Account(measure(folder))
    files = find_files(folder)
    models = [read_file(path, account) for path in files.model]
    _check_parallel(models[0])
    shapes, zero = read_shapes(models[0]), None
    optimizers: list[dict[str, Any]] = []
    if (folder / UNIVERSAL).is_dir():
        found = read_universal(folder / UNIVERSAL, shapes, account)
    elif files.optimizer:
        optimizers = [read_file(path, account) for path in files.optimizer]
        zero = open_zero(optimizers, shapes, account)
        found = read_zero(zero, shapes, account, source.progress, values=values)
    else:
        raise CheckpointError(
            expected="*_optim_states.pt, which ZeRO writes",
            found=listed([path.name for path in files.model]),
            remedy="without ZeRO the optimizer is in mp_rank_00_model_states.pt: use that file",
        )
    is_third = files.model[0].name.startswith("zero_")  # only there each rank has a file
    module = gather_weights(
        models, found, account, source.progress, values=values, is_third=is_third
    )
    saved = {"optimizer": {"state": found.state, "param_groups": found.groups}, "module": module}
    return Opened(folder, files, account, models, optimizers, shapes, zero, saved)


def _list_others(model: _Model) -> list[str]:
    """What the trainer adds, such as `lr_scheduler`."""
    return [key for key, value in model.items() if key not in _OWN and value is not None]


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


def _note_engine(file: Mapping[str, Any]) -> list[str]:
    """Notes on what DeepSpeed does around the optimizer's step, which is not kept."""
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
            f"DeepSpeed clips gradients to a global norm of {told}: to continue to do so, pass "
            f"config={{'clip_global_norm': {told}}}"
        )
    return notes


register(DeepSpeed())
