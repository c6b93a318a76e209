"""Files of torch.save: the state dict of an Adam, wherever it stands in what was saved."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamx.base.errors import InvalidValue
from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._deepspeed_files import check_whole
from adamx.checkpoint.formats._refusals import explain_refusal
from adamx.checkpoint.formats._torch_files import open_saved
from adamx.checkpoint.formats._torch_flat import flatten
from adamx.checkpoint.formats._torch_objects import outline
from adamx.checkpoint.formats._torch_optimizers import Kind, find_kind, read_config
from adamx.checkpoint.formats._torch_search import find_state
from adamx.checkpoint.formats._torch_state import KEYS, read_state
from adamx.checkpoint.formats._torch_tensors import check_real
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_archive import LEGACY_SIGNATURE
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE
from adamx.checkpoint.writing.torch_writer import write_archive
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup, list_unlike
from adamx.config.torch_config import IGNORED

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
        if template is None:  # which may be of another Adam than torch's own
            _write_groups(checkpoint.groups)
        for name, array in checkpoint.mu.items():
            check_real(f"mu/{name}", array)
        for group in checkpoint.groups:
            if int(np.float32(group.count)) != group.count:
                raise CheckpointError(
                    f"torch's float32 step cannot hold {group.count}", where="count"
                )

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
        if template is None:
            saved, protocol = _write_state_dict(new), 2
        else:
            found = open_saved(template.path, Account(template.path.stat().st_size))
            saved, protocol = found
            _replace_state(saved, new, template)
        write_archive(target.path, saved, protocol=protocol, progress=target.progress)
        return []


def _write_state_dict(new: Checkpoint) -> dict[str, Any]:
    """What `torch.optim.Adam.load_state_dict` takes; the checkpoint's arrays are used up."""
    names, groups, start = new.names, [], 0
    steps = {name: _make_step(group.count) for group in new.groups for name in group.names}
    for own in _join_counts(new.groups):
        [group] = _write_groups([own])
        group["params"] = list(range(start, start + len(own.names)))
        start += len(own.names)
        if all(how == "file" for how in new.naming.values()):  # or inferred names became facts
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


def _replace_state(saved: Any, new: Checkpoint, template: Source) -> None:
    """Put the values of a checkpoint into what a template holds."""
    found = find_state(saved, template)
    state_dict, groups = found.state_dict, found.state_dict["param_groups"]
    position_of = dict(zip(found.names, found.positions, strict=True))
    own = {name: group for group in new.groups for name in group.names}
    kind = find_kind(groups, state_dict["state"], found.library)
    if kind.is_quantised:
        raise CheckpointError(
            where="template",
            expected="moments of 16 bits or more in the template",
            found=f"those of {kind.name}, which adamx reads and does not write",
            argument="template",
        )
    for group in groups:
        positions = set(group["params"])
        fitted = {n: own[n] for n, p in position_of.items() if p in positions and n in new.mu}
        if fitted:
            _set_hyperparameters(kind, group, fitted)
    state: dict[int | str, dict[str, Any]] = {position_of[n]: {} for n in new.mu}
    counts = {n: g.count for g in new.groups for n in g.names}
    for group in groups:
        for name in (n for n in new.mu if position_of[n] in set(group["params"])):
            was = state_dict["state"].get(position_of[name], {})
            if "step" in group:  # Apex has it there, for all; `_set_hyperparameters` has it checked
                group["step"] = counts[name]
            else:
                is_whole = type(was.get("step")) is int  # of older optimizers
                count = counts[name]
                state[position_of[name]]["step"] = count if is_whole else _make_step(count)
    for key, field in KEYS.items():
        for name, array in getattr(new, field).items():
            state[position_of[name]][key] = make_tensor(array)
    state_dict["state"] = state
    if state_dict is not found.held:
        found.held.clear()
        found.held.update(flatten(state_dict))
    weights = {} if found.model is None else found.model
    for name, array in new.params.items():
        weights[name] = make_tensor(array)


def _set_hyperparameters(
    kind: Kind, group: dict[str, Any], fitted: Mapping[str, ParameterGroup]
) -> None:
    """Put the hyperparameters of a checkpoint's variables into their group in a template.

    Raises:
      CheckpointError: the variables have different ones; or the template's optimizer would compute
        another Adam with them.
    """
    first = next(iter(fitted.values()))
    unlike = list_unlike(list(fitted.values()))
    if set(unlike) - {"count"} or (unlike and "step" in group):
        raise CheckpointError(
            where="groups",
            expected=f"one {listed(unlike)} for all variables of a group of the template",
            found=f"several for {listed(fitted, most=5)}",
            remedy="give a template with the same groups",
            argument="template",
        )
    config = first.config
    if _holds(kind, group, config):
        return
    if config.convention == "optax" and not config.amsgrad:  # the same step as torch's
        config = dataclasses.replace(config, convention="torch")
    plain = config
    if kind.own:  # which tell an Adam of another form than torch's own
        plain = dataclasses.replace(config, convention="torch", bias_correction=True)
    [settings] = _write_groups([dataclasses.replace(first, config=plain)])
    changed = group | {k: v for k, v in settings.items() if k in group and k not in IGNORED}
    changed |= {key: config.bias_correction for key in kind.own if "bias" in key}
    form = {"convention": config.convention, "bias_correction": config.bias_correction}
    meant = dataclasses.replace(AdamConfig.from_torch(settings), **form)
    try:
        found = read_config(kind, changed)
    except CheckpointError as error:
        raise error.replace(
            remedy="Give a template of another optimizer", argument="template"
        ) from error
    fields = [field.name for field in dataclasses.fields(AdamConfig)]
    if lost := [name for name in fields if getattr(found, name) != getattr(meant, name)]:
        raise CheckpointError(
            where="template",
            expected=f"an optimizer that computes {_describe(meant, lost)}",
            found=f"{kind.name}, which computes {_describe(found, lost)}",
            remedy="give a template of another optimizer, or none",
            argument="template",
        )
    group.update(changed)


def _describe(config: AdamConfig, fields: Sequence[str]) -> str:
    return listed(f"{name}={getattr(config, name)!r}" for name in fields)


def _holds(kind: Kind, group: Mapping[str, Any], config: AdamConfig) -> bool:
    """Whether a group of a template has these hyperparameters already."""
    try:
        return read_config(kind, group) == config
    except CheckpointError:  # it has ones that adamx does not know
        return False


def _write_groups(groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """The hyperparameters of groups for torch; an error where it cannot express them."""
    written = []
    for group in groups:
        try:
            written.append(group.config.to_torch())
        except InvalidValue as error:
            raise explain_refusal(error, group, "torch", _SCHEDULES) from error
    return written


def _make_step(count: int) -> Any:
    """The steps done, as torch counts them with each parameter."""
    return make_tensor(np.asarray(count, np.float32))


register(TorchSave())
