"""The arguments of `adamx.keras.Adam`: their names in TensorFlow 1.1, their ranges."""

import reprlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.checks import check_number
from adamx.base.dtypes import is_number
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.jax_seam import is_traced

__all__ = ["check_argument", "check_iterations", "describe_unknown", "unknown_argument"]

_ARGUMENTS = ("lr", "beta_1", "beta_2", "epsilon", "decay", "clipnorm", "clipvalue")

# The names that later versions of Keras, and other frameworks, have for an argument.
_RENAMED = {
    "learning_rate": "it is called lr here, as in TensorFlow 1.1",
    "alpha": "it is called lr here",
    "b1": "it is called beta_1 here",
    "beta1": "it is called beta_1 here",
    "b2": "it is called beta_2 here",
    "beta2": "it is called beta_2 here",
    "betas": "they are called beta_1 and beta_2 here",
    "eps": "it is called epsilon here",
    "global_clipnorm": "it is called clipnorm here: in TensorFlow 1.1 the norm of all gradients",
    "class_name": "from_config takes only the mapping under config",
    "schedule_decay": "it belongs to Nadam; the learning-rate decay of Adam is called decay",
}

# What Adam of TensorFlow 1.1 does not have, but another Adam does.
_ELSEWHERE = {
    *("amsgrad", "weight_decay", "nesterov", "maximize", "eps_root", "mu_dtype", "nu_dtype"),
    *("mask", "use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor"),
    *("gradient_accumulation_steps", "jit_compile", "name"),
}

_BETWEEN_STEPS = "Set optimizer.{} between steps"
_TAKES_SCHEDULES = (
    f"{_BETWEEN_STEPS.format('lr')}; or use adamx.adam(schedule) or "
    "adamx.AdamConfig(learning_rate=schedule)"
)
_REMEDIES_FOR_SCHEDULES = {
    "lr": f"{_TAKES_SCHEDULES}. For the rate lr / (1 + decay * iterations) pass decay=",
    "decay": f"With a number the rate is lr / (1 + decay * iterations). {_TAKES_SCHEDULES}",
    "beta_1": _BETWEEN_STEPS.format("beta_1"),
    "beta_2": _BETWEEN_STEPS.format("beta_2"),
}


def check_argument(name: str, value: Any) -> float:
    """`value` as a Python float, if it is in the range of the argument `name`."""
    number = _plain_number(value)
    below = 1 if name.startswith("beta") else np.inf
    if not is_number(number):
        raise _not_a_number(name, value)
    number = check_number(name, number, below=below)
    with np.errstate(over="ignore"):
        rounded = np.float32(number)
    if not rounded < below:
        raise InvalidValue(
            where=name,
            expected=f"a number that stays below {below:g} when rounded to float32, as TensorFlow "
            "1.1 stores it",
            found=_shown(value),
        )
    return number


def _not_a_number(name: str, value: Any) -> InvalidType | InvalidValue:
    if callable(value) or isinstance(value, Mapping):  # or one that was serialised
        return InvalidType(
            where=name,
            expected="a real number",
            found=f"a schedule ({type(value).__name__})",
            remedy=_REMEDIES_FOR_SCHEDULES.get(name, "It must be the same in all steps"),
        )
    if is_traced(value):
        return InvalidType(
            where=name,
            expected="a real number",
            found="a traced array, whose value is not known yet",
            remedy="set it outside of jit and other transformations, or use adamx.adam, which "
            "accepts traced arrays",
        )
    if isinstance(value, jax.Array | np.ndarray) and value.shape:
        found = f"an array of shape {value.shape}"
        return InvalidValue(where=name, expected="a scalar", found=found)
    is_own = isinstance(value, bool | complex | jax.Array | np.ndarray | np.generic)
    is_convertible = hasattr(type(value), "__float__") and not is_own  # such as one of torch
    return InvalidType(
        where=name,
        expected="a real number from Python, NumPy or JAX",
        found=f"{type(value).__name__} {_shown(value)}",
        remedy="convert it with float(x)" if is_convertible else "",
    )


def check_iterations(value: Any) -> int:
    """`value` as a Python int, if it can be the number of steps done."""
    number, last = _plain_number(value), np.iinfo(np.int32).max
    if not is_number(number) or not 0 <= number <= last or number != int(number):
        expected = f"a whole number from 0 to {last}"
        raise InvalidValue(where="iterations", expected=expected, found=_shown(value))
    return int(number)


def _plain_number(value: Any) -> Any:
    """A scalar array of JAX or NumPy as a number of Python; anything else as it is."""
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic) and not is_traced(value)
    if not is_array or value.shape != () or not jnp.issubdtype(value.dtype, np.number):
        return value
    return None if isinstance(value, np.ma.MaskedArray) else value.item()


def _shown(value: Any) -> str:
    """The value in one line, shortened."""
    return " ".join(reprlib.repr(value).split())


def describe_unknown(name: str) -> str:
    """What to do about an argument that other optimizers have; "" if it is not known."""
    if name in _ELSEWHERE:
        return "TensorFlow 1.1 does not have it; use adamx.adam, adamx.adamw or adamx.AdamConfig"
    return _RENAMED.get(name, "")


def unknown_argument(name: str) -> InvalidType:
    """The error for an argument that TensorFlow 1.1 does not have."""
    hint = describe_unknown(name)
    arguments = ", ".join(_ARGUMENTS)
    problem = f"Adam() has no argument {name!r}{f': {hint}' if hint else ''}"
    return InvalidType(problem, remedy=f"Its arguments are {arguments}")
