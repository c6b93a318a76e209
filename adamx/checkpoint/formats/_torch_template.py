"""The values of a checkpoint in a state dict of torch: in a new one's groups, or in a template."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx.base.errors import InvalidValue
from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._refusals import explain_refusal
from adamx.checkpoint.formats._torch_flat import flatten
from adamx.checkpoint.formats._torch_optimizers import Kind, find_kind, read_config
from adamx.checkpoint.formats._torch_search import Found, find_place
from adamx.checkpoint.formats._torch_state import KEYS
from adamx.checkpoint.formats._torch_tensors import check_real
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup, list_unlike
from adamx.config.torch_config import IGNORED

__all__ = [
    "check_expressible",
    "check_tied",
    "make_step",
    "refuse_template",
    "replace_state",
    "write_groups",
]

_SCHEDULES = {
    "decay": "torch keeps schedules outside of the optimizer: save with decay=0 in the "
    "configuration, and continue in torch with torch.optim.lr_scheduler.LambdaLR",
    "learning_rate": "torch keeps schedules outside of the optimizer: save with the rate of this "
    "step in the configuration, and continue in torch with one of torch.optim.lr_scheduler",
}


def check_expressible(checkpoint: Checkpoint, *, has_template: bool) -> None:
    """Raise unless torch can express the configuration, the count and the moments."""
    if not has_template:  # a template may be of another Adam than torch's own
        write_groups(checkpoint.groups)
    for name, array in checkpoint.mu.items():
        check_real(f"mu/{name}", array)
    for group in checkpoint.groups:
        if int(np.float32(group.count)) != group.count:
            raise CheckpointError(f"torch's float32 step cannot hold {group.count}", where="count")


def replace_state(found: Found, new: Checkpoint) -> None:
    """Put the values of a checkpoint into the optimizer of a template, and into its model."""
    state_dict, groups = found.state_dict, found.state_dict["param_groups"]
    position_of = dict(zip(found.names, found.positions, strict=True))
    own = {name: group for group in new.groups for name in group.names}
    kind = find_kind(groups, state_dict["state"], found.library)
    if kind.is_quantised:
        raise CheckpointError(
            where="template",
            expected="moments of 16 bits or more in the template",
            found=f"those of {kind.name}, which adamx can read but not write",
            argument="template",
        )
    state: dict[int | str, dict[str, Any]] = {position_of[n]: {} for n in new.mu}
    counts = {n: g.count for g in new.groups for n in g.names}
    for group in groups:
        was = {p: state_dict["state"].get(p, {}) for p in group["params"]}
        fitted = {n: own[n] for n, p in position_of.items() if p in was and n in new.mu}
        # Apex counts in the group. DeepSpeed's FusedAdam has a step there, too, which stays 0.
        in_group = "step" in group and not any("step" in entry for entry in was.values())
        if fitted:
            _set_hyperparameters(kind, group, fitted, in_group=in_group)
        for name in fitted:
            entry, count = was[position_of[name]], counts[name]
            if in_group:  # for all: `_set_hyperparameters` has it checked
                group["step"] = count
            else:
                is_whole = type(entry.get("step")) is int  # of older optimizers
                state[position_of[name]]["step"] = count if is_whole else make_step(count)
    for key, field in KEYS.items():
        for name, array in getattr(new, field).items():
            state[position_of[name]][key] = make_tensor(array)
    state_dict["state"] = state
    if state_dict is not found.held:
        found.held.clear()
        found.held.update(flatten(state_dict))
    if found.model is not None:
        _replace_weights(found.model, new.params)


def _replace_weights(weights: dict[str, Any], params: Mapping[str, np.ndarray]) -> None:
    """Put weights into a model; a tensor with several names there stays one tensor."""
    first: dict[Any, str] = {}
    places = {name: find_place(weights.get(name)) for name in params}
    for name, array in params.items():
        place = places[name]
        other = name if place is None else first.setdefault(place, name)
        if other == name:
            weights[name] = make_tensor(array)
        else:
            check_tied(params, name, other)
            weights[name] = weights[other]


def check_tied(params: Mapping[str, np.ndarray], name: str, other: str) -> None:
    """Raise unless two names that are one tensor in a template have the same values."""
    if params[name].tobytes() != params[other].tobytes():
        raise CheckpointError(
            where=f"params/{name}",
            expected=f"the values of {other}, since both are one tensor in the template",
            found="others",
            remedy="give both the same values",
            argument="checkpoint",
        )


def refuse_template(
    expected: str,
    found: object,
    remedy: str = "use a template of an optimizer with the same settings",
    name: str = "",
) -> CheckpointError:
    """The error for a template that has another form than what is to be written, at `name`."""
    return CheckpointError(
        where=f"template: {name}" if name else "template",
        expected=expected,
        found=found,
        remedy=remedy,
        argument="template",
    )


def _set_hyperparameters(
    kind: Kind, group: dict[str, Any], fitted: Mapping[str, ParameterGroup], *, in_group: bool
) -> None:
    """Put the hyperparameters of a checkpoint's variables into their group in a template.

    Args:
      kind: the template's optimizer.
      group: of its parameters.
      fitted: by name of a variable the group in the checkpoint.
      in_group: whether steps are counted once for the group.

    Raises:
      CheckpointError: the variables have different ones; or the template's optimizer would compute
        another Adam with them.
    """
    first = next(iter(fitted.values()))
    unlike = list_unlike(list(fitted.values()))
    if set(unlike) - {"count"} or (unlike and in_group):
        raise CheckpointError(
            where="groups",
            expected=f"one {listed(unlike)} for all variables of a group of the template",
            found=f"several for {listed(fitted, most=5)}",
            remedy="use a template with the same groups",
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
    [settings] = write_groups([dataclasses.replace(first, config=plain)])
    changed = group | {k: v for k, v in settings.items() if k in group and k not in IGNORED}
    changed |= {key: config.bias_correction for key in kind.own if "bias" in key}
    form = {"convention": config.convention, "bias_correction": config.bias_correction}
    meant = dataclasses.replace(AdamConfig.from_torch(settings), **form)
    try:
        found = read_config(kind, changed)
    except CheckpointError as error:
        raise error.replace(
            remedy="Use a template of another optimizer", argument="template"
        ) from error
    fields = [field.name for field in dataclasses.fields(AdamConfig)]
    if lost := [name for name in fields if getattr(found, name) != getattr(meant, name)]:
        raise CheckpointError(
            where="template",
            expected=f"an optimizer that computes {_describe(meant, lost)}",
            found=f"{kind.name}, which computes {_describe(found, lost)}",
            remedy="use a template of another optimizer, or none",
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


def write_groups(groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """The hyperparameters of groups for torch; an error where it cannot express them."""
    written = []
    for group in groups:
        try:
            written.append(group.config.to_torch())
        except InvalidValue as error:
            raise explain_refusal(error, group, "torch", _SCHEDULES) from error
    return written


def make_step(count: int) -> Any:
    """The steps done, as torch counts them with each parameter."""
    return make_tensor(np.asarray(count, np.float32))
