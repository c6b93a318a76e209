"""Which optimizer a file of Keras has, and what is around or beside its Adam.

The moments of Adam look like those of other optimizers: the class that a configuration names, or
else the name of the optimizer, tells them apart.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError

__all__ = [
    "Optimizer",
    "check_name",
    "describe_rest",
    "find_adam",
    "read_accumulation",
    "read_scale",
]

_ADAMS = ("Adam", "AdamW")
_SCALERS = ("LossScaleOptimizer", "LossScaleOptimizerV3")
_PACKAGES = ("keras", "tf_keras", "tensorflow")

# What Keras 3 calls an optimizer that has no name of its own.
_NAMES_OF_ADAM = ("adam", "adam_w", "adamw")
_OTHER_NAMES = {
    "adadelta": "Adadelta",
    "adafactor": "Adafactor",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
    "ftrl": "Ftrl",
    "lamb": "Lamb",
    "lion": "Lion",
    "multi_optimizer": "MultiOptimizer",
    "muon": "Muon",
    "nadam": "Nadam",
    "rm_sprop": "RMSprop",
    "rmsprop": "RMSprop",
    "schedule_free_adam_w": "ScheduleFreeAdamW",
    "sgd": "SGD",
}


@dataclass(frozen=True)
class Optimizer:
    """An Adam as Keras serialises it.

    Attributes:
      adam: `class_name` and `config` of the Adam itself, the object within the configuration.
      is_scaled: whether a LossScaleOptimizer is around it.
    """

    adam: dict[str, Any]
    is_scaled: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration of the Adam itself."""
        return self.adam["config"]


def find_adam(optimizer: Mapping[str, Any], is_keras3: bool) -> Optimizer:
    """The Adam of a serialised optimizer.

    Raises:
      CheckpointError: it is another optimizer, whatever configuration the caller gives.
    """
    name = str(optimizer.get("class_name"))
    is_scaled = name.rpartition(">")[2] in _SCALERS
    adam: Any = optimizer
    if is_scaled:
        adam = optimizer["config"].get("inner_optimizer")
    if not isinstance(adam, dict) or not isinstance(adam.get("config"), dict):
        raise CheckpointError(
            where="inner_optimizer" if is_scaled else "optimizer",
            expected="Adam with its class_name and config",
            found=f"{adam!r:.80}",
        )
    _check_class(adam, is_keras3, "inner_optimizer" if is_scaled else "class_name")
    return Optimizer(adam, is_scaled)


def _check_class(optimizer: Mapping[str, Any], is_keras3: bool, where: str) -> None:
    name = str(optimizer.get("class_name"))
    registered = optimizer.get("registered_name")
    package, _, short = name.rpartition(">")
    # tf_keras registers its own classes as "Custom>Adam"; in Keras 3 that is a user's class.
    is_own = package not in (("",) if is_keras3 else ("", "Custom"))
    if "module" in optimizer:
        is_own |= str(optimizer["module"]).partition(".")[0] not in _PACKAGES
    if short in _ADAMS and not is_own:
        return
    shown = f"{registered or name:.80}" if isinstance(registered, str | None) else f"{name:.80}"
    raise CheckpointError(
        where=where,
        expected="Adam or AdamW of Keras",
        found=f"{shown}, a class of the program that saved the file" if is_own else shown,
        remedy="its class may compute other updates. If it does not, compile the model with "
        "Keras's own class to save it"
        if short in _ADAMS
        else "its state is not that of an Adam",
    )


def check_name(name: str | None) -> list[str]:
    """Raise if the optimizer's name in a file without configuration is that of another class.

    Args:
      name: as Keras 3 writes it, such as `adam_1`; None if the file has none.

    Returns:
      A note where the name does not tell the class.
    """
    if name is None:
        return [
            "nothing in the file says that its optimizer is an Adam: the variables of Adamax, Lamb "
            "and others have the same number and shapes"
        ]
    short = re.sub(r"_\d+$", "", name)
    if short in _OTHER_NAMES:
        raise CheckpointError(
            where="optimizer/vars",
            expected="the variables of Adam or AdamW",
            found=f"an optimizer called {name:.80}, as Keras calls its {_OTHER_NAMES[short]}",
        )
    if short.lower() in _NAMES_OF_ADAM:
        return []
    return [
        f"the file does not say that its optimizer is an Adam, only its name, {name!r:.80}: the "
        "variables of Adamax, Lamb and others have the same number and shapes"
    ]


def read_accumulation(settings: Mapping[str, Any]) -> int:
    """How many gradients each update averages; 1 without accumulation."""
    value = settings.get("gradient_accumulation_steps")
    if not value:
        return 1
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value != int(value) or value < 2:
        raise CheckpointError(
            where="gradient_accumulation_steps",
            expected="None or a whole number of at least 2",
            found=f"{value!r:.40}",
        )
    return int(value)


def read_scale(name: str, array: np.ndarray) -> float:
    """The loss scale of a LossScaleOptimizer."""
    if array.shape != () or array.dtype.kind != "f":
        raise CheckpointError(
            where=name, expected="a loss scale", found=f"{array.dtype} of shape {array.shape}"
        )
    return float(array)


def describe_rest(
    settings: Mapping[str, Any], is_scaled: bool, loss_scale: float | None
) -> list[str]:
    """Notes on what Keras computes beside the Adam, which `AdamConfig` cannot describe.

    Args:
      settings: the Adam's; empty where the file has none.
      is_scaled: whether a LossScaleOptimizer is around it.
      loss_scale: the present one, if the file has it.
    """
    notes = []
    factor = settings.get("loss_scale_factor")
    if is_scaled or factor is not None:
        scale = factor if loss_scale is None else loss_scale
        shown = "" if scale is None else f", {scale!r:.40} in the file,"
        whose = "LossScaleOptimizer" if is_scaled else "loss_scale_factor"
        notes.append(
            f"{whose}: the loss scale{shown} is not carried over. The moments are of unscaled "
            "gradients: scale the loss, and divide the gradients, outside of the optimizer"
        )
    steps = read_accumulation(settings)
    if steps > 1:
        notes.append(
            f"gradient_accumulation_steps={steps}: count counts updates. To accumulate as Keras "
            f"does, wrap the restored transformation in optax.MultiSteps(..., {steps})"
        )
    return notes
