"""The order of array axes in a file and in a tree."""

import warnings
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from adamx.base.errors import AdamxError, InvalidType
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
"""Rearranges the axes of an array: takes the path in the tree and the array."""

# Names in a tree of arrays that have the same layout as in torch.
AS_IN_TORCH = ("weight", "embedding", "embeddings")


def torch_linear(path: str, array: np.ndarray) -> np.ndarray:
    """The layout between `torch.nn.Linear.weight` (out, in) and a kernel (in, out); either way.

    Args:
      path: of the parameter in the tree, such as `hidden/kernel`.
      array: a weight or a moment.

    Returns:
      The transpose of a two-dimensional array whose path ends in `kernel`. Arrays of fewer
      dimensions, and those called `weight`, `embedding` or `embeddings`, are returned unchanged.

    Raises:
      CheckpointError: anything else, such as the kernel of a convolution, whose order of axes
        depends on the layer: write your own layout. Or an array of two dimensions is put at a
        path such as `hidden/bias`: give an `order`.
    """
    if array.ndim < 2 or read_role(path) in AS_IN_TORCH:
        return array
    if read_role(path) != "kernel":
        raise CheckpointError(
            where=path,
            expected="a path that ends in kernel for an array of 2 dimensions or more",
            found=f"shape {array.shape}",
            remedy="If this array belongs elsewhere, assign the arrays with order=; if it belongs "
            "here, pass a layout of your own",
            argument="order",
        )
    if array.ndim > 2:
        raise CheckpointError(
            where=path,
            expected="a kernel of 2 dimensions",
            found=f"shape {array.shape}",
            remedy="pass a layout of your own, which calls numpy.transpose according to the path",
            argument="layout",
        )
    return array.T


def choose_layout(layout: Layout | None, transform: Layout | None) -> Layout | None:
    """`layout`, or what was given under its old name, `transform`, with a warning."""
    for where, given in (("layout", layout), ("transform", transform)):
        if given is not None and not callable(given):
            raise InvalidType(
                where=where,
                expected="a function that takes a path and an array",
                found=repr(given)[:80],
            )
    if transform is None:
        return layout
    if layout is not None:
        raise CheckpointError(
            where="transform",
            expected="only layout=",
            found="both; transform= is its old name",
            argument="layout",
        )
    warnings.warn("transform= is now called layout=", DeprecationWarning, stacklevel=3)
    return transform


def lay_out(path: str, array: np.ndarray, layout: Layout | None) -> np.ndarray:
    """`array` as it goes to `path`.

    Raises:
      CheckpointError: the layout raised an error, or returned something other than an array.
    """
    if layout is None:
        return array
    try:
        given = layout(path, array)
    except AdamxError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the layout raised {type(error).__name__}: {error}",
            where=path,
            remedy="It is called with this path and each array that belongs there, here one of "
            f"shape {array.shape}",
            argument="layout",
        ) from error
    result = given if isinstance(given, np.ndarray) else _to_array(given)
    if result is None or not (
        result.dtype == array.dtype or jnp.issubdtype(result.dtype, jnp.number)
    ):
        raise CheckpointError(
            where=path,
            expected="the layout to return an array",
            found=type(given).__name__,
            argument="layout",
        )
    return result


def _to_array(given: object) -> np.ndarray | None:
    try:
        return np.asarray(given)
    except (TypeError, ValueError):  # a list of lists of several lengths, say
        return None
