"""What a TensorFlow checkpoint holds of one Adam, before any of its arrays is read."""

import dataclasses
import re
from collections.abc import Iterable

from adamx.checkpoint.consistency import Naming
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.frameworks import Framework

__all__ = ["Optimizer", "refuse_other_rules"]

# Optimizers that keep what Adam keeps, and do something else with it.
_OTHERS = {
    "adabelief",
    "adamax",
    "lamb",
    "lars",
    "nadam",
    "novograd",
    "radam",
    "rectifiedadam",
    "yogi",
}


@dataclasses.dataclass
class Optimizer:
    """Where the state of one Adam is in a checkpoint; all keys are names of entries.

    Attributes:
      label: what the file calls it.
      framework: which implementation wrote it.
      mu, nu, nu_max: by name of a variable, in the optimizer's order, the key of a moment.
      naming: how the names are known.
      ordered: whether `mu` is in the order in which the optimizer has the variables.
      averages: by name, the key of a moving average of the weight.
      weights: by name, the key of a weight, in the order of `mu` if that is known.
      count: the key of the number of steps.
      powers: the keys of beta1_power and beta2_power; empty if it has none.
      settings: by field of `AdamConfig`, the key of a hyperparameter.
      is_scheduled: whether the learning rate is known to be a schedule.
      notes: remarks for the checkpoint.
    """

    label: str
    framework: Framework
    mu: dict[str, str] = dataclasses.field(default_factory=dict)
    nu: dict[str, str] = dataclasses.field(default_factory=dict)
    nu_max: dict[str, str] = dataclasses.field(default_factory=dict)
    naming: Naming = "file"
    ordered: bool = False
    averages: dict[str, str] = dataclasses.field(default_factory=dict)
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    count: str | None = None
    powers: tuple[str, ...] = ()
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    is_scheduled: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)


def refuse_other_rules(full_names: Iterable[str]) -> None:
    """Raise if the names of variables show that they belong to another optimizer than Adam.

    Args:
      full_names: such as `Adam/hidden/kernel/m` or `nadam/iteration`: only the optimizer's own
        variables, so that the name of a layer is not mistaken for an optimizer's.
    """
    for full_name in full_names:
        for part in full_name.split("/")[:-1]:
            kind = re.sub(r"_\d+$", "", part).replace("_", "").lower()
            if kind in _OTHERS:
                raise CheckpointError(
                    where=full_name, expected="a variable of Adam", found=f"one of {part}"
                )
