"""The leaves of a tree of parameters by path, and how arrays of a file are laid out there."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from adamx.base.trees import path_name
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.matching import role

__all__ = ["AS_IN_TORCH", "Transform", "leaves_of", "on_host", "torch_linear", "transformed"]

Transform = Callable[[str, np.ndarray], np.ndarray]


# What a tree calls arrays that stand as in torch.
AS_IN_TORCH = ("weight", "embedding", "embeddings")


def torch_linear(path: str, array: np.ndarray) -> np.ndarray:
    """The transform between `torch.nn.Linear.weight` (out, in) and a kernel (in, out); either way.

    Args:
      path: of the parameter in the tree, such as `hidden/kernel`, or of NNX `hidden/kernel/value`.
      array: a weight or a moment.

    Returns:
      The transpose of a two-dimensional array whose path ends in `kernel`; as they are, arrays of
      fewer dimensions, and those called `weight`, `embedding` or `embeddings`.

    Raises:
      CheckpointError: anything else, such as the kernel of a convolution. How its axes stand
        depends on the layer; give a transform of your own.
    """
    if array.ndim < 2 or role(path) in AS_IN_TORCH:
        return array
    if array.ndim > 2 or role(path) != "kernel":
        raise CheckpointError(
            f"{path}: expected a kernel of 2 dimensions, found shape {array.shape}; give a "
            "transform of your own, such as numpy.transpose by path"
        )
    return array.T


def leaves_of(params: optax.Params) -> dict[str, Any]:
    """The leaves of a tree by path."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{name}: expected an array, found {type(leaf).__name__}")
        if name in leaves:
            raise CheckpointError(f"{name}: two parameters have this path; rename one of them")
        leaves[name] = leaf
    return leaves


def on_host(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Host copies; bfloat16 as float32."""
    arrays = {path: np.array(leaf) for path, leaf in leaves.items()}
    return {
        path: array if array.dtype.isbuiltin == 1 else array.astype(np.float32)
        for path, array in arrays.items()
    }


def transformed(path: str, array: np.ndarray, transform: Transform | None) -> np.ndarray:
    """`array` as it goes to `path`."""
    return array if transform is None else np.asarray(transform(path, array))
