"""How the axes of arrays stand in a file and in a tree."""

import warnings
from collections.abc import Callable

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.names import read_role

__all__ = [
    "AS_IN_TORCH",
    "Layout",
    "choose_layout",
    "lay_out",
    "torch_linear",
]

Layout = Callable[[str, np.ndarray], np.ndarray]
"""Changes how the axes of an array stand: takes the path in the tree and the array."""

# What a tree calls arrays that stand as in torch.
AS_IN_TORCH = ("weight", "embedding", "embeddings")


def torch_linear(path: str, array: np.ndarray) -> np.ndarray:
    """The layout between `torch.nn.Linear.weight` (out, in) and a kernel (in, out); either way.

    Args:
      path: of the parameter in the tree, such as `hidden/kernel`.
      array: a weight or a moment.

    Returns:
      The transpose of a two-dimensional array whose path ends in `kernel`; as they are, arrays of
      fewer dimensions, and those called `weight`, `embedding` or `embeddings`.

    Raises:
      CheckpointError: anything else, such as the kernel of a convolution. How its axes stand
        depends on the layer; give a layout of your own.
    """
    if array.ndim < 2 or read_role(path) in AS_IN_TORCH:
        return array
    if array.ndim > 2 or read_role(path) != "kernel":
        raise CheckpointError(
            where=path,
            expected="a kernel of 2 dimensions",
            found=f"shape {array.shape}",
            remedy="give a layout of your own, such as numpy.transpose by path",
            argument="layout",
        )
    return array.T


def choose_layout(layout: Layout | None, transform: Layout | None) -> Layout | None:
    """`layout`, or what was given under its old name, `transform`, with a warning."""
    if transform is None:
        return layout
    if layout is not None:
        raise CheckpointError(
            where="transform",
            expected="layout alone",
            found="both; transform is its old name",
            argument="layout",
        )
    warnings.warn("transform= is now called layout=", DeprecationWarning, stacklevel=3)
    return transform


def lay_out(path: str, array: np.ndarray, layout: Layout | None) -> np.ndarray:
    """`array` as it goes to `path`."""
    return array if layout is None else np.asarray(layout(path, array))
