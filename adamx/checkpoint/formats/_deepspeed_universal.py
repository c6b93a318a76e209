"""DeepSpeed's Universal Checkpoints: a folder for each parameter."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._deepspeed_files import read_file
from adamx.checkpoint.formats._deepspeed_flat import Shapes
from adamx.checkpoint.formats._deepspeed_state import State, name_groups, replace_groups
from adamx.checkpoint.formats._torch_tensors import describe
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_archive import read_archive
from adamx.checkpoint.untrusted.torch_tensors import Tensor, make_tensor
from adamx.checkpoint.writing.torch_writer import write_archive

__all__ = ["read_universal", "write_universal"]

_COMMON = "optimizer_state.pt"
_FIELDS = ("fp32", "exp_avg", "exp_avg_sq")


def read_universal(folder: Path, shapes: Sequence[Shapes], account: Account) -> State:
    """The optimizer in a folder; its arrays stay maps of the files.

    Args:
      folder: with a folder for each parameter, and one file of what they have in common.
      shapes: of the parameters.
      account: what is charged.
    """
    if not (folder / _COMMON).is_file():
        raise CheckpointError(
            where=folder.name,
            expected=f"{_COMMON}, which has the hyperparameters",
            found=listed(sorted(path.name for path in folder.iterdir())) or "nothing",
        )
    common = read_file(folder / _COMMON, account)
    groups = common.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(
            where=f"{_COMMON}: param_groups", expected="dictionaries", found=describe(groups)
        )
    names = {name for own in shapes for name in own}
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    if names != there:
        raise CheckpointError(
            where=folder.name,
            expected="a folder for each parameter of param_shapes",
            found=f"missing: {listed(sorted(names - there)) or 'none'}; "
            f"unexpected: {listed(sorted(there - names)) or 'none'}",
        )
    made = State({}, name_groups(groups, shapes), {})
    for index, own in enumerate(shapes):
        for name, shape in own.items():
            arrays = {
                key: _read_parameter(folder / name / f"{key}.pt", shape, account) for key in _FIELDS
            }
            made.masters[name] = arrays.pop("fp32")
            made.state[name] = arrays
            step = _read_step(folder / name / "step.pt", common, index, account)
            if step is not None:
                made.state[name]["step"] = step
    return made


def write_universal(
    old: Path,
    new: Path,
    shapes: Sequence[Shapes],
    state: Mapping[str, Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    weights: Mapping[str, np.ndarray],
    account: Account,
) -> None:
    """Write other values into a copy of such a folder.

    Args:
      old: the folder, whose files determine the form of each array.
      new: the copy.
      shapes: of the parameters.
      state: of the optimizer, by name.
      groups: hyperparameters.
      weights: by name.
      account: what reading is charged to.
    """
    common = read_file(old / _COMMON, account)
    replace_groups(common["param_groups"], groups)
    held = common.get("optimizer_state_dict")
    for index, own in enumerate(shapes):
        for name in own:
            arrays = {**state[name], "fp32": weights[name]}
            for key in _FIELDS:
                saved = _read(old / name / f"{key}.pt", account)
                tensor = saved["param"] if isinstance(saved, dict) else saved
                made = make_tensor(arrays[key].reshape(tensor.shape))
                saved = saved | {"param": made} if isinstance(saved, dict) else made
                write_archive(new / name / f"{key}.pt", saved)
            if (old / name / "step.pt").is_file():
                write_archive(new / name / "step.pt", state[name]["step"])
        entry = held["state"].get(index) if isinstance(held, dict) else None
        if own and isinstance(entry, dict) and "step" in entry:  # all are at one step
            entry["step"] = state[next(iter(own))]["step"]
    if isinstance(held, dict) and isinstance(held.get("param_groups"), list):
        replace_groups(held["param_groups"], groups)
    write_archive(new / _COMMON, common)


def _read_parameter(path: Path, shape: tuple[int, ...], account: Account) -> Any:
    saved = _read(path, account)
    tensor = saved.get("param") if isinstance(saved, dict) else saved  # ZeRO-3 saves it bare
    where = f"{path.parent.name}/{path.name}"
    if not isinstance(tensor, Tensor):
        raise CheckpointError(where=where, expected="a tensor", found=describe(tensor))
    is_flat = tensor.shape == (math.prod(shape),) and tensor.flags.c_contiguous
    if tensor.shape != shape and not is_flat:
        raise CheckpointError(where=where, expected=f"shape {shape}", found=str(tensor.shape))
    if tensor.shape == shape:
        return tensor
    shaped = tensor.reshape(shape).view(Tensor)
    shaped.call, shaped.storage = tensor.call, tensor.storage
    return shaped


def _read_step(path: Path, common: Mapping[str, Any], index: int, account: Account) -> Any:
    """The steps done; of ZeRO-3 they are in the state of rank 0; None if the groups have them."""
    if path.is_file():
        return _read(path, account)
    held = common.get("optimizer_state_dict")
    state = held.get("state") if isinstance(held, dict) else None
    entry = state.get(index) if isinstance(state, dict) else None
    return entry.get("step") if isinstance(entry, dict) else None


def _read(path: Path, account: Account) -> Any:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise CheckpointError(
            where=path.parent.name, expected=path.name, found="a folder without it"
        )
    try:
        return read_archive(path, account=account)
    except CheckpointError as error:
        raise error.within(where) from error
    except ValueError as error:
        raise CheckpointError(f"truncated or damaged: {error}", where=where) from error
