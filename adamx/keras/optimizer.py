"""Adam with the interface of `tf.contrib.keras.optimizers.Adam` of TensorFlow 1.1."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
import optax

from adamx.base.errors import InvalidType, InvalidValue
from adamx.config.adam_config import AdamConfig
from adamx.keras.arguments import check_argument, check_iterations, unknown_argument
from adamx.keras.attributes import StrictAttributes, hyperparameter
from adamx.keras.changes import Changes, refuse_traced
from adamx.keras.program import (
    Constraint,
    Loss,
    check_trainable,
    clipped_gradients,
    combine,
    make_call,
    placed_like,
    step,
    take_trained,
    with_numbers,
)
from adamx.state import arrays as adam_weights
from adamx.transforms.adam import AdamState

__all__ = ["Adam"]

# The hyperparameters that can change during training, and what AdamConfig calls them.
_SETTABLE = {"lr": "learning_rate", "beta_1": "b1", "beta_2": "b2", "decay": "decay"}


class Adam(StrictAttributes):
    r"""Adam as TensorFlow 1.1 has it, for any tree of parameters.

    With gradient :math:`g_t` at step :math:`t = 1, 2, \ldots`, clipped as configured, and all
    hyperparameters but ``epsilon`` rounded to float32 as TensorFlow's variables are:

    .. math::

        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \qquad
        \theta_t = \theta_{t-1} - \frac{\mathit{lr}}{1 + \mathit{decay} \cdot (t-1)}
        \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m_t}{\sqrt{v_t} + \varepsilon}

    A thin layer over `transformation`: it keeps the state, and compiles a step once for each loss
    function, constraints and structure of parameters. Functions are compared by equality: define
    them outside of the training loop, since a new lambda is compiled again.

    The object of a bound method, the arguments of a `functools.partial` and the attributes of a
    frozen dataclass are checked in each step: arrays are traced, another value is compiled again,
    an object that can change undetected is an error. What a function reads from global variables or
    from enclosing functions is compiled in: a later change there has no effect.

    Only the arrays in the tree of parameters are trained. Everything else in it, such as functions
    and Python numbers in an Equinox module, is passed to the loss and returned unchanged.

    Threads may share it: changes of its state are made one after the other. Copies, pickles and
    `from_config` with `set_weights` continue independently of the original.

    Args:
      lr: the learning rate, at least 0.
      beta_1: decay rate of the first moment, in [0, 1).
      beta_2: decay rate of the second moment, in [0, 1).
      epsilon: added to the square root of the second moment, at least 0; fixed.
      decay: the learning rate is divided by 1 + decay * iterations; at least 0.
      **kwargs: `clipnorm`, the largest norm of all gradients together, and `clipvalue`, the largest
        absolute value of an entry, which is clipped after the norm. None or 0 for no limit.

    Attributes:
      lr, beta_1, beta_2, decay: as given; may be set at any time, without compiling again.
      iterations: the number of steps done, an int; may be set once there is a state.

    Raises:
      ValueError: a number out of range, also when rounded to float32.
      TypeError: an argument of the wrong type; one that TensorFlow 1.1 does not have.
      AttributeError: an attribute does not exist or cannot be set. The message says what to use.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamx.keras import Adam
      >>> optimizer = Adam(lr=0.1, clipnorm=1.0)
      >>> def loss(params, target):
      ...     return jnp.sum((params["w"] - target) ** 2)
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> for _ in range(100):
      ...     params = optimizer.get_updates(params, {}, loss, 3.0)
      >>> bool(jnp.abs(params["w"] - 3).max() < 0.2), optimizer.iterations
      (True, 100)

    Source: `tensorflow/contrib/keras/python/keras/optimizers.py`, TensorFlow 1.1.
    """

    __module__ = "adamx.keras"  # as users import it: what pickles and repr name

    # So that setting an attribute of a mistyped or later name is an error.
    __slots__ = ("_changes", "_config", "_fixed", "_state")

    def __init__(
        self,
        lr: float = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-08,
        decay: float = 0.0,
        **kwargs: float | None,
    ) -> None:
        for name in kwargs:
            if name not in ("clipnorm", "clipvalue"):
                raise unknown_argument(name)
        given = {"lr": lr, "beta_1": beta_1, "beta_2": beta_2, "decay": decay, "epsilon": epsilon}
        given |= {name: limit for name, limit in kwargs.items() if limit is not None}
        numbers = {name: check_argument(name, value) for name, value in given.items()}
        # Like TensorFlow 1.1, which clips only if the limit is above 0.
        self._config = {k: x for k, x in numbers.items() if x or k not in kwargs}
        fixed = {k: v for k, v in self._config.items() if k not in _SETTABLE}
        self._fixed = AdamConfig.from_keras(fixed, "tf1")
        self._state: optax.OptState | None = None
        self._changes = Changes()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config.items())
        return f"Adam({arguments})"

    def __getstate__(self) -> tuple[Any, dict[str, Any]]:
        attributes, slots = super().__getstate__()  # pyright: ignore[reportGeneralTypeIssues]
        return attributes, {name: x for name, x in slots.items() if name != "_changes"}

    def __setstate__(self, state: tuple[Any, dict[str, Any]]) -> None:
        attributes, slots = state
        for name, value in ((attributes or {}) | slots).items():
            setattr(self, name, value)
        self._config = dict(self._config)  # a copy's own: it is changed in place
        self._changes = Changes()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """An optimizer with the hyperparameters of a `get_config`, also of TensorFlow 1.1's own.

        Args:
          config: it is not changed. Keys that are missing have the default values.

        Raises:
          ValueError, TypeError: as the constructor.
        """
        if not isinstance(config, Mapping):
            expected, found = "a mapping, as get_config returns it", type(config).__name__
            raise InvalidType(where="config", expected=expected, found=found)
        return cls(**config)

    def get_config(self) -> dict[str, float]:
        """The hyperparameters: lr, beta_1, beta_2, decay, epsilon; clipnorm and clipvalue if set.

        Returns:
          A new dictionary of Python floats: the numbers given, not their rounding to float32.
        """
        return dict(self._config)

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The pure Optax transformation with the same arithmetic: clipping, Adam, learning rate.

        It has the present hyperparameters, and keeps them when they are set later.
        """
        return AdamConfig.from_keras(self._config, "tf1").transformation()

    @property
    def epsilon(self) -> float:
        """What is added to the square root of the second moment."""
        return self._config["epsilon"]

    @property
    def state(self) -> AdamState | None:
        """The Adam state (count, mu, nu), mu and nu like the parameters; None before there is one.

        It does not change: the next step makes another one.
        """
        # A copy of the containers, whose contents a user could replace.
        state = jax.tree.map(lambda x: x, self._state)
        nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, AdamState))
        return next((node for node in nodes if isinstance(node, AdamState)), None)

    @property
    def iterations(self) -> int:
        """The number of steps done."""
        state = self.state
        return 0 if state is None else int(np.asarray(state.count))

    @iterations.setter
    def iterations(self, value: int) -> None:
        refuse_traced("iterations", value)
        with self._changes.one("iterations"):
            state = self._existing_state("iterations")
            weights = [np.asarray(check_iterations(value)), *adam_weights.get_weights(state)[1:]]
            self._store("iterations", adam_weights.set_weights(state, weights))

    def build(self, params: Any) -> None:
        """Make the state for `params`: no steps done, moments of 0. An earlier state is discarded.

        `get_updates` does this at the first step.

        Raises:
          TypeError: a parameter is neither floating-point nor complex, or an array of another
            framework; `params` has no arrays. The message names the path.
          ValueError: the call is traced. After an error nothing has changed.
        """
        arrays = take_trained(params)
        refuse_traced("build", arrays)
        with self._changes.one("build"):
            self._store("build", self._initial_state(arrays))

    def get_gradients(self, loss: Loss, params: Any, *args: Any) -> Any:
        """The gradients of `loss(params, *args)` with respect to `params`, clipped as configured.

        Args:
          loss: returns a real floating-point scalar. A function, or another callable that cannot
            change undetected (see the class); `jax.jit` traces it.
          params: tree of parameters, floating-point or complex arrays.
          *args: trees. Arrays and numbers in them are traced; other leaves, also True and False,
            are compiled in, and must not change undetected either.

        Returns:
          A tree like `params`, in its dtypes, with None where a leaf is not an array. For complex
          parameters the direction of steepest ascent, which is the conjugate of what `jax.grad`
          returns.

        Raises:
          ValueError: the loss is not a scalar.
          TypeError: the loss is not a real floating-point number; a parameter is neither
            floating-point nor complex; an array is masked or of another framework; the loss or
            a leaf of `params` or `args` can change undetected.
        """
        call = make_call("get_gradients(loss, params, ...)", self._fixed, loss, None, params, args)
        return clipped_gradients(call.program, call.arrays, call.traced)

    def get_updates(
        self,
        params: Any,
        constraints: Mapping[str, Constraint] | None = None,
        loss: Loss | None = None,
        *args: Any,
    ) -> Any:
        """Take one step on `loss(params, *args)`.

        Args:
          params: as for `get_gradients`; they are neither changed nor donated.
          constraints: maps paths of parameters, such as `dense/kernel`, to functions that are
            applied to them after the step, such as `optax.projections.projection_non_negative`.
            None or empty for none.
          loss: as for `get_gradients`. It is required; without constraints write
            `get_updates(params, None, loss, ...)`.
          *args: as for `get_gradients`.

        Returns:
          The new parameters, with the structure, shapes and dtypes of `params`.

        Raises:
          ValueError: no parameter has the path of a constraint; a constraint changed the shape or
            dtype; the parameters are not those of the state; the call is traced; or as
            `get_gradients`.
          TypeError: as `get_gradients`. After an error nothing has changed.
        """
        form = "get_updates(params, None, loss, ...)"
        call = make_call(form, self._fixed, loss, constraints, params, args)
        refuse_traced("get_updates", (call.arrays, call.traced))
        with self._changes.one("get_updates"):
            before = self._initial_state(call.arrays) if self._state is None else self._state
            arrays, after = step(call.program, call.arrays, before, self._numbers(), call.traced)
            self._store("get_updates", after)
        return combine(arrays, call.others)

    def get_weights(self) -> list[np.ndarray]:
        """The state as NumPy arrays: [iterations, every m, every v]; empty before there is one."""
        state = self._state  # read once: another thread may replace it
        return [] if state is None else adam_weights.get_weights(state)

    def set_weights(self, weights: Iterable[np.ndarray]) -> None:
        """Set the state to `weights`, as `get_weights` or TensorFlow returned them.

        Raises:
          ValueError: there is no state yet; the number of arrays or a shape differs, or as
            `adamx.set_weights`; the call is traced. The state is left as it was.
        """
        if isinstance(weights, Iterator):
            weights = list(weights)
        refuse_traced("set_weights", weights)
        with self._changes.one("set_weights"):
            state = self._existing_state("weights")
            self._store("set_weights", adam_weights.set_weights(state, weights))

    def _store(self, caller: str, state: optax.OptState) -> None:
        """Keep a new state; every change ends here."""
        refuse_traced(caller, state)
        self._state = state

    def _existing_state(self, what: str) -> optax.OptState:
        if self._state is None:
            raise InvalidValue(
                where=what,
                expected="a state in which to set them",
                found="none yet",
                remedy="call build(params) with the parameters first",
            )
        return self._state

    def _numbers(self) -> dict[str, np.float32]:
        return {new: np.float32(self._config[name]) for name, new in _SETTABLE.items()}

    def _initial_state(self, arrays: Any) -> optax.OptState:
        check_trainable(arrays)
        state = with_numbers(self._fixed, self._numbers()).transformation().init(arrays)
        return placed_like(arrays, state)

    lr = hyperparameter("lr", "The learning rate.")
    beta_1 = hyperparameter("beta_1", "Decay rate of the first moment.")
    beta_2 = hyperparameter("beta_2", "Decay rate of the second moment.")
    decay = hyperparameter("decay", "The learning rate is divided by 1 + decay * iterations.")
