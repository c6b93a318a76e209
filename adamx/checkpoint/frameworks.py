"""The frameworks whose checkpoints are known: one row for each."""

from types import MappingProxyType
from typing import Literal, NamedTuple

from adamx.base.numerics import ConventionName

__all__ = ["FRAMEWORKS", "Framework", "KernelLayout"]

Framework = Literal["tf1", "tf_keras_legacy", "tf_keras", "keras3", "torch", "jax"]

KernelLayout = Literal["in, out", "out, in", "the author's"]
"""The axes of a dense layer's kernel; in JAX those that the program's author chose."""


class _Row(NamedTuple):
    title: str
    convention: ConventionName  # of its own Adam
    kernel: KernelLayout


FRAMEWORKS: MappingProxyType[Framework, _Row] = MappingProxyType(
    {
        "tf1": _Row("TensorFlow 1.1, Keras", "keras", "in, out"),
        "tf_keras_legacy": _Row("tf_keras (legacy optimizer)", "keras", "in, out"),
        "tf_keras": _Row("tf_keras", "keras", "in, out"),
        "keras3": _Row("Keras", "keras", "in, out"),
        "torch": _Row("PyTorch", "torch", "out, in"),
        "jax": _Row("JAX", "optax", "the author's"),
    }
)
