"""Which files are in a folder of DeepSpeed, and what each of them holds."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._folders import list_names
from adamx.checkpoint.formats._torch_tensors import describe
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_archive import read_archive

__all__ = [
    "UNIVERSAL",
    "Files",
    "check_whole",
    "find_files",
    "find_folder",
    "is_checkpoint",
    "list_other_steps",
    "read_file",
]

UNIVERSAL = "zero"  # the folder with a folder for each parameter
_LATEST = ("latest", "latest_universal")  # files with the name of the newest step's folder
_RANK, _PART = r"zero_pp_rank_(\d{1,9})_", r"mp_rank_(\d{2,9})_"
_OPTIMIZER = re.compile(rf"(?:bf16_|fp16_)?{_RANK}{_PART}optim_states\.pt")
_MODEL = re.compile(rf"(?:{_RANK})?{_PART}model_states\.pt")
_EXPERTS = re.compile(r"(?:expp_rank_|layer_).*_states\.pt")
_FLAT = {"fp32_flat_groups", "single_partition_of_fp32_groups"}
_STATES = ("_optim_states.pt", "_model_states.pt")


class Files(NamedTuple):
    """The files of one step.

    Attributes:
      optimizer: of each rank; none in a universal checkpoint.
      model: of each rank that has one; the first is that of rank 0.
    """

    optimizer: list[Path]
    model: list[Path]


def is_checkpoint(folder: Path) -> bool:
    """Whether it is the folder of a step, or one with such folders."""
    return _is_step(folder) or any(
        _is_step(child) for child in folder.iterdir() if child.is_dir() and not child.is_symlink()
    )


def _is_step(folder: Path) -> bool:
    return any(path.name.endswith(_STATES) for path in folder.iterdir())


def find_folder(folder: Path) -> Path:
    """The folder of the step that is to be read."""
    if _is_step(folder):
        return folder
    steps = _list_steps(folder)
    for name in _LATEST:
        if (folder / name).is_file():
            tag = _read_tag(folder / name)
            if tag in steps:
                return folder / tag
            raise CheckpointError(
                where=name,
                expected=f"the name of one of the folders here: {listed(steps)}",
                found=f"{tag!r:.200}",
                remedy=f"use the folder of a step, such as {steps[0]}",
            )
    raise CheckpointError(
        expected="the file `latest`, which names the step to read",
        found=list_names(folder),
        remedy=f"use the folder of a step, such as {steps[0]}",
    )


def _list_steps(folder: Path) -> list[str]:
    """The names of the folders of steps in one."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _is_step(path))


def _read_tag(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1_000).decode(errors="replace").strip()


def list_other_steps(folder: Path, step: str) -> list[str]:
    """The names of the folders of steps in one, and of the files that name another than `step`."""
    latest = [name for name in _LATEST if (folder / name).is_file()]
    return _list_steps(folder) + [name for name in latest if _read_tag(folder / name) != step]


def find_files(folder: Path) -> Files:
    """The files of all ranks.

    Raises:
      CheckpointError: the model is split over ranks, or the files of a rank are missing.
    """
    optimizer: dict[int, Path] = {}
    model: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if _EXPERTS.fullmatch(path.name):
            raise _refuse_split(path.name, "parts of a pipeline or experts")
        for pattern, found in ((_OPTIMIZER, optimizer), (_MODEL, model)):
            if match := pattern.fullmatch(path.name):
                rank, part = int(match[1] or 0), int(match[2])
                if part:
                    raise _refuse_split(path.name, f"a part {part} of the model")
                if rank in found:
                    raise CheckpointError(
                        expected=f"one file of rank {rank}",
                        found=f"{found[rank].name}, {path.name}",
                        remedy="remove that of the older run",
                    )
                found[rank] = path
    if 0 not in model:
        raise CheckpointError(
            expected="mp_rank_00_model_states.pt, which has names and shapes, of rank 0",
            found=list_names(folder),
        )
    for found, suffix in ((optimizer, _STATES[0]), (model, _STATES[1])):
        missing = [str(rank) for rank in range(max(found, default=-1)) if rank not in found]
        if missing:
            raise CheckpointError(
                expected=f"the files *{suffix} of all ranks",
                found=f"none of rank {listed(missing)}",
                remedy="copy the files of all nodes into one folder",
            )
    return Files([optimizer[r] for r in sorted(optimizer)], [model[r] for r in sorted(model)])


def _refuse_split(name: str, found: str) -> CheckpointError:
    return CheckpointError(
        where=name,
        expected="a model that is not split (data parallel only)",
        found=found,
        remedy="adamx does not merge the parts of such tensors: load it with DeepSpeed, and save "
        "full tensors",
    )


def check_whole(saved: Any) -> None:
    """Raise if a file that was given alone is the part of one rank."""
    held = saved.get("optimizer_state_dict") if isinstance(saved, dict) else None
    if isinstance(held, dict) and not _FLAT.isdisjoint(held):
        raise CheckpointError(
            expected="the optimizer's state from all ranks",
            found="that of one rank, written by DeepSpeed's ZeRO: flat vectors without names",
            remedy="use the folder that contains this file",
        )


def read_file(path: Path, account: Account) -> dict[str, Any]:
    """The dictionary in a file; its tensors are maps of the file."""
    try:
        saved = read_archive(path, account=account)
    except CheckpointError as error:
        raise error.within(path.name) from error
    except ValueError as error:
        raise CheckpointError(f"truncated or damaged: {error}", where=path.name) from error
    if not isinstance(saved, dict):
        raise CheckpointError(where=path.name, expected="a dictionary", found=describe(saved))
    return saved
