"""Files of torch.save: the state dict of an Adam, wherever it is in the saved object."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._counts import count_steps
from adamx.checkpoint.formats._deepspeed_files import check_whole
from adamx.checkpoint.formats._torch_files import open_saved
from adamx.checkpoint.formats._torch_objects import outline
from adamx.checkpoint.formats._torch_search import find_state
from adamx.checkpoint.formats._torch_state import KEYS, read_state
from adamx.checkpoint.formats._torch_template import (
    check_expressible,
    make_step,
    replace_state,
    write_groups,
)
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_archive import LEGACY_SIGNATURE
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE
from adamx.checkpoint.writing.torch_writer import write_archive
from adamx.config.groups import ParameterGroup, list_unlike

__all__ = ["TorchSave"]


class TorchSave(FileFormat):
    """What `torch.save` writes; with the state dict of one Adam or AdamW in it."""

    name = "torch"
    title = "PyTorch"
    names = "told, or inferred from the order of the weights"
    config_of = "torch"
    suffixes = (".pt", ".pth", ".pth.tar", ".ckpt")
    template = "optional"
    framework = "torch"
    has_selectors = True

    def matches(self, head: Head) -> bool:
        """Whether it is an archive with torch's members, or the older form."""
        is_archive = head.start.startswith(SIGNATURE)
        named = b"data.pkl" in head.start or b"/version" in head.start
        if head.path.suffix == ".distcp":  # many archives: a part of another format
            return False
        return (is_archive and named) or head.start.startswith(LEGACY_SIGNATURE)

    def check(self, checkpoint: Checkpoint, template: Source | None) -> None:
        """Raise unless torch can express the configuration, the count and the moments."""
        check_expressible(checkpoint, has_template=template is not None)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the optimizer's state, and the weights beside it."""
        account = Account(source.path.stat().st_size)
        saved = open_saved(source.path, account).value
        check_whole(saved)
        return read_state(find_state(saved, source), account, source, values=values)

    def outline(self, path: Path) -> Iterable[str]:
        """The optimizers, models and other keys of what was saved."""
        return outline(open_saved(path, Account(path.stat().st_size)).value)

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write an optimizer's state dict, or a copy of the template with other values."""
        left: list[str] = []
        if template is None:
            saved, protocol = _write_state_dict(new), 2
        else:
            account = Account(template.path.stat().st_size)
            saved, protocol = open_saved(template.path, account)
            found = find_state(saved, template)
            old = count_steps(read_state(found, account, template, values=False))
            replace_state(found, new)
            left += found.others if count_steps(new) != old else []
        write_archive(target.path, saved, protocol=protocol, progress=target.progress)
        return left


def _write_state_dict(new: Checkpoint) -> dict[str, Any]:
    """What `torch.optim.Adam.load_state_dict` takes; the checkpoint's arrays are dropped."""
    names, groups, start = new.names, [], 0
    steps = {name: make_step(group.count) for group in new.groups for name in group.names}
    for own in _join_counts(new.groups):
        [group] = write_groups([own])
        group["params"] = list(range(start, start + len(own.names)))
        start += len(own.names)
        if all(how == "file" for how in new.naming.values()):  # an inferred name is no fact
            group["param_names"] = list(own.names)
        groups.append(group)
    tensors: dict[str, dict[str, Any]] = {name: {} for name in new.mu}
    for key, field in KEYS.items():
        for name, array in new.drain(field):
            tensors[name][key] = make_tensor(array)
    state = {i: {"step": steps[n]} | tensors[n] for i, n in enumerate(names) if n in tensors}
    return {"state": state, "param_groups": groups}


def _join_counts(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """The groups, with one for those that follow one another and differ in their count alone."""
    joined: list[ParameterGroup] = []
    for group in groups:
        if joined and list_unlike([joined[-1], group]) == ["count"]:
            names = joined[-1].names + group.names
            joined[-1] = dataclasses.replace(group, names=names)
        else:
            joined.append(group)
    return joined


register(TorchSave())
