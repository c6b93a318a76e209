"""The attributes of `adamx.keras.Adam`, and what to use for those of other optimizers."""

from typing import TYPE_CHECKING, Any

from adamx.base.errors import AdamxError
from adamx.keras.arguments import check_argument, describe_unknown

__all__ = ["StrictAttributes", "hyperparameter"]

_STEP = "for a step, write params = optimizer.get_updates(params, None, loss, ...)"
_STEP_ON_GRADIENTS = f"{_STEP}; to apply your own gradients, use optimizer.transformation"
_GRADIENTS = "the gradients are optimizer.get_gradients(loss, params, ...)"
_WEIGHTS = "the state is optimizer.state, and as a list of arrays optimizer.get_weights()"
_SET_WEIGHTS = "write optimizer.build(params), then optimizer.set_weights(weights)"
_BUILD = "optimizer.build(params) or the first step creates the state"
_FIXED = (
    "it is fixed; read it from optimizer.get_config(). For another value make a new optimizer with "
    "Adam.from_config, then build(params) and set_weights(optimizer.get_weights())"
)

# The attributes of other optimizers: of later Keras, TensorFlow, torch, Optax and Flax.
_ATTRIBUTES = {
    **dict.fromkeys(("minimize", "step", "train_step"), _STEP),
    **dict.fromkeys(("apply", "apply_gradients", "update", "update_step"), _STEP_ON_GRADIENTS),
    **dict.fromkeys(("compute_gradients", "gradients", "grads"), _GRADIENTS),
    **dict.fromkeys(("weights", "variables", "trainable_variables", "slots", "get_slot"), _WEIGHTS),
    **dict.fromkeys(("get_slot_names", "state_dict", "opt_state", "m", "v", "mu", "nu"), _WEIGHTS),
    **dict.fromkeys(("load_state_dict", "load_own_variables", "assign"), _SET_WEIGHTS),
    **dict.fromkeys(("init", "add_slot", "add_variable", "built"), _BUILD),
    **dict.fromkeys(("clipnorm", "clipvalue", "epsilon", "global_clipnorm", "eps"), _FIXED),
    **dict.fromkeys(("param_groups", "defaults", "hyperparams"), "set lr, beta_1, beta_2, decay"),
    **dict.fromkeys(("count", "t", "step_count"), "the number of steps is iterations"),
    "zero_grad": f"gradients are not kept between steps; {_GRADIENTS}",
    "state": "build(params) creates it, and set_weights(weights) changes it",
    "transformation": "it has the current hyperparameters; set those instead",
}


class UnknownAttribute(AdamxError, AttributeError):
    """An attribute that the optimizer does not have, or that cannot be set."""


class StrictAttributes:
    """A class with only slots, whose errors for other attributes say what to use instead."""

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker would then accept any attribute

        def __getattr__(self, name: str) -> Any:
            problem = f"attribute {name!r} of {type(self).__name__} does not exist"
            raise _unknown(name, problem)

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except AttributeError as error:
            there = "cannot be set" if hasattr(type(self), name) else "does not exist"
            problem = f"attribute {name!r} of {type(self).__name__} {there}"
            raise _unknown(name, problem) from error


def _unknown(name: str, problem: str) -> UnknownAttribute:
    return UnknownAttribute(problem, remedy=_ATTRIBUTES.get(name) or describe_unknown(name))


def hyperparameter(name: str, doc: str) -> Any:
    """A property that is checked, and kept in `_config` under `name`."""

    def get(self: Any) -> float:
        return self._config[name]

    def set_(self: Any, value: float) -> None:
        # In place, and so atomic: when two threads set different ones, both changes are kept.
        self._config[name] = check_argument(name, value)

    return property(get, set_, doc=doc)
