"""Folders of `torch.distributed.checkpoint`, with the state of one Adam in them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._dcp_metadata import METADATA, read_metadata
from adamx.checkpoint.formats._dcp_safetensors import has_state, read_shards
from adamx.checkpoint.formats._dcp_segments import Store
from adamx.checkpoint.formats._dcp_tree import build_tree, fill
from adamx.checkpoint.formats._dcp_writing import check_room, list_values, write_folder
from adamx.checkpoint.formats._folders import list_names, measure
from adamx.checkpoint.formats._torch_search import find_state
from adamx.checkpoint.formats._torch_state import read_state
from adamx.checkpoint.formats._torch_template import (
    check_expressible,
    refuse_template,
    replace_state,
)
from adamx.checkpoint.untrusted.account import Account

__all__ = ["TorchDcp"]

_SUFFIX = ".distcp"
_UNTOLD = (
    "safetensors do not store which optimizer wrote the state: RAdam has the same tensors as Adam",
    "the files do not store how many there are: if the last rank's is missing, tensors are shorter",
)


class TorchDcp(FileFormat):
    """What `torch.distributed.checkpoint.save` writes: one folder by any number of ranks."""

    name = "dcp"
    title = "torch.distributed.checkpoint"
    names = "told"
    config_of = "torch"
    template = "required"
    has_selectors = True

    def matches(self, head: Head) -> bool:
        """Whether a folder has its files, or it is one of them."""
        names = head.entries if head.path.is_dir() else {head.path.name} if head.start else ()
        if METADATA in names or any(name.endswith(_SUFFIX) for name in names):
            return True
        return head.path.is_dir() and head.examine(has_state)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the state of the optimizer, and its weights."""
        folder = _find_folder(source.path)
        if not (folder / METADATA).is_file():
            if has_state(folder):
                return _read_safetensors(folder, source, values)
            raise CheckpointError(
                expected=f"a folder with {METADATA}, which rank 0 writes last",
                found=list_names(folder),
                remedy="use the whole folder of a completed save",
            )
        account = Account(measure(folder))
        described = read_metadata(folder, account)
        store = Store(folder, account, source.progress)
        saved = build_tree(described, store, source.optimizer)
        found = find_state(saved, source)
        # Only these tensors are read: those of the optimizer and of its weights.
        fill(found.held, described, store, within=True)
        fill(found.model or {}, described, store, within=False)
        # Once more: a flat state dict was copied before its tensors were there.
        return read_state(find_state(saved, source), account, source, values=values)

    def check(self, checkpoint: Checkpoint, template: Source | None) -> None:
        """Raise unless torch can express the configuration, the count and the moments."""
        check_expressible(checkpoint, has_template=template is not None)
        if template is not None and not (_find_folder(template.path) / METADATA).is_file():
            raise refuse_template(
                f"a folder with {METADATA}",
                "only safetensors, which adamx can read but not write",
                "use a template in the usual format of torch.distributed.checkpoint",
            )

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write a copy of the template's folder with another state and other weights."""
        assert template is not None  # it is required
        folder = _find_folder(template.path)
        account = Account(measure(folder))
        described = read_metadata(folder, account)
        store = Store(folder, account, None)
        saved = build_tree(described, store, template.optimizer)
        # Rates and steps that are tensors; others are not looked at.
        fill(find_state(saved, template).held, described, store, within=True, single=True)
        found, before = find_state(saved, template), list_values(saved, described)
        replace_state(found, new)
        values = list_values(saved, described)
        check_room(found.state_dict["state"], values)
        changed = {name: value for name, value in values.items() if value is not before[name]}
        beside = write_folder(target, folder, store, described.entries, changed)
        return [*found.others, *beside]


def _find_folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read_safetensors(folder: Path, source: Source, values: bool) -> Checkpoint:
    account = Account(measure(folder))
    found = find_state(read_shards(folder, account, source.progress), source, in_order=False)
    if source.config is None:
        raise CheckpointError(
            where="config",
            expected="an AdamConfig, since safetensors hold no hyperparameters",
            remedy="pass config=AdamConfig.from_torch({...}), with a parameter group of the run",
            argument="config",
        )
    checkpoint = read_state(found, account, source, values=values)
    # Names are sorted.
    return dataclasses.replace(checkpoint, ordered=False, notes=[*checkpoint.notes, *_UNTOLD])


register(TorchDcp())
