"""A folder of DeepSpeed with other values, made from one of the same model."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamx.checkpoint.format import Target
from adamx.checkpoint.formats._deepspeed_files import UNIVERSAL, Files, list_other_steps
from adamx.checkpoint.formats._deepspeed_flat import Shapes, scatter
from adamx.checkpoint.formats._deepspeed_state import replace_groups
from adamx.checkpoint.formats._deepspeed_universal import write_universal
from adamx.checkpoint.formats._deepspeed_weights import replace_weights
from adamx.checkpoint.formats._deepspeed_zero import Zero
from adamx.checkpoint.formats._folders import copy_folder
from adamx.checkpoint.formats._torch_state import KEYS
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.writing.torch_writer import write_archive

__all__ = ["Opened", "write_folder"]

# Copies that stay valid: DeepSpeed's own script, and what names the step's folder.
_OWN = re.compile(r"latest(_universal)?|zero_to_\w+\.py")

_Entries = Mapping[str, Mapping[str, Any]]


class Opened(NamedTuple):
    """The folder of a step, and what is in its files.

    Attributes:
      folder: it.
      files: of it.
      account: what reading them is charged to.
      models: what the models' files hold.
      optimizers: what the optimizer's files hold; nothing in a Universal Checkpoint.
      shapes: of the parameters of each vector.
      zero: what is where in the optimizer's files; None for a Universal Checkpoint.
      saved: the optimizer and the model as state dicts.
    """

    folder: Path
    files: Files
    account: Account
    models: list[dict[str, Any]]
    optimizers: list[dict[str, Any]]
    shapes: list[Shapes]
    zero: Zero | None
    saved: dict[str, dict[str, Any]]


def write_folder(
    target: Target, path: Path, opened: Opened, weights: Mapping[str, np.ndarray], more: int
) -> list[str]:
    """Write a folder like the one that was opened, with the values that `saved` has since.

    Args:
      target: the folder, which is empty.
      path: the template: the folder of a step, or one with that of the newest step in it.
      opened: the step; its `saved` has the new state.
      weights: by name.
      more: how many steps the values are ahead of those of the template.

    Returns:
      What is copied unchanged, though it may depend on what was written.
    """
    state, groups = opened.saved["optimizer"]["state"], opened.saved["optimizer"]["param_groups"]
    place, left = target.path, []
    if opened.folder != path:
        left += copy_folder(path, place, list_other_steps(path, opened.folder.name))
        place /= opened.folder.name
        place.mkdir()
    # A Universal Checkpoint may be in one folder with the optimizer's files that it was made of.
    models = [file.name for file in opened.files.model]
    optimizers = [file.name for file in opened.files.optimizer]
    left += copy_folder(opened.folder, place, [*models, *optimizers, UNIVERSAL])
    if opened.zero is None:
        old, new = opened.folder / UNIVERSAL, place / UNIVERSAL
        new.mkdir()
        copy_folder(old, new)
        write_universal(old, new, opened.shapes, state, groups, weights, opened.account)
    else:
        _replace_vectors(opened.zero, opened.shapes, state, groups, weights)
    replace_weights(opened.models, weights)
    advanced = [_advance(model, more) for model in opened.models]
    left += [] if all(advanced) else ["global_steps"]
    contents = dict(zip(models, opened.models, strict=True))
    if opened.zero is not None:
        contents |= dict(zip(optimizers, opened.optimizers, strict=True))
    for name, content in contents.items():
        write_archive(place / name, content, progress=target.progress)
    return [name for name in left if not _OWN.fullmatch(name)]


def _replace_vectors(
    zero: Zero,
    shapes: Sequence[Shapes],
    state: _Entries,
    groups: Sequence[Mapping[str, Any]],
    weights: Mapping[str, np.ndarray],
) -> None:
    for index, own in enumerate(shapes):
        entries = [one.optimizer["state"][index] for one in zero.ranks]
        pieces = zero.pieces[index]
        for key in (key for key in KEYS if key in entries[0]):
            arrays = {name: state[name][key] for name in own}
            vectors = scatter(arrays, pieces, [entry[key] for entry in entries])
            for entry, vector in zip(entries, vectors, strict=True):
                entry[key] = vector
        if own:  # all are at one step
            step = state[next(iter(own))].get("step")
            for entry in entries:
                entry |= {"step": step} if "step" in entry else {}
        masters = [one.held[one.key] for one in zero.ranks]
        arrays = {name: weights[name] for name in own}
        vectors = scatter(arrays, pieces, [one[index] for one in masters])
        for rank, vector in zip(zero.ranks, vectors, strict=True):
            held = list(rank.held[rank.key])
            held[index] = vector
            rank.held[rank.key] = held
    for rank in zero.ranks:
        replace_groups(rank.optimizer["param_groups"], groups)


def _advance(model: dict[str, Any], more: int) -> bool:
    """Move the engine's counts by as many steps as the optimizer's count.

    False if they cannot be moved.
    """
    steps, samples = model.get("global_steps"), model.get("global_samples")
    if type(steps) is not int or not more:
        return True
    if steps + more < 0:  # the engine's count was restarted, and the optimizer's was not
        return False
    model["global_steps"] = steps + more
    if type(samples) is int and steps and samples % steps == 0:  # batches were of one size
        model["global_samples"] = samples + more * (samples // steps)
    return True
