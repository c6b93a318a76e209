"""The arguments of `adamx.keras.Adam`: their names in TensorFlow 1.1, their ranges."""

from typing import Any

import jax
import numpy as np

from adamx.base.checks import check_number
from adamx.base.dtypes import is_number
from adamx.base.errors import InvalidType, InvalidValue

__all__ = ["checked", "unknown_argument"]

_ARGUMENTS = ("lr", "beta_1", "beta_2", "epsilon", "decay", "clipnorm", "clipvalue")

# The names that later versions of Keras, and other frameworks, have for an argument.
_RENAMED = {
    "learning_rate": "here, as in TensorFlow 1.1, it is lr",
    "alpha": "here it is lr",
    "b1": "here it is beta_1",
    "beta1": "here it is beta_1",
    "b2": "here it is beta_2",
    "beta2": "here it is beta_2",
    "betas": "here they are beta_1 and beta_2",
    "eps": "here it is epsilon",
    "global_clipnorm": "here it is clipnorm, in TensorFlow 1.1 the norm of all gradients together",
    "class_name": "from_config takes what stands beside it under config",
    "schedule_decay": "it belongs to Nadam; in Adam the decay of the learning rate is decay",
}

# What Adam of TensorFlow 1.1 does not have, but another Adam does.
_ELSEWHERE = {
    *("amsgrad", "weight_decay", "nesterov", "maximize", "eps_root", "mu_dtype", "nu_dtype"),
    *("mask", "use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor"),
    *("gradient_accumulation_steps", "jit_compile", "name"),
}


def checked(name: str, value: Any) -> float:
    """`value` as a Python float, if it is in the range of the argument `name`."""
    if isinstance(value, jax.Array) and value.shape == ():
        value = np.asarray(value)
    below = 1 if name.startswith("beta") else np.inf
    check_number(name, value, below=below)
    if not is_number(value):
        found = f"{type(value).__name__} {value!r}"
        raise InvalidType(where=name, expected="a real number", found=found)
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if not rounded < below:
        raise InvalidValue(
            where=name,
            expected=f"a number that is below {below:g} in float32 too, in which TensorFlow 1.1 "
            "holds it",
            found=repr(value),
        )
    return float(value)


def unknown_argument(name: str) -> InvalidType:
    """The error for an argument that TensorFlow 1.1 does not have."""
    hint = _RENAMED.get(name)
    if name in _ELSEWHERE:
        hint = "TensorFlow 1.1 does not have it; use adamx.adam, adamx.adamw or adamx.AdamConfig"
    arguments = ", ".join(_ARGUMENTS)
    problem = f"Adam() has no argument {name!r}{f': {hint}' if hint else ''}"
    return InvalidType(problem, remedy=f"It has {arguments}")
