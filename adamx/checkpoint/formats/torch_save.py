"""Files of torch.save: the state dict of an Adam, wherever it stands in what was saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamx.base.errors import InvalidValue
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._refusals import explain_refusal
from adamx.checkpoint.formats._torch_checks import check_real
from adamx.checkpoint.formats._torch_flat import flatten, is_flat, unflatten
from adamx.checkpoint.formats._torch_objects import find_model, find_optimizer
from adamx.checkpoint.formats._torch_state import KEPT, KEYS, list_settings, read_state
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_archive import (
    LEGACY_SIGNATURE,
    Saved,
    open_archive,
    open_legacy,
)
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE
from adamx.checkpoint.writing.torch_writer import write_archive

__all__ = ["TorchSave"]

_SCHEDULES = {
    "decay": "torch has schedules beside the optimizer: save with decay=0 in the configuration, "
    "and go on there with torch.optim.lr_scheduler.LambdaLR",
    "learning_rate": "torch has schedules beside the optimizer: save with the rate of this step "
    "in the configuration, and go on there with one of torch.optim.lr_scheduler",
}


class TorchSave(FileFormat):
    """What `torch.save` writes; with the state dict of one Adam or AdamW in it."""

    name = "torch"
    title = "PyTorch"
    suffixes = (".pt", ".pth")
    template = "optional"
    framework = "torch"

    def matches(self, head: Head) -> bool:
        """Whether it is an archive with torch's members, or the older form."""
        is_archive = head.start.startswith(SIGNATURE)
        named = b"data.pkl" in head.start or b"/version" in head.start
        return (is_archive and named) or head.start.startswith(LEGACY_SIGNATURE)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise unless torch can express the configuration, the count and the moments."""
        _write_group(checkpoint)
        for name, array in checkpoint.mu.items():
            check_real(f"mu/{name}", array)
        if int(np.float32(checkpoint.count)) != checkpoint.count:
            raise CheckpointError(
                f"torch's float32 step cannot hold {checkpoint.count}", where="count"
            )

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the optimizer's state, and the weights beside it."""
        account = Account(source.path.stat().st_size)
        saved = _open(source.path, account).value
        return read_state(saved, account, source.config, values=values, progress=source.progress)

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write an optimizer's state dict, or a copy of the template with other values."""
        if template is None:
            saved, left, protocol = _write_state_dict(new), [], 2
        else:
            found = _open(template.path, Account(template.path.stat().st_size))
            saved, protocol = found
            left = _replace_state(saved, new)
        write_archive(target.path, saved, protocol=protocol, progress=target.progress)
        return left


def _open(path: Path, account: Account) -> Saved:
    """What was saved; arrays stay in the file until somebody looks at them."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_SIGNATURE))
    if start.startswith(SIGNATURE):
        return open_archive(path, account=account)
    if start != LEGACY_SIGNATURE:
        raise CheckpointError("expected a file of torch.save, found something else")
    return open_legacy(path, account)


def _write_state_dict(new: Checkpoint) -> dict[str, Any]:
    """What `torch.optim.Adam.load_state_dict` takes; the checkpoint's arrays are used up."""
    names = new.names
    group = _write_group(new) | {"params": list(range(len(names)))}
    if not all(name.isdecimal() for name in names):
        group["param_names"] = list(names)
    tensors: dict[str, dict[str, Any]] = {name: {} for name in new.mu}
    for key, field in KEYS.items():
        for name, array in new.drain(field):
            tensors[name][key] = make_tensor(array)
    state = {i: {"step": _make_step(new)} | tensors[n] for i, n in enumerate(names) if n in tensors}
    return {"state": state, "param_groups": [group]}


def _replace_state(saved: Any, new: Checkpoint) -> list[str]:
    """Put the values of a checkpoint into what a template holds."""
    found = find_optimizer(saved)
    state_dict = unflatten(found) if is_flat(found) else found
    groups = state_dict["param_groups"]
    shapes = [new.mu[name].shape if name in new.mu else None for name in new.names]
    model, _ = find_model(saved, groups, shapes)
    settings = {key: value for key, value in _write_group(new).items() if key not in KEPT}
    left = []
    if all(list_settings(group) == list_settings(groups[0]) for group in groups):
        for group in groups:
            group.update(settings)
    else:
        left.append("config")  # of groups with different ones, each keeps its own
    positions = [position for group in groups for position in group["params"]]
    state: dict[int | str, dict[str, Any]] = {
        position: {"step": _make_step(new)}
        for position, name in zip(positions, new.names, strict=True)
        if name in new.mu
    }
    for key, field in KEYS.items():
        arrays = getattr(new, field)
        for position, name in zip(positions, new.names, strict=True):
            if name in arrays:
                state[position][key] = make_tensor(arrays[name])
    state_dict["state"] = state
    if state_dict is not found:
        found.clear()
        found.update(flatten(state_dict))
    weights = {} if model is None else model
    for name, array in new.params.items():
        weights[name] = make_tensor(array)
    return left


def _write_group(checkpoint: Checkpoint) -> dict[str, Any]:
    """The parameter group of a checkpoint; an error where torch cannot express it."""
    try:
        return checkpoint.config.to_torch()
    except InvalidValue as error:
        raise explain_refusal(error, checkpoint, "torch", _SCHEDULES) from error


def _make_step(checkpoint: Checkpoint) -> Any:
    """The steps done, as torch counts them with each parameter."""
    return make_tensor(np.asarray(checkpoint.count, np.float32))


register(TorchSave())
