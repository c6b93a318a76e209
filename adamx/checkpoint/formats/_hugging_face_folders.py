"""The files in a folder of Hugging Face's Trainer or of Accelerate."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.formats._dcp_safetensors import has_state
from adamx.checkpoint.formats._torch_files import open_saved
from adamx.checkpoint.formats._torch_objects import list_tensors
from adamx.checkpoint.untrusted.account import Account, parse_json
from adamx.checkpoint.untrusted.safetensors_file import read_safetensors

__all__ = [
    "CONFIG",
    "SCALER",
    "TRAINER",
    "Folder",
    "Weights",
    "find_folder",
    "is_folder",
    "read_weights",
]

CONFIG, SCALER, TRAINER = "config.json", "scaler.pt", "trainer_state.json"
_OPTIMIZER = re.compile(r"(optimizer(?:_\d{1,6})?)\.(?:pt|bin)")
_WEIGHTS = re.compile(
    r"((?:model|pytorch_model|adapter_model)(?:_\d{1,6})?)\.(?:safetensors|bin)(\.index\.json)?"
)
_STEP = re.compile(r"checkpoint-\d{1,18}")
_SHARDED = re.compile(r"optimizer_\d{1,6}|pytorch_model_fsdp_\d{1,6}")
# Files of other programs, whose folders may also hold files with the names above.
_OTHERS = re.compile(r"global_step\d+|latest|zero_to_fp32\.py|\.metadata|_METADATA")
_INDEX = ".index.json"


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of a checkpoint.

    Attributes:
      path: of the folder.
      optimizers: files by key, such as `optimizer` and `optimizer_1`.
      models: files of weights by key, such as `model`; or the index of several.
      others: names of all else.
    """

    path: Path
    optimizers: Mapping[str, Path]
    models: Mapping[str, Path]
    others: Collection[str]


def is_folder(folder: Path) -> bool:
    """Whether it is such a folder, with an optimizer or without, or one with such within."""
    names = {child.name for child in folder.iterdir()}
    if any(_OTHERS.fullmatch(name) for name in names):
        return False
    if not any(_OPTIMIZER.fullmatch(name) for name in names) and has_state(folder):
        return False  # torch.distributed.checkpoint calls its files so, too
    return _is_saved(names) or bool(_list_steps(folder))


def _is_saved(names: Collection[str]) -> bool:
    patterns = (_OPTIMIZER, _WEIGHTS, _SHARDED)
    return not {TRAINER, "training_args.bin"}.isdisjoint(names) or any(
        pattern.fullmatch(name) for name in names for pattern in patterns
    )


def _list_steps(folder: Path) -> list[Path]:
    """The folders of a Trainer within its output folder, by number."""
    children = [child for child in folder.iterdir() if _STEP.fullmatch(child.name)]
    steps = [p for p in children if p.is_dir() and _is_saved({q.name for q in p.iterdir()})]
    return sorted(steps, key=lambda step: int(step.name.rpartition("-")[2]))


def find_folder(path: Path) -> Folder:
    """The files with the state of an optimizer.

    Raises:
      CheckpointError: there is none, or there are several folders that have one.
    """
    names = sorted(child.name for child in path.iterdir())
    optimizers = _list_files(path, names, _OPTIMIZER)
    if optimizers:
        models = _list_files(path, names, _WEIGHTS)
        used = {file.name for file in (*optimizers.values(), *models.values())}
        return Folder(path, optimizers, models, [name for name in names if name not in used])
    steps = _list_steps(path)
    if len(steps) == 1:
        try:
            return find_folder(steps[0])
        except CheckpointError as error:
            raise error.within(steps[0].name) from error.__cause__
    if steps:
        raise CheckpointError(
            expected="the folder of one step of a Trainer",
            found=f"{len(steps)}: {listed(step.name for step in steps)}",
            remedy=f"use one of them, such as {steps[-1].name}",
        )
    if other := [name for name in names if _OTHERS.fullmatch(name) or _SHARDED.fullmatch(name)]:
        raise CheckpointError(
            expected="optimizer.pt or optimizer.bin",
            found=f"{listed(other)}: torch.distributed or DeepSpeed wrote the optimizer's state",
            remedy="use the folder that holds it, such as optimizer_0 or global_step10; or save "
            "a state that is not sharded (FSDP: state_dict_type FULL_STATE_DICT)",
        )
    raise CheckpointError(
        expected="optimizer.pt or optimizer.bin, with the optimizer's state",
        found=f"only weights and settings: {listed(names)}",
        remedy="use a folder checkpoint-N of a Trainer that ran with save_only_model=False, or "
        "one of Accelerate's save_state",
    )


def _list_files(path: Path, names: Collection[str], pattern: re.Pattern[str]) -> dict[str, Path]:
    """The files with such names, or their indices, by key; an error if two have one key."""
    found: dict[str, Path] = {}
    for name in names:
        if (match := pattern.fullmatch(name)) is None:
            continue
        if match[1] in found:
            raise CheckpointError(
                expected=f"one file called {match[1]}",
                found=listed([found[match[1]].name, name]),
                remedy="remove the one that is not of this run",
            )
        found[match[1]] = path / name
    return found


class Weights(NamedTuple):
    """A model's weights, as maps of their files.

    Attributes:
      arrays: by name.
      in_order: whether they are in the model's order.
      files: by name of each file of weights, the names in it.
      listing: the name of the file that lists several; or None.
    """

    arrays: dict[str, Any]
    in_order: bool
    files: dict[str, list[str]]
    listing: str | None


def read_weights(file: Path, account: Account) -> Weights:
    """The weights in a file, or in those that an index lists."""
    if not file.name.endswith(_INDEX):
        arrays = _read_file(file, account)
        return Weights(arrays, file.suffix == ".bin", {file.name: list(arrays)}, None)
    if file.stat().st_size > account.size:
        raise ValueError(f"{file.name} is too large")
    told = parse_json(file.read_bytes(), account)
    weight_map = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
    ):
        raise ValueError(f"{file.name} has no weight_map to files in its folder")
    weights: dict[str, Any] = {}
    files: dict[str, list[str]] = {}
    for shard in sorted(set(weight_map.values())):
        own = _read_file(file.parent / shard, account)
        if wrong := [name for name in own if weight_map.get(name) != shard]:
            raise CheckpointError(
                where=shard,
                expected=f"only weights that {file.name} lists for it",
                found=listed(wrong),
            )
        weights |= own
        files[shard] = list(own)
    if missing := [name for name in weight_map if name not in weights]:
        raise CheckpointError(
            where=file.name, expected="files with all weights", found=f"none for {listed(missing)}"
        )
    # A weight larger than a file may be gets one of its own, before those that precede it.
    return Weights(weights, False, files, file.name)


def _read_file(file: Path, account: Account) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(
            where=file.name, expected="a file of weights in the folder of its index", found="none"
        )
    with name_file(Path(file.name), "file"):
        if file.suffix == ".safetensors":
            return dict(read_safetensors(file, account).arrays)
        saved = open_saved(file, account).value
    if not isinstance(saved, dict):
        raise CheckpointError(where=file.name, expected="weights by name", found="something else")
    return list_tensors(saved)
