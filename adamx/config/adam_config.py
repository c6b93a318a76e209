"""One neutral description of every framework's Adam, and the Optax transformation it defines."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.checks import (
    check_choice,
    check_number,
    check_positive,
    check_rate,
    check_scheduled,
)
from adamx.base.dtypes import check_not_flushed, is_number, type_name
from adamx.base.eight_bit import EightBit
from adamx.base.errors import AdamxError, InvalidType, InvalidValue
from adamx.base.jax_seam import is_traced
from adamx.base.numerics import CONVENTIONS, ConventionName
from adamx.config.keras_config import Generation, fields_from_keras, keras_from_fields
from adamx.config.torch_config import fields_from_torch, torch_from_fields
from adamx.transforms.adam import scale_by_adam
from adamx.transforms.foreign import (
    clip_each_norm,
    clip_global_norm,
    clip_values,
    torch_weight_decay,
    undo_bias_correction,
)
from adamx.transforms.scaling import add_weight_decay, scale_by_learning_rate
from adamx.transforms.schedules import inverse_time_decay

__all__ = ["AdamConfig"]

_LIMITS = ("clip_norm", "clip_global_norm", "clip_value")
_NUMBERS = ("b1", "b2", "eps", "eps_root", "decay", "weight_decay", *_LIMITS)
_FLAGS = ("decoupled", "amsgrad", "nesterov", "clip_value_first", "maximize", "float32")
_FLAGS += ("bias_correction",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """The hyperparameters of Adam in TF 1.1, tf_keras, Keras 3, PyTorch or Optax.

    Frozen, comparable and, with numbers in it, hashable. Instead of a number there may be a scalar
    array, traced or not (`dataclasses.replace` inside of a jitted function).

    Attributes:
      learning_rate: at least 0; or a schedule from the count of steps done, such as a
        `KerasSchedule`.
      b1, b2, eps, eps_root, amsgrad, nesterov, convention: see `adamx.scale_by_adam`.
      decay: of the learning rate, which is divided by 1 + decay * count.
      weight_decay: at least 0.
      decoupled: the parameters shrink by learning rate times weight decay (AdamW); if not, weight
        decay times the parameters is added to the gradients.
      clip_norm: largest norm of each gradient; None for no limit, like the next two.
      clip_global_norm: largest norm of all gradients together.
      clip_value: largest absolute value of an entry.
      clip_value_first: clip values before norms, and not after them.
      maximize: step along the gradients, to maximise instead of minimise.
      float32: the numbers for learning rate, b1, b2 and decay are rounded to float32 before
        anything is computed from them, as in TF 1.1 and tf_keras's legacy optimizer.
      bias_correction: whether the moments, which start at 0, are corrected for that. Without it
        the direction is m / (sqrt(v) + eps), as with `correct_bias=False` in transformers' AdamW
        and `bias_correction=False` in Apex's FusedAdam; only with convention "keras".
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    learning_rate: optax.ScalarOrSchedule = 1e-3
    b1: chex.Numeric = 0.9
    b2: chex.Numeric = 0.999
    eps: chex.Numeric = 1e-8
    eps_root: chex.Numeric = 0.0
    decay: chex.Numeric = 0.0
    weight_decay: float | chex.ArrayDevice = 0.0
    decoupled: bool = True
    amsgrad: bool = False
    nesterov: bool = False
    clip_norm: float | None = None
    clip_global_norm: float | None = None
    clip_value: float | None = None
    clip_value_first: bool = False
    maximize: bool = False
    convention: ConventionName = "optax"
    float32: bool = False
    bias_correction: bool = True

    def __post_init__(self) -> None:
        """Raise a ValueError or TypeError for a value out of range or of the wrong type."""
        for name in _NUMBERS:
            if callable(value := getattr(self, name)):
                raise InvalidType(
                    where=name,
                    expected="a real number or a scalar array",
                    found=f"{type_name(value)} {value!r}",
                    remedy="AdamConfig accepts a schedule only as learning_rate; adamx.adamw "
                    "accepts one as weight_decay too, and for any number in "
                    "optax.inject_hyperparams",
                )
        rates = {"learning_rate": check_rate("learning_rate", self.learning_rate)}
        numbers = {name: check_number(name, getattr(self, name), below=1) for name in ("b1", "b2")}
        for name in ("eps", "eps_root", "decay", "weight_decay"):
            numbers[name] = check_number(name, getattr(self, name))
        for name in ("eps", "eps_root"):
            check_not_flushed(name, numbers[name])
        limits = {
            name: check_positive(name, getattr(self, name))
            for name in _LIMITS
            if getattr(self, name) is not None
        }
        check_choice("convention", self.convention, tuple(CONVENTIONS))
        for name in _FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise InvalidType(where=name, expected="True or False", found=repr(value))
        for name, value in (rates | numbers | limits).items():
            object.__setattr__(self, name, value)  # NumPy's numbers as Python's
        if self.nesterov and self.convention != "optax":
            expected = 'convention="optax" with it'
            raise InvalidValue(where="nesterov", expected=expected, found=repr(self.convention))
        if not self.bias_correction and self.convention != "keras":
            expected = 'convention="keras" with it, which adds epsilon to the uncorrected sqrt(v)'
            raise InvalidValue(where="bias_correction", expected=expected, found="False")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            if self.float32 and is_number(value) and not np.float32(value) < 1:
                expected = "a number that stays below 1 when rounded to float32"
                raise InvalidValue(where=name, expected=expected, found=repr(value))

    @classmethod
    def from_keras(cls, config: Mapping[str, Any], generation: Generation | None = None) -> Self:
        """The configuration of a Keras optimizer.

        Args:
          config: what `get_config()` of its Adam or AdamW returned, or a dictionary with that as
            `config` and the class as `class_name`. Keys that are missing have the defaults of the
            generation. It is not changed.
          generation: "tf1" (`tf.contrib.keras` of TensorFlow 1.1, Keras 2.0), "tf_keras_legacy"
            (`tf_keras.optimizers.legacy`, TensorFlow 2.0 to 2.10), "tf_keras" (its current
            optimizer, TensorFlow 2.11 to 2.15) or "keras3". None if the keys identify it.

        Returns:
          The configuration. What only describes the object, such as its name, is not kept.

        Raises:
          ValueError: the keys do not identify the generation; an unknown key; a key that asks for
            what adamx does not do, with what to use instead; a value out of range.
          TypeError: not a mapping; a value of the wrong type.
        """
        fields, keys = fields_from_keras(config, generation)
        return cls._named(fields, keys)

    def to_keras(self, generation: Generation) -> dict[str, Any]:
        """The `get_config()` of a Keras optimizer that computes the same; see `from_keras`.

        `decay` becomes a learning-rate schedule where Keras no longer has it, and hyperparameters
        in float32 become doubles of the same value. TensorFlow 1.1 and tf_keras's legacy optimizer
        will round theirs to float32. The values are Python's, and can be written as JSON.

        Raises:
          ValueError: that generation cannot express a field, or it is traced; the message names it.
        """
        return keras_from_fields(self.plain_fields(), generation)

    @classmethod
    def from_torch(cls, param_group: Mapping[str, Any]) -> Self:
        """The configuration of a parameter group of torch.optim.Adam or AdamW.

        Args:
          param_group: an entry of `optimizer.param_groups`, or of `param_groups` in a state dict.

        Raises:
          ValueError: an unknown key; a weight decay without `decoupled_weight_decay`, which
            distinguishes Adam from AdamW and which older versions do not write; a value out of
            range.
          TypeError: not a mapping; a value of the wrong type.
        """
        fields, keys = fields_from_torch(param_group)
        return cls._named(fields, keys)

    def to_torch(self) -> dict[str, Any]:
        """A parameter group (without `params`) of torch.optim.Adam or AdamW that computes the same.

        Raises:
          ValueError: torch cannot express a field; the message names it.
        """
        return torch_from_fields(self.plain_fields())

    def transformation(
        self,
        mask: Any | None = None,
        *,
        moments: EightBit | Literal["8bit"] | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation that computes what the framework does, in its order.

        Args:
          mask: where weight decay applies: a tree of booleans, or a function from parameters to
            one, as in `optax.adamw`. None for everywhere.
          moments: as in `adamx.adam`; how a run keeps its moments is not part of a configuration.

        Returns:
          An `optax.chain` of the parts that are used, in this order: the sign for `maximize`,
          clipping, weight decay of the gradients, `scale_by_adam`, decoupled weight decay, the
          learning rate.
          `update` needs `params` for weight decay. With a constant learning rate, convention
          "torch" rounds the decoupled decay of parameters of up to 32 bits as torch does.
        """
        parts: list[optax.GradientTransformation] = []
        if self.maximize:
            parts.append(optax.scale(-1.0))
        parts += self.clipping()
        if self.decays() and not self.decoupled:
            parts.append(add_weight_decay(self.weight_decay, mask))
        parts.append(
            scale_by_adam(
                self._rounded(self.b1),
                self._rounded(self.b2),
                self.eps,
                self.eps_root,
                nesterov=self.nesterov,
                amsgrad=self.amsgrad,
                convention=self.convention,
                moments=moments,
            )
        )
        if not self.bias_correction:
            parts.append(undo_bias_correction(self._rounded(self.b1), self._rounded(self.b2)))
        if self.decays() and self.decoupled:
            parts.append(self._decoupled_weight_decay(mask))
        parts.append(scale_by_learning_rate(self._learning_rate()))
        return optax.chain(*parts)

    def clipping(self) -> list[optax.GradientTransformation]:
        """The parts of `transformation` that clip gradients, in their order; stateless."""
        norms = []
        if self.clip_norm is not None:
            norms.append(clip_each_norm(self.clip_norm))
        if self.clip_global_norm is not None:
            norms.append(clip_global_norm(self.clip_global_norm))
        values = [] if self.clip_value is None else [clip_values(self.clip_value)]
        return values + norms if self.clip_value_first else norms + values

    @classmethod
    def _named(cls, fields: Mapping[str, Any], keys: Mapping[str, str]) -> Self:
        """The configuration with these fields; errors name the key that a field was read from."""
        try:
            return cls(**fields)
        except AdamxError as error:
            raise error.replace(where=keys.get(error.where, error.where)) from error

    def plain_fields(self) -> dict[str, Any]:
        """The fields, with Python's numbers for arrays.

        Raises:
          ValueError: a field is being traced; the message names it.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in fields.items():
            if is_traced(value):
                expected, found = "a number with a known value", "a traced array"
                raise InvalidValue(where=name, expected=expected, found=found)
            if isinstance(value, jax.Array | np.ndarray | np.generic):
                value = value.item()
            is_int = isinstance(value, int) and not isinstance(value, bool)
            fields[name] = float(value) if is_int else value
        return fields

    def idle_fields(self) -> set[str]:
        """The fields that change nothing beside the others, and that each framework sets anyhow."""
        idle = set() if self.decays() else {"decoupled"}
        return idle if self.clip_value is not None else idle | {"clip_value_first"}

    def decays(self) -> bool:
        """Whether weight decay applies; True if it is an array, whose value may be unknown."""
        return not is_number(self.weight_decay) or self.weight_decay != 0

    def _rounded(self, x: Any) -> Any:
        """A number as the framework holds it: a Python float, rounded to float32 if it does."""
        return float(np.float32(x)) if self.float32 and is_number(x) else x

    def _decoupled_weight_decay(self, mask: Any | None) -> optax.GradientTransformation:
        rate, decay = self.learning_rate, self.weight_decay
        if self.convention != "torch" or not is_number(rate) or not is_number(decay) or not rate:
            return add_weight_decay(decay, mask)
        return torch_weight_decay(rate, decay, mask)

    def _learning_rate(self) -> optax.ScalarOrSchedule:
        rate, decay = self._rounded(self.learning_rate), self._rounded(self.decay)
        if is_number(decay) and decay == 0:
            return rate
        if not callable(rate):
            return inverse_time_decay(rate, decay)
        falling = inverse_time_decay(1.0, decay)

        def schedule(count: jax.typing.ArrayLike) -> chex.ArrayDevice:
            value = check_scheduled("learning_rate", rate(count))
            return jnp.asarray(value) * jnp.asarray(falling(count))

        return schedule
