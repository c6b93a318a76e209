"""Which optimizer for torch wrote a state dict, and its hyperparameters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamx.base.errors import AdamxError, InvalidType
from adamx.base.numerics import ConventionName
from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._refusals import OTHER_CONFIG, suggest_config
from adamx.checkpoint.formats._torch_tensors import describe, read_values
from adamx.checkpoint.untrusted.torch_tensors import Tensor
from adamx.config.adam_config import AdamConfig
from adamx.config.torch_config import IGNORED

__all__ = ["Kind", "find_kind", "is_scheduled", "note_scheduled", "read_config"]

# What schedulers and training scripts keep in a group beside the rate of this step.
_BESIDE = {"initial_lr", "max_lr", "min_lr", "base_lr", "lr_scale", "lr_mult", "wd_mult", "name"}
_BESIDE |= {"base_momentum", "max_momentum", "swa_lr"}
_BESIDE |= {"group_name", "layer_id", "initial_weight_decay", "is_decay", "use_muon"}


class Kind(NamedTuple):
    """An optimizer that is Adam, and what its groups do not say.

    Attributes:
      name: as its library calls it.
      own: keys of a group that distinguish it from torch's.
      defaults: fields of a group of torch that its groups do not have.
      convention: where epsilon is added.
      is_quantised: whether moments are kept in 8 bits.
      note: what the file does not say, and adamx assumes.
    """

    name: str
    own: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = {}
    convention: ConventionName = "torch"
    is_quantised: bool = False
    note: str = ""


_NEEDED = ("lr", "betas", "eps", "weight_decay")
_TORCH = Kind("torch.optim.Adam")
_DECOUPLED = {"amsgrad": False, "decoupled_weight_decay": True}
_KINDS = (
    Kind(
        "transformers.AdamW",
        frozenset({"correct_bias"}),
        _DECOUPLED,
        "keras",
        note="transformers.AdamW decays the weights after the step, adamx before it: a difference "
        "of the size of learning_rate * weight_decay * step",
    ),
    Kind(
        "FusedAdam",
        frozenset({"bias_correction"}),
        _DECOUPLED,
        note="the file does not store whether weight decay is decoupled (adam_w_mode): adamx "
        "assumes that it is, the default of Apex and DeepSpeed",
    ),
    Kind(
        "bitsandbytes.AdamW8bit",
        frozenset({"alpha", "t_alpha", "t_beta3"}),
        _DECOUPLED,
        is_quantised=True,
        note="bitsandbytes stores the states of Adam, AdamW and LAMB alike: the file does not say "
        "which it was; adamx assumes AdamW",
    ),
)
_BITSANDBYTES = _KINDS[-1]
_FAIRSEQ = Kind("fairseq.FairseqAdam", defaults=_DECOUPLED, convention="keras")
_OLD_TORCH = Kind(
    "torch.optim.Adam",
    note="a torch before 1.11 wrote the file, which does not say which version: before 1.3 torch "
    "added epsilon to the uncorrected sqrt(v), as Keras does (convention='keras')",
)
_TORCHAO = Kind(
    "torchao.optim.AdamW8bit",
    defaults=_DECOUPLED,
    is_quantised=True,
    note="the file is the same for Adam8bit and AdamW8bit: adamx assumes decoupled weight decay",
)

# By a key of a group or of a parameter's state, the optimizer that has it and is not Adam.
_OTHERS = {
    "momentum_decay": "NAdam",
    "mu_product": "NAdam",
    "exp_inf": "Adamax",
    "dampening": "SGD",
    "ns_steps": "Muon",
    "momentum_buffer": "SGD or Muon",
    "rho": "Adadelta or Sophia",
    "acc_delta": "Adadelta",
    "centered": "RMSprop",
    "square_avg": "RMSprop",
    "lr_decay": "Adagrad",
    "beta2_decay": "Adafactor",
    "scale_parameter": "Adafactor",
    "exp_avg_sq_row": "Adafactor",
    "row_var": "Adafactor",
    "grad_averaging": "LAMB",
    "max_grad_norm": "LAMB",
    "trust_clip": "LAMB",
    "exp_avg_var": "AdaBelief",
    "exp_avg_diff": "Adan",
    "hessian": "Sophia",
    "d0": "Prodigy or D-Adaptation",
    "train_mode": "a schedule-free Adam",
    "z": "a schedule-free Adam",
    "etas": "Rprop",
    "t0": "ASGD",
    "Q": "SOAP",
    "preconditioner": "Shampoo or SOAP",
}


def find_kind(
    groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], library: str = ""
) -> Kind:
    """The optimizer, by the keys of its groups and of its parameters' states.

    Args:
      groups: of parameters, with hyperparameters.
      state: of each parameter.
      library: what the file calls the optimizer, where it does.

    Raises:
      CheckpointError: it is not Adam; the message has its name, where the keys tell it.
    """
    in_groups = {str(key) for group in groups for key in group}
    in_state = {str(key) for entry in state.values() if isinstance(entry, Mapping) for key in entry}
    keys = in_groups | in_state
    others = [name for key, name in _OTHERS.items() if key in keys]
    if others:
        raise _refuse(f"the state of {others[0]}", keys)
    for kind in _KINDS:
        if kind.own <= in_groups:
            return kind
    if {"state1", "state2"} <= in_state:  # before it kept the keys of other optimizers in groups
        return _BITSANDBYTES
    if "amsgrad" not in in_groups:
        is_rectified = {"weight_decay", "decoupled_weight_decay"} <= in_groups
        raise _refuse(
            "the state of RAdam" if is_rectified else "the state of another optimizer", keys
        )
    is_quantised = any(
        describe(entry.get("exp_avg")).rpartition(".")[2].startswith("OptimState")
        for entry in state.values()
        if isinstance(entry, Mapping)
    )
    if is_quantised:
        return _TORCHAO
    if library == "FairseqAdam":
        return _FAIRSEQ
    return _TORCH if "maximize" in in_groups else _OLD_TORCH


def _refuse(found: str, keys: set[str]) -> CheckpointError:
    return CheckpointError(
        where="param_groups",
        expected="those of Adam or AdamW",
        found=f"{found}: {listed(sorted(keys), most=20)}",
        remedy="adamx computes only Adam's step",
    )


def note_scheduled(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Remarks on what schedulers set: the file has the values of this step."""
    notes = []
    rates = [_describe_number(group["initial_lr"]) for group in groups if is_scheduled(group)]
    if rates:
        texts = listed(dict.fromkeys(rates))
        notes.append(
            f"a scheduler set the learning rate: adamx uses that of this step, not {texts}, "
            "the initial one"
        )
    if any("max_momentum" in group for group in groups):
        notes.append("a scheduler set b1 too (cycle_momentum): adamx uses that of this step")
    return notes


def is_scheduled(group: Mapping[str, Any]) -> bool:
    """Whether a scheduler sets the rate: the one in the group is that of this step."""
    return "initial_lr" in group


def _list_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group."""
    return {key: value for key, value in group.items() if key not in IGNORED and key not in _BESIDE}


def read_config(kind: Kind, group: Mapping[str, Any]) -> AdamConfig:
    """The hyperparameters of a group as a configuration.

    Raises:
      CheckpointError: one of them is unknown, or out of range.
    """
    settings = {k: v for k, v in _list_settings(group).items() if k not in kind.own and k != "step"}
    if missing := [key for key in _NEEDED if key not in settings]:
        raise CheckpointError(
            where="param_groups",
            expected=listed(_NEEDED),
            found=f"none of {listed(missing)}",
            remedy=OTHER_CONFIG,
            argument="config",
        )
    try:
        plain = {key: _plain(str(key), value) for key, value in settings.items()}
        corrections = [_plain(key, group[key]) for key in kind.own if "bias" in key]
        config = AdamConfig.from_torch({**kind.defaults, **plain})
    except (AdamxError, TypeError) as error:
        raise suggest_config(error).within("param_groups") from error
    if not all(corrections):
        return dataclasses.replace(config, convention="keras", bias_correction=False)
    return dataclasses.replace(config, convention=kind.convention)


def _describe_number(value: Any) -> str:
    """A number of a group, which may be in a tensor."""
    try:
        return str(_plain("", value))
    except InvalidType:
        return describe(value)


def _plain(key: str, value: Any) -> Any:
    """A number, a flag or a text, or a pair of such: what can be compared and has a `repr`."""
    if isinstance(value, Tensor) and value.size == 1:
        value = read_values({key: value})[key]
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        return value.item()
    if isinstance(value, list | tuple):
        is_pair = len(value) <= 2 and not any(isinstance(v, list | tuple) for v in value)
        if is_pair:
            return tuple(_plain(key, part) for part in value)
    elif value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidType(where=f"{key:.80}", expected="a number", found=describe(value))
