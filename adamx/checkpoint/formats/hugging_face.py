"""Folders of Hugging Face's Trainer and of Accelerate's save_state."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._counts import count_steps
from adamx.checkpoint.formats._hugging_face_folders import (
    CONFIG,
    SCALER,
    TRAINER,
    Folder,
    find_folder,
    is_folder,
    read_weights,
)
from adamx.checkpoint.formats._hugging_face_order import HOW_TO_NAME, name_by_model
from adamx.checkpoint.formats._hugging_face_writing import STEP, Opened, write_folder
from adamx.checkpoint.formats._torch_files import open_saved
from adamx.checkpoint.formats._torch_search import find_state
from adamx.checkpoint.formats._torch_state import read_state
from adamx.checkpoint.formats._torch_template import check_expressible, replace_state
from adamx.checkpoint.untrusted.account import Account, parse_json
from adamx.checkpoint.untrusted.torch_archive import Saved

__all__ = ["HuggingFace"]

_CONV1D = (
    "the kernels of GPT-2's Conv1D have the layout (in, out), like Flax's and unlike those of "
    "torch's Linear: pass layout=lambda path, array: array"
)


class HuggingFace(FileFormat):
    """What Trainer writes at a step, and `Accelerator.save_state`."""

    name = "hugging_face"
    title = "Hugging Face Trainer and Accelerate"
    names = "inferred, or unknown"
    config_of = "torch"
    has_selectors = True
    template = "required"

    def matches(self, head: Head) -> bool:
        """Whether a folder has files of these names, or a folder `checkpoint-N` in it has."""
        return bool(head.entries) and head.path.is_dir() and head.examine(is_folder)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the optimizer's state, and the weights beside it."""
        opened = _open_folder(source)
        folder, notes = opened.folder, opened.notes
        checkpoint = read_state(opened.found, opened.account, source, values=values)
        if any(map(_is_conv1d, checkpoint.params.items())):
            notes.append(_CONV1D)
        notes += _check_steps(folder, checkpoint, opened.account)
        used = {CONFIG, TRAINER}.union(*(held.files for held in opened.models.values()))
        used |= {held.listing for held in opened.models.values() if held.listing}
        others = [name for name in folder.others if name not in used]
        return dataclasses.replace(
            checkpoint,
            not_read=[*checkpoint.not_read, *others],
            notes=[*checkpoint.notes, *notes],
        )

    def check(self, checkpoint: Checkpoint, template: Source | None) -> None:
        """Raise unless torch can express the configuration, the count and the moments."""
        check_expressible(checkpoint, has_template=template is not None)

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write a copy of the template's folder with other weights, moments and steps."""
        assert template is not None  # it is required
        old = count_steps(self.read(template, values=False))
        opened = _open_folder(template)
        replace_state(opened.found, new)
        return write_folder(target, opened, old, count_steps(new))


def _open_folder(source: Source) -> Opened:
    folder = find_folder(source.path)
    account = Account(_measure(folder.path))
    saved = {key: _open(file, account) for key, file in folder.optimizers.items()}
    models = {key: read_weights(file, account) for key, file in folder.models.items()}
    tree = {key: one.value for key, one in saved.items()}
    tree |= {key: held.arrays for key, held in models.items()}
    notes: list[str] = []
    in_order = all(held.in_order for held in models.values())
    found = find_state(tree, source, in_order=in_order)
    if found.naming == "unknown":
        names = name_by_model(found, folder.path / CONFIG, account, notes)
        if names is None:
            notes.append(HOW_TO_NAME)
        else:
            found = found._replace(names=names, naming="inferred")
    return Opened(folder, account, saved, models, found, notes)


def _is_conv1d(item: tuple[str, np.ndarray]) -> bool:
    """Whether it is GPT-2's projection to query, key and value, whose shape tells its layout."""
    name, array = item
    return name.endswith("c_attn.weight") and array.ndim == 2 and array.shape[1] == 3 * len(array)


def _measure(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _open(file: Path, account: Account) -> Saved:
    with name_file(Path(file.name), "file"):
        return open_saved(file, account)


def _check_steps(folder: Folder, checkpoint: Checkpoint, account: Account) -> list[str]:
    """Remarks on the steps that Trainer counted; an error if they are another run's.

    Trainer counts updates, not batches: accumulated gradients make no difference. Where gradients
    overflow in float16, it counts the step, and its scaler leaves the update out.
    """
    path = folder.path / TRAINER
    if not path.is_file():
        return []
    if path.stat().st_size > account.size:
        raise ValueError(f"{TRAINER} is too large")
    text = path.read_bytes()
    match = STEP.search(text)
    steps = int(match[2]) if match else _parse_steps(text, account)
    count = count_steps(checkpoint)
    if steps == count:
        return []
    if SCALER in folder.others and count < steps:
        return [
            f"{TRAINER} counts {steps} steps, the optimizer {count}: by {SCALER}, this is a run in "
            "float16, which skips steps when gradients overflow"
        ]
    raise CheckpointError(
        where=TRAINER,
        expected=f"global_step {count}, as the optimizer's state says",
        found=steps,
        remedy="these files are from different steps, or the optimizer was reset during the run; "
        "if you know which, load the optimizer's file by itself, and its weights separately",
    )


def _parse_steps(text: bytes, account: Account) -> int:
    told = parse_json(text, account)
    steps = told.get("global_step") if isinstance(told, dict) else None
    if type(steps) is not int:
        raise CheckpointError(where=TRAINER, expected="a global_step", found=f"{steps!r:.40}")
    return steps


register(HuggingFace())
