"""The configuration of a serialised Keras optimizer, read and written."""

from collections.abc import Mapping
from typing import Any, cast

from adamx.base.errors import InvalidValue
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import check_amsgrad
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._keras_optimizers import (
    Optimizer,
    find_adam,
    read_accumulation,
)
from adamx.checkpoint.formats._refusals import OTHER_CONFIG, explain_refusal, suggest_config
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_config import Generation
from adamx.config.keras_schedules import KerasSchedule

__all__ = ["find_optimizer", "is_constant", "read_config", "write_settings"]


def find_optimizer(
    optimizer: Mapping[str, Any], is_keras3: bool, config: AdamConfig | None
) -> Optimizer:
    """The Adam of a serialised optimizer.

    Raises:
      CheckpointError: its list of variables is not that of an Adam, whatever `config` was given.
    """
    found = find_adam(optimizer, is_keras3)
    if config is not None:
        check_amsgrad(bool(found.settings.get("amsgrad")), config)
    return found


def read_config(
    optimizer: Any, generation: Generation | None, *, is_template: bool = False
) -> AdamConfig:
    """The hyperparameters of a serialised Keras optimizer, even if it averages the weights."""
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("config"), Mapping):
        raise CheckpointError(
            expected="an optimizer with class_name and config", found=f"{optimizer!r:.80}"
        )
    settings = dict(optimizer["config"])
    if settings.get("use_ema") and settings.get("ema_overwrite_frequency"):
        raise CheckpointError(
            where="ema_overwrite_frequency",
            expected="None, since adamx does not replace the weights by averages",
            found=repr(settings["ema_overwrite_frequency"]),
            remedy=OTHER_CONFIG,
            argument="config",
        )
    steps = read_accumulation(settings)
    if steps > 1 and isinstance(settings.get("learning_rate"), Mapping) and not is_template:
        raise CheckpointError(
            where="learning_rate",
            expected="a number with gradient_accumulation_steps",
            found="a schedule, which Keras 3 calls with the count of gradients, not of updates",
            remedy="Pass config= with a schedule of updates: if the file's is called schedule, "
            f"lambda count: schedule({steps} * count + {steps - 1})",
            argument="config",
        )
    for key in _BESIDE:
        settings.pop(key, None)
    try:
        return AdamConfig.from_keras({**optimizer, "config": settings}, generation)
    except (TypeError, ValueError) as error:
        raise suggest_config(error) from error


def write_settings(checkpoint: Checkpoint, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` for a serialised optimizer that is to compute what the checkpoint's does.

    Args:
      checkpoint: with the framework of the file that is to be written.
      optimizer: as the template has it, with `class_name` and `config`.

    Raises:
      CheckpointError: Keras cannot express the configuration.
    """
    try:
        # The file that is to be written is one of Keras.
        config = checkpoint.config
        settings = config.to_keras(cast(Generation, checkpoint.framework))
    except CheckpointError:  # groups that differ
        raise
    except InvalidValue as error:
        raise explain_refusal(error, checkpoint.groups[0], checkpoint.framework) from error
    old = optimizer.get("config", {})
    settings |= {key: old[key] for key in _KEPT if key in old}
    if "AdamW" in str(optimizer.get("class_name")) and settings.get("weight_decay") is None:
        settings["weight_decay"] = 0.0
    if read_accumulation(settings) > 1 and isinstance(settings["learning_rate"], Mapping):
        raise CheckpointError(
            "the template accumulates gradients, and Keras 3 would call the checkpoint's schedule "
            "with the count of gradients, not of updates",
            where="learning_rate",
            remedy="compile the template's model without gradient_accumulation_steps",
            argument="template",
        )
    averages = any(name.startswith("average/") for name in checkpoint.extra)
    if old.get("use_ema") and not averages:
        raise CheckpointError(
            "the template has averages of the weights, the checkpoint has none",
            where="use_ema",
            remedy="compile the template's model without use_ema",
            argument="template",
        )
    if averages and "ema_momentum" in checkpoint.extra:
        settings["ema_momentum"] = checkpoint.extra["ema_momentum"].item()
    return settings


# What Keras computes beside Adam: the moments are the same without.
_BESIDE = ("use_ema", "gradient_accumulation_steps", "loss_scale_factor")
_KEPT = ("name", "jit_compile", "ema_momentum", "ema_overwrite_frequency", *_BESIDE)


def is_constant(config: AdamConfig) -> bool:
    """Whether later Keras keeps the learning rate as a variable."""
    return not isinstance(config.learning_rate, KerasSchedule) and not config.decay
