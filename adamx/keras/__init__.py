"""The surface of `tf.contrib.keras.optimizers.Adam` of TensorFlow 1.1."""

from adamx.keras.optimizer import Adam

__all__ = ["Adam"]
