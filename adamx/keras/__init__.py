"""The interface of `tf.contrib.keras.optimizers.Adam` of TensorFlow 1.1, and Keras's schedules."""

from adamx.config.keras_schedules import KerasSchedule
from adamx.keras.optimizer import Adam

__all__ = ["Adam", "KerasSchedule"]


def __dir__() -> list[str]:
    return __all__
