"""The list of an optimizer's variables in Keras's order, as moments by name and back."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import Naming
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._counts import read_count
from adamx.checkpoint.frameworks import Framework
from adamx.config.adam_config import AdamConfig

__all__ = ["Names", "SlotOrder", "pack", "unpack"]

Names = Mapping[str, Naming]
"""The optimizer's variables in its order, each with how its name is known; empty if none is."""


@dataclasses.dataclass(frozen=True)
class SlotOrder:
    """The order of the list: iterations, the learning rate, averages, m and v, maxima.

    Where gradients are accumulated, their sums are before m and v, and `steps` of them make an
    update.
    """

    has_rate: bool
    averages: bool
    interleaved: bool
    amsgrad: bool
    steps: int = 1

    def list_kinds(self, variables: int) -> list[tuple[str, int]]:
        """What each entry is: `count`, `rate`, `average`, `mu`, ...; and of which variable."""
        all_of = range(variables)
        kinds = [("count", 0), *([("rate", 0)] if self.has_rate else [])]
        kinds += [("average", i) for i in all_of if self.averages]
        kinds += [("sum", i) for i in all_of if self.steps > 1]
        if self.interleaved:
            kinds += [(kind, i) for i in all_of for kind in ("mu", "nu")]
        else:
            kinds += [(kind, i) for kind in ("mu", "nu") for i in all_of]
        return kinds + [("nu_max", i) for i in all_of if self.amsgrad]

    def count_variables(self, length: int) -> int:
        """How many variables a list of that length is for."""
        per_variable = 2 + self.averages + (self.steps > 1) + self.amsgrad
        variables, rest = divmod(length - 1 - self.has_rate, per_variable)
        if rest or variables < 0:
            summed = ", with gradient_accumulation_steps" if self.steps > 1 else ""
            raise CheckpointError(
                where="the optimizer's variables",
                expected=f"{1 + self.has_rate} and {per_variable} for each trained one{summed}",
                found=length,
            )
        return variables


def unpack(
    arrays: Sequence[np.ndarray],
    names: Names,
    order: SlotOrder,
    *,
    framework: Framework,
    version: str | None,
    config: AdamConfig,
    params: Mapping[str, np.ndarray],
    notes: Sequence[str] = (),
    momentum: float | None = None,
    config_is_given: bool = False,
    is_template: bool = False,
) -> Checkpoint:
    """The checkpoint of a list of optimizer variables.

    Args:
      arrays: in Keras's order.
      names: of the variables that are trained.
      order: of the list.
      framework, version, config, params, notes: of the checkpoint.
      momentum: of the averages, if there are any.
      config_is_given: by the user, and not by the file.
      is_template: whether the values do not count.
    """
    variables = order.count_variables(len(arrays))
    if len(names) != variables:
        names = {str(index): "unknown" for index in range(variables)}
    listed_names = list(names)
    fields: dict[str, dict[str, np.ndarray]] = {
        kind: {} for kind in ("count", "rate", "average", "sum", "mu", "nu", "nu_max")
    }
    for array, (kind, index) in zip(arrays, order.list_kinds(variables), strict=True):
        fields[kind]["" if kind in ("count", "rate") else listed_names[index]] = array
    rate = fields["rate"].get("")
    if rate is not None:
        config = _take_rate(config, rate, config_is_given)
    extra = {f"average/{name}": array for name, array in fields["average"].items()}
    if extra and momentum is not None:
        extra["ema_momentum"] = np.asarray(float(momentum))
    count = read_count("iterations", fields["count"][""])
    if order.steps > 1 and not is_template:
        _check_boundary(count, order.steps, fields["sum"])
    return Checkpoint(
        framework=framework,
        version=version,
        config=config,
        count=count // order.steps,
        names=listed_names,
        naming=names,
        params=params,
        mu=fields["mu"],
        nu=fields["nu"],
        nu_max=fields["nu_max"],
        extra=extra,
        notes=notes,
    )


def _check_boundary(count: int, steps: int, sums: Mapping[str, np.ndarray]) -> None:
    """Raise if gradients are accumulated, since a checkpoint cannot hold them."""
    pending = [name for name, array in sums.items() if array.any()]
    if count % steps or pending:
        found = f"{count} iterations"
        if pending:
            found += f" and accumulated gradients of {listed(pending)}"
        raise CheckpointError(
            where="gradient_accumulation_steps",
            expected=f"a file saved between two updates, when iterations are a multiple of {steps} "
            "and no gradients are accumulated",
            found=f"one saved in the middle of an accumulation: {found}",
            remedy="Train in Keras up to the next update, and save then",
        )


def pack(checkpoint: Checkpoint, order: SlotOrder) -> list[np.ndarray]:
    """The list of optimizer variables of a checkpoint: the inverse of `unpack`."""
    rate = checkpoint.config.learning_rate
    fields: dict[str, Mapping[str, np.ndarray]] = {
        "mu": checkpoint.mu,
        "nu": checkpoint.nu,
        "nu_max": checkpoint.nu_max,
        "average": {
            name.removeprefix("average/"): array
            for name, array in checkpoint.extra.items()
            if name.startswith("average/")
        },
    }
    arrays = []
    names = checkpoint.names
    for kind, index in order.list_kinds(len(names)):
        if kind == "count":
            arrays.append(np.asarray(checkpoint.count * order.steps, np.int64))
        elif kind == "rate":
            arrays.append(np.asarray(rate, np.float32))
        elif kind == "sum":
            like = checkpoint.mu[names[index]]
            arrays.append(np.broadcast_to(np.zeros((), like.dtype), like.shape))
        else:
            if names[index] not in fields[kind]:
                raise CheckpointError(
                    "the template's optimizer has it, the checkpoint does not",
                    where=f"{kind}/{names[index]}",
                    remedy="make a template with the checkpoint's settings",
                    argument="template",
                )
            arrays.append(fields[kind][names[index]])
    return arrays


_OTHER_RATE = (
    "pass config=dataclasses.replace(config, learning_rate=...) with the file's rate, and set "
    "yours after loading"
)


def _take_rate(config: AdamConfig, rate: np.ndarray, is_given: bool) -> AdamConfig:
    """The configuration with the learning rate that the file holds as a variable."""
    value = float(rate.item()) if rate.size == 1 else float("nan")
    known = config.learning_rate
    if not callable(known) and np.float32(known) == np.float32(value):
        return config if is_given else dataclasses.replace(config, learning_rate=value)
    if is_given or callable(known):
        whose = "config" if is_given else "its configuration"
        raise CheckpointError(
            f"the file holds {value!r}, {whose} has {known!r:.80}",
            where="learning_rate",
            remedy=_OTHER_RATE if is_given else "",
            argument="config" if is_given else None,
        )
    return dataclasses.replace(config, learning_rate=value)
