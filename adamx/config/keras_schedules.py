"""The learning-rate schedules that Keras writes into a configuration, as Optax schedules."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.dtypes import is_number
from adamx.base.errors import AdamxError, InvalidType, InvalidValue

__all__ = ["KerasSchedule"]


@dataclass(frozen=True)
class KerasSchedule:
    """A learning-rate schedule of Keras, as an Optax schedule that can be written back.

    Supported are ExponentialDecay, InverseTimeDecay, PiecewiseConstantDecay, PolynomialDecay,
    CosineDecay and CosineDecayRestarts. In the last one, Keras misses some of the restarts by a
    step, since it rounds down a quotient of logarithms in float32; this one does not.

    Args:
      class_name: the class in `keras.optimizers.schedules`.
      arguments: the names and values of its constructor's arguments; what is left out has Keras's
        default. They are sorted by name, with NumPy numbers as Python's, lists as tuples, and
        without a `name` of None, so that equal schedules compare equal and have the same hash.

    Raises:
      ValueError: an unknown class; an argument that is unknown, missing or out of range.
      TypeError: an argument of the wrong type.

    Example:
      >>> from adamx.keras import KerasSchedule
      >>> arguments = {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5}
      >>> schedule = KerasSchedule("ExponentialDecay", tuple(arguments.items()))
      >>> [round(float(schedule(count)), 3) for count in (0, 10, 20)]
      [0.1, 0.05, 0.025]

    Source: `keras/src/optimizers/schedules/learning_rate_schedule.py`, Keras 3.15.
    """

    __module__ = "adamx.keras"  # as users import it: what pickles and repr name

    class_name: str
    arguments: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        if self.class_name not in _SCHEDULES:
            raise InvalidValue(
                where="learning_rate",
                expected=f"a Keras schedule, one of {', '.join(_SCHEDULES)}",
                found=repr(self.class_name),
                remedy=_AS_OPTAX,
            )
        given = {name: _plain(value) for name, value in self.arguments}
        if given.get("name", "") is None:  # tf_keras's default, which Keras 3 does not take
            del given["name"]
        _check_arguments(self.class_name, given)
        object.__setattr__(self, "arguments", tuple(sorted(given.items())))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "KerasSchedule":
        """Read what `keras.optimizers.schedules.serialize` gives, in Keras 3 or tf_keras.

        Args:
          config: a mapping with `class_name` and `config`, its arguments; `module` and
            `registered_name` may be there.

        Raises:
          ValueError, TypeError: as the constructor, and for a mapping of another form or a class
            that is not Keras's own.
        """
        if not isinstance(config, Mapping) or not isinstance(config.get("config"), Mapping):
            raise InvalidType(
                where="learning_rate",
                expected="a mapping with class_name and config, as "
                "keras.optimizers.schedules.serialize returns it",
                found=repr(config),
            )
        class_name = config.get("class_name")
        known = ("class_name", "config", "module", "registered_name")
        for key in config:
            if key not in known:
                problem = f"{class_name} has the unknown key {key!r}; expected {', '.join(known)}"
                raise InvalidValue(problem, where="learning_rate")
        module, registered = config.get("module"), config.get("registered_name")
        if registered is not None or str(module or "keras").split(".")[0] not in _PACKAGES:
            raise InvalidValue(
                where="learning_rate",
                expected=f"a class of {' or '.join(_PACKAGES)}",
                found=f"{class_name} of {registered or module}",
                remedy=_AS_OPTAX,
            )
        return cls(str(class_name), tuple(config["config"].items()))

    def to_config(self) -> dict[str, Any]:
        """Return what `keras.optimizers.schedules.deserialize` takes; it can be written as JSON."""
        return {
            "module": "keras.optimizers.schedules",
            "class_name": self.class_name,
            "config": {k: list(v) if isinstance(v, tuple) else v for k, v in self.arguments},
            "registered_name": None,
        }

    def __call__(self, count: jax.typing.ArrayLike) -> chex.ArrayDevice:
        """Return the learning rate after `count` steps.

        Args:
          count: integers from 0, of any shape; may be traced.

        Returns:
          An array of that shape, in JAX's default floating-point dtype.
        """
        defaults, formula = _SCHEDULES[self.class_name]
        arguments = SimpleNamespace(**(defaults | dict(self.arguments)))
        return formula(jnp.asarray(count, float), arguments)


_PACKAGES = ("keras", "tf_keras")
_AS_OPTAX = "Write it as an Optax schedule with the same values instead"


def _plain(value: Any) -> Any:
    """The value with Python's numbers for NumPy's, and tuples for lists."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _check_arguments(class_name: str, given: Mapping[str, Any]) -> None:
    defaults, where = _SCHEDULES[class_name][0], f"learning_rate: {class_name}"
    missing = [k for k, v in defaults.items() if v is _REQUIRED and k not in given]
    unknown = [k for k in given if k not in defaults]
    if missing or unknown:
        problem = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"
        problem += f"; its arguments are {', '.join(defaults)}"
        raise InvalidValue(problem, where=where)
    for name, value in given.items():
        error, words = _fault(name, value)
        if error:
            raise error(where=f"{where}: {name}", expected=words, found=repr(value))
    if "values" in given and len(given["values"]) != len(given["boundaries"]) + 1:
        there = len(given["boundaries"])
        raise InvalidValue(
            where=f"{where}: values",
            expected=f"{there + 1} numbers, one more than boundaries",
            found=len(given["values"]),
        )


def _fault(name: str, value: Any) -> tuple[type[AdamxError] | None, str]:
    """The error for the value, or None, and what was expected."""
    if name in ("boundaries", "values"):
        if not isinstance(value, tuple) or not all(map(is_number, value)):
            return InvalidType, "a list of numbers"
        increasing = name == "values" or all(a < b for a, b in pairwise(value))
        return None if increasing else InvalidValue, "increasing numbers"
    if name in ("staircase", "cycle"):
        return None if isinstance(value, bool) else InvalidType, "True or False"
    if name == "name":
        return None if isinstance(value, str) else InvalidType, "a string"
    if name == "warmup_target" and value is None:
        return None, ""
    if not is_number(value):
        return InvalidType, f"a number, not a {type(value).__name__}"
    if name in ("decay_steps", "first_decay_steps"):
        return None if 0 < value < math.inf else InvalidValue, "a finite number above 0"
    # With t_mul below 1 all periods together end at some step, after which Keras returns NaN.
    least = {"warmup_steps": 0, "t_mul": 1}.get(name, -math.inf)
    words = "a finite number" if least == -math.inf else f"a finite number of at least {least}"
    return None if least <= value < math.inf else InvalidValue, words


# The formulas, with Keras's names. A quotient that is rounded down is written `//`: XLA may divide
# by multiplying with the reciprocal, and 49 * (1/49) is below 1.


def _exponential_decay(count: chex.ArrayDevice, a: SimpleNamespace) -> chex.ArrayDevice:
    periods = count // a.decay_steps if a.staircase else count / a.decay_steps
    return a.initial_learning_rate * a.decay_rate**periods


def _inverse_time_decay(count: chex.ArrayDevice, a: SimpleNamespace) -> chex.ArrayDevice:
    periods = count // a.decay_steps if a.staircase else count / a.decay_steps
    return a.initial_learning_rate / (1 + a.decay_rate * periods)


def _piecewise_constant_decay(count: chex.ArrayDevice, a: SimpleNamespace) -> chex.ArrayDevice:
    # Optax's schedule changes at a boundary, and multiplies scales; Keras's changes after it.
    passed = jnp.searchsorted(jnp.asarray(a.boundaries, float), count, side="left")
    return jnp.asarray(a.values, float)[passed]


def _polynomial_decay(count: chex.ArrayDevice, a: SimpleNamespace) -> chex.ArrayDevice:
    periods = jnp.maximum(1, -(-count // a.decay_steps)) if a.cycle else 1
    rest = 1 - jnp.minimum(1, count / (a.decay_steps * periods))
    return (a.initial_learning_rate - a.end_learning_rate) * rest**a.power + a.end_learning_rate


def _cosine_decay(count: chex.ArrayDevice, a: SimpleNamespace) -> chex.ArrayDevice:
    schedule = optax.cosine_decay_schedule(a.initial_learning_rate, a.decay_steps, a.alpha)
    if a.warmup_target is not None:
        warmup = optax.linear_schedule(a.initial_learning_rate, a.warmup_target, a.warmup_steps)
        decay = optax.cosine_decay_schedule(a.warmup_target, a.decay_steps, a.alpha)
        schedule = optax.join_schedules([warmup, decay], [a.warmup_steps])
    return jnp.asarray(schedule(count))


def _cosine_decay_restarts(count: chex.ArrayDevice, a: SimpleNamespace) -> chex.ArrayDevice:
    if a.t_mul == 1:
        restarts = count // a.first_decay_steps
        done = count % a.first_decay_steps / a.first_decay_steps
    else:
        # Period i starts at first_decay_steps * (t_mul^i - 1) / (t_mul - 1). Rounding must not put
        # that step, which has the highest value, at the end of the period before.
        log = jnp.log1p(count * ((a.t_mul - 1) / a.first_decay_steps))
        log += 2 * jnp.finfo(log.dtype).eps * (1 + log)
        restarts = jnp.floor(log / math.log(a.t_mul))
        scale = a.t_mul**restarts
        start = (scale - 1) / (a.t_mul - 1)
        done = jnp.maximum(0, count / a.first_decay_steps - start) / scale
    multiplier = 0.5 * a.m_mul**restarts * (1 + jnp.cos(math.pi * done))
    return a.initial_learning_rate * ((1 - a.alpha) * multiplier + a.alpha)


_REQUIRED: Any = object()
_COMMON = {"name": None, "initial_learning_rate": _REQUIRED}
_RATE = _COMMON | {"decay_steps": _REQUIRED, "decay_rate": _REQUIRED, "staircase": False}
_Formula = Callable[[chex.ArrayDevice, SimpleNamespace], chex.ArrayDevice]

_SCHEDULES: dict[str, tuple[dict[str, Any], _Formula]] = {
    "ExponentialDecay": (_RATE, _exponential_decay),
    "InverseTimeDecay": (_RATE, _inverse_time_decay),
    "PiecewiseConstantDecay": (
        {"name": None, "boundaries": _REQUIRED, "values": _REQUIRED},
        _piecewise_constant_decay,
    ),
    "PolynomialDecay": (
        _COMMON
        | {"decay_steps": _REQUIRED, "end_learning_rate": 1e-4, "power": 1.0, "cycle": False},
        _polynomial_decay,
    ),
    "CosineDecay": (
        _COMMON
        | {"decay_steps": _REQUIRED, "alpha": 0.0, "warmup_target": None, "warmup_steps": 0},
        _cosine_decay,
    ),
    "CosineDecayRestarts": (
        _COMMON | {"first_decay_steps": _REQUIRED, "t_mul": 2.0, "m_mul": 1.0, "alpha": 0.0},
        _cosine_decay_restarts,
    ),
}
