"""A folder of Trainer or Accelerate with other values, made from one of the same model."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import Target
from adamx.checkpoint.formats._folders import copy_folder
from adamx.checkpoint.formats._hugging_face_folders import TRAINER, Folder, Weights
from adamx.checkpoint.formats._torch_files import open_saved
from adamx.checkpoint.formats._torch_search import Found
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.safetensors_file import read_safetensors
from adamx.checkpoint.untrusted.torch_archive import Saved, read_tensors
from adamx.checkpoint.writing.safetensors_writer import write_safetensors
from adamx.checkpoint.writing.torch_writer import write_archive

__all__ = ["STEP", "Opened", "write_folder"]

# As Trainer writes it: its history may be long, and is not needed.
STEP = re.compile(rb'^(  "global_step": )(\d{1,18})(,?)$', re.MULTILINE)

# What torch's LambdaLR keeps, whose rate depends only on the count of steps: others compute each
# rate from the one before.
_COUNTED = {"base_lrs", "last_epoch", "_step_count", "_is_initial", "verbose", "_last_lr"}
_COUNTED |= {"_get_lr_called_within_step", "lr_lambdas"}


class Opened(NamedTuple):
    """A folder, and what is in its files.

    Attributes:
      folder: its files.
      account: what reading them is charged to.
      saved: optimizers by key.
      models: weights by key.
      found: the one optimizer and its weights: parts of `saved` and `models`.
      notes: remarks on the names.
    """

    folder: Folder
    account: Account
    saved: Mapping[str, Saved]
    models: Mapping[str, Weights]
    found: Found
    notes: list[str]


def write_folder(target: Target, opened: Opened, old: int, new: int) -> Sequence[str]:
    """Write a folder like the one that was opened, with the values that were put into it since.

    Args:
      target: the folder, which is empty.
      opened: its optimizer and that one's weights are written, all else is copied.
      old: the steps of the template: the counts of Trainer and of the scheduler follow them.
      new: those of the values.

    Returns:
      What is copied unchanged, though it may depend on what was written.
    """
    folder, found = opened.folder, opened.found
    copy_folder(folder.path, target.path)
    left: list[str] = []
    # The optimizer is all of its file, or somewhere in one.
    keys = [key for key, saved in opened.saved.items() if saved.value is found.held]
    for key in keys or opened.saved:
        value, protocol = opened.saved[key]
        path = target.path / folder.optimizers[key].name
        write_archive(path, value, protocol=protocol, progress=target.progress)
    for weights in opened.models.values():
        if weights.arrays is not found.model:
            left += weights.files
            continue
        for file, own in weights.files.items():
            arrays = {name: weights.arrays[name] for name in own}
            _write_weights(target.path / file, folder.path / file, arrays, target.progress)
    folders = (child.name for child in folder.path.iterdir() if child.is_dir())
    left += sorted(name for name in folders if name != target.path.name)
    if old == new:
        return left
    _advance_trainer(target.path / TRAINER, new - old)
    own = [key.replace("optimizer", "scheduler") for key in keys]
    for name in (name for name in folder.others if name.startswith("scheduler")):
        is_own = name.partition(".")[0] in own
        if not is_own or not _advance_scheduler(target.path / name, opened, old, new):
            left.append(name)
    return left


def _write_weights(
    path: Path, template: Path, arrays: Mapping[str, Any], progress: Progress | None
) -> None:
    account = Account(template.stat().st_size)
    if template.suffix == ".safetensors":
        metadata = read_safetensors(template, account).metadata
        values = dict(zip(arrays, read_tensors(list(arrays.values())), strict=True))
        write_safetensors(path, values, metadata, progress)
        return
    saved, protocol = open_saved(template, account)
    saved.update(arrays)  # beside what is no tensor
    write_archive(path, saved, protocol=protocol, progress=progress)


def _advance_trainer(path: Path, more: int) -> None:
    """Move Trainer's count of updates by as many steps as the optimizer's count."""
    if not path.is_file():
        return
    text, count = STEP.subn(
        lambda match: match[1] + str(int(match[2]) + more).encode() + match[3], path.read_bytes()
    )
    if count != 1:
        raise CheckpointError(
            where=path.name,
            expected="one global_step on its own line, as Trainer writes it",
            found=f"{count}",
            argument="template",
        )
    path.write_bytes(text)


def _advance_scheduler(path: Path, opened: Opened, old: int, new: int) -> bool:
    """The same for a LambdaLR of torch that counts the optimizer's steps; False for others."""
    saved, protocol = open_saved(path, Account(path.stat().st_size))
    if not isinstance(saved, dict) or not saved.keys() <= _COUNTED:
        return False
    # Functions are not saved, but callable objects save their attributes.
    functions = saved.get("lr_lambdas")
    if saved.get("last_epoch") != old or not isinstance(functions, list) or any(functions):
        return False
    rates = [group.get("lr") for group in opened.found.state_dict["param_groups"]]
    saved |= {"last_epoch": new, "_step_count": new + 1, "_last_lr": rates}
    path.unlink()
    write_archive(path, saved, protocol=protocol)
    return True
