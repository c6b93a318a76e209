"""Schedules that Optax does not have."""

import chex
import jax
import jax.numpy as jnp
import optax

from adamx.base.checks import check_number

__all__ = ["inverse_time_decay"]


def inverse_time_decay(init_value: chex.Numeric, decay_rate: chex.Numeric) -> optax.Schedule:
    """The `decay` of Keras's optimizers: `init_value / (1 + decay_rate * count)`.

    Args:
      init_value: the value at count 0, at least 0. Scalar; may be traced, like the next.
      decay_rate: what each step adds to the denominator, at least 0.

    Returns:
      A schedule: takes the count of steps done so far (an integer, from 0) and returns an array of
      the count's shape, in JAX's default floating-point dtype.

    Raises:
      ValueError: a number of Python or NumPy that is negative, infinite or NaN; an array that is
        not a scalar.
      TypeError: an argument is neither a number nor an array.

    Example:
      >>> import adamx
      >>> schedule = adamx.inverse_time_decay(init_value=0.1, decay_rate=0.5)
      >>> [round(float(schedule(count)), 3) for count in (0, 2, 8)]
      [0.1, 0.05, 0.02]

    Source: `get_updates` of `tf.contrib.keras.optimizers.Adam`, TensorFlow 1.1.
    """
    init_value = check_number("init_value", init_value)
    decay_rate = check_number("decay_rate", decay_rate)

    def schedule(count: jax.typing.ArrayLike) -> chex.ArrayDevice:
        init, rate, steps = (jnp.asarray(x, float) for x in (init_value, decay_rate, count))
        return init / (1 + rate * steps)

    return schedule
