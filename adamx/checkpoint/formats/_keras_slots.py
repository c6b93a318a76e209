"""The list of an optimizer's variables in Keras's order, as moments by name and back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.frameworks import Framework
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_config import Generation
from adamx.config.keras_schedules import KerasSchedule

__all__ = [
    "Layout",
    "check_optimizer",
    "config_of",
    "convention_hint",
    "is_constant",
    "keras_settings",
    "pack",
    "unpack",
    "whole_number",
]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What stands where in the list: iterations, the learning rate, averages, m and v, maxima."""

    has_rate: bool
    averages: bool
    interleaved: bool
    amsgrad: bool

    def kinds(self, variables: int) -> list[tuple[str, int]]:
        """What each entry is: `count`, `rate`, `average`, `mu`, ...; and of which variable."""
        all_of = range(variables)
        kinds = [("count", 0), *([("rate", 0)] if self.has_rate else [])]
        kinds += [("average", i) for i in all_of if self.averages]
        if self.interleaved:
            kinds += [(kind, i) for i in all_of for kind in ("mu", "nu")]
        else:
            kinds += [(kind, i) for kind in ("mu", "nu") for i in all_of]
        return kinds + [("nu_max", i) for i in all_of if self.amsgrad]

    def variables(self, length: int) -> int:
        """How many variables a list of that length is for."""
        per_variable = 2 + self.averages + self.amsgrad
        variables, rest = divmod(length - 1 - self.has_rate, per_variable)
        if rest or variables < 0:
            raise CheckpointError(
                f"the optimizer's variables: expected {1 + self.has_rate} and {per_variable} for "
                f"each that is trained, found {length}"
            )
        return variables


def check_optimizer(optimizer: Mapping[str, Any], config: AdamConfig | None) -> None:
    """Raise if the file's list of variables is not that of an Adam, whatever `config` was given."""
    settings = optimizer["config"]
    name = str(optimizer.get("class_name"))
    if "inner_optimizer" in settings or name.endswith("LossScaleOptimizer"):
        raise CheckpointError(
            "inner_optimizer: expected Adam itself, found an optimizer that scales the loss around "
            "it, with variables of its own; compile the model with the inner one to save it"
        )
    if name.rpartition(">")[2] not in ("Adam", "AdamW"):
        raise CheckpointError(f"class_name: expected Adam or AdamW, found {name:.80}")
    if settings.get("gradient_accumulation_steps"):
        raise CheckpointError(
            "gradient_accumulation_steps: expected None, since accumulated gradients have no place "
            f"here; found {settings['gradient_accumulation_steps']!r:.20}. Compile the model "
            "without it to save, and wrap the restored transformation in optax.MultiSteps"
        )
    if config is not None and bool(settings.get("amsgrad")) != config.amsgrad:
        raise CheckpointError(
            f"amsgrad: the file has {bool(settings.get('amsgrad'))}, config= has {config.amsgrad}"
        )


def config_of(optimizer: Any, generation: Generation | None) -> AdamConfig:
    """The hyperparameters of a serialised Keras optimizer, with averages of the weights or not."""
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("config"), Mapping):
        raise CheckpointError(
            f"expected an optimizer with class_name and config, found {optimizer!r:.80}"
        )
    settings = dict(optimizer["config"])
    if settings.get("use_ema") and settings.get("ema_overwrite_frequency"):
        raise CheckpointError(
            "ema_overwrite_frequency: expected None, since adamx does not put averages in "
            f"the place of the weights; found {settings['ema_overwrite_frequency']!r}. {_OTHERWISE}"
        )
    settings.pop("use_ema", None)
    try:
        return AdamConfig.from_keras({**optimizer, "config": settings}, generation)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{error}. {_OTHERWISE}") from error


_OTHERWISE = "To go on with other hyperparameters, give config="


def unpack(
    arrays: Sequence[np.ndarray],
    names: Sequence[str] | None,
    layout: Layout,
    *,
    framework: Framework,
    version: str | None,
    config: AdamConfig,
    params: Mapping[str, np.ndarray],
    momentum: float | None = None,
    config_is_given: bool = False,
) -> Checkpoint:
    """The checkpoint of a list of optimizer variables.

    Args:
      arrays: in Keras's order.
      names: of the variables that are trained; None where that is not known.
      layout: of the list.
      framework, version, config, params: of the checkpoint.
      momentum: of the averages, if there are any.
      config_is_given: by the user, and not by the file.
    """
    variables = layout.variables(len(arrays))
    if names is None or len(names) != variables:
        names = [str(index) for index in range(variables)]
    fields: dict[str, dict[str, np.ndarray]] = {
        kind: {} for kind in ("count", "rate", "average", "mu", "nu", "nu_max")
    }
    for array, (kind, index) in zip(arrays, layout.kinds(variables), strict=True):
        fields[kind]["" if kind in ("count", "rate") else names[index]] = array
    rate = fields["rate"].get("")
    if rate is not None:
        config = _with_rate(config, rate, config_is_given)
    extra = {f"average/{name}": array for name, array in fields["average"].items()}
    if extra and momentum is not None:
        extra["ema_momentum"] = np.asarray(float(momentum))
    return Checkpoint(
        framework=framework,
        version=version,
        config=config,
        count=whole_number("iterations", fields["count"][""]),
        names=tuple(names),
        params=params,
        mu=fields["mu"],
        nu=fields["nu"],
        nu_max=fields["nu_max"],
        extra=extra,
    )


def pack(checkpoint: Checkpoint, layout: Layout) -> list[np.ndarray]:
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
    for kind, index in layout.kinds(len(names)):
        if kind == "count":
            arrays.append(np.asarray(checkpoint.count, np.int64))
        elif kind == "rate":
            arrays.append(np.asarray(rate, np.float32))
        else:
            if names[index] not in fields[kind]:
                raise CheckpointError(
                    f"{kind}/{names[index]}: the template's optimizer has it, the checkpoint has "
                    "not; make a template with the checkpoint's settings"
                )
            arrays.append(fields[kind][names[index]])
    return arrays


def whole_number(name: str, array: np.ndarray) -> int:
    """A step counter that a file holds as some scalar."""
    if array.size != 1 or not np.isfinite(array).all() or array.item() != int(array.item()):
        raise CheckpointError(f"{name}: expected a whole number, found {array!r:.80}")
    return int(array.item())


def _with_rate(config: AdamConfig, rate: np.ndarray, is_given: bool) -> AdamConfig:
    """The configuration with the learning rate that the file holds as a variable."""
    value = float(rate.item()) if rate.size == 1 else float("nan")
    known = config.learning_rate
    if not callable(known) and np.float32(known) == np.float32(value):
        return config if is_given else dataclasses.replace(config, learning_rate=value)
    if is_given or callable(known):
        raise CheckpointError(
            f"learning_rate: the file holds {value!r}, config has {known!r:.80}; give "
            "dataclasses.replace(config, learning_rate=...) with the one to go on with, and the "
            "other after loading"
            if is_given
            else f"learning_rate: the file holds {value!r}, its configuration has {known!r:.80}"
        )
    return dataclasses.replace(config, learning_rate=value)


def keras_settings(checkpoint: Checkpoint, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` for a serialised optimizer that is to compute what the checkpoint's does.

    Args:
      checkpoint: with the framework of the file that is to be written.
      optimizer: as the template has it, with `class_name` and `config`.

    Raises:
      CheckpointError: Keras cannot express the configuration.
    """
    try:
        # The file that is to be written is one of Keras.
        settings = checkpoint.config.to_keras(cast(Generation, checkpoint.framework))
    except ValueError as error:
        is_convention = str(error).startswith("convention")
        hint = convention_hint(checkpoint, "keras") if is_convention else ""
        raise CheckpointError(f"{error}{hint}") from error
    old = optimizer.get("config", {})
    settings |= {key: old[key] for key in _KEPT if key in old}
    if "AdamW" in str(optimizer.get("class_name")) and settings.get("weight_decay") is None:
        settings["weight_decay"] = 0.0
    averages = any(name.startswith("average/") for name in checkpoint.extra)
    if old.get("use_ema") and not averages:
        raise CheckpointError(
            "use_ema: the template keeps averages of the weights, the checkpoint has none; compile "
            "the template's model without use_ema"
        )
    if averages and "ema_momentum" in checkpoint.extra:
        settings["ema_momentum"] = checkpoint.extra["ema_momentum"].item()
    return settings


_KEPT = ("name", "jit_compile", "use_ema", "ema_momentum", "ema_overwrite_frequency")


def convention_hint(checkpoint: Checkpoint, convention: Literal["keras", "torch"]) -> str:
    """What to do where a file is of a framework that has epsilon elsewhere."""
    config = checkpoint.config
    correction = math.sqrt(-math.expm1(checkpoint.count * math.log(config.b2))) if config.b2 else 1
    eps = config.eps / correction if convention == "torch" else config.eps * correction
    return (
        ". Epsilon stands elsewhere there. If steps may differ by that, say so: "
        "dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, "
        f'convention="{convention}")), or `adamx convert --set convention={convention}`. At this '
        f"step eps={eps:.3g} there does what {config.eps:.3g} does here"
    )


def is_constant(config: AdamConfig) -> bool:
    """Whether later Keras keeps the learning rate as a variable."""
    return not isinstance(config.learning_rate, KerasSchedule) and not config.decay
