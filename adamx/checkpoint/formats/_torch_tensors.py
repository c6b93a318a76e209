"""Convert stand-ins of torch's tensors to arrays."""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.stand_ins import Global, StandIn
from adamx.checkpoint.untrusted.torch_archive import read_tensors
from adamx.checkpoint.untrusted.torch_tensors import Tensor, TensorStandIn

__all__ = ["check_real", "describe", "freeze", "is_inexact", "is_tensor", "read_values", "to_array"]

_MOST_SETTINGS = 1_000_000  # values
_Key = TypeVar("_Key", bound=Hashable)


def is_tensor(value: Any) -> bool:
    """Whether it was a tensor in the file, with values or without."""
    return isinstance(value, np.ndarray | TensorStandIn)


def is_inexact(tensor: np.ndarray | TensorStandIn) -> bool:
    """Whether a tensor is of real or complex numbers, or of an unknown kind."""
    return tensor.dtype is None or jnp.issubdtype(tensor.dtype, jnp.inexact)


def describe(value: Any) -> str:
    """What a value is, for errors."""
    if isinstance(value, TensorStandIn):
        return f"one {value.problem}"
    return value.name if isinstance(value, StandIn | Global) else type(value).__name__


def freeze(value: Any) -> Hashable:
    """A key, equal for equal settings: numbers, texts, flags, tensors of one number, and lists.

    Two objects of other classes are never equal. A pickle may refer to one list so often that
    comparing by `repr` or `==` takes forever.

    Raises:
      CheckpointError: there is too much to compare.
    """
    left = _MOST_SETTINGS

    def visit(node: Any) -> Hashable:
        nonlocal left
        left -= 1
        if left < 0:
            raise CheckpointError("the settings of the optimizer are too large")
        if node is None or isinstance(node, bool | int | float | str):
            return type(node), node
        if isinstance(node, np.generic) or (isinstance(node, np.ndarray) and node.size == 1):
            return "number", np.asarray(node).item()
        if isinstance(node, list | tuple):
            return tuple(map(visit, node))
        if isinstance(node, dict):
            return tuple((key, visit(part)) for key, part in node.items())
        return "object", id(node)

    return visit(value)


def to_array(where: str, tensor: Any, size: int) -> np.ndarray:
    """A tensor in a file of `size` bytes as an array, of which nothing is read yet.

    Raises:
      CheckpointError: it has no values of its own in the file; the message says `where`.
    """
    if isinstance(tensor, TensorStandIn):
        raise CheckpointError(where=where, expected="a tensor with values", found=describe(tensor))
    if isinstance(tensor, np.ndarray) and not isinstance(tensor, Tensor):
        return tensor  # one that was read already
    if not isinstance(tensor, Tensor):
        raise CheckpointError(where=where, expected="a dense tensor", found=describe(tensor))
    held = size if tensor.storage is None else min(tensor.storage.nbytes, size)
    if tensor.nbytes > held:
        raise CheckpointError(f"shape {tensor.shape} claims more than the file holds", where=where)
    return tensor


def read_values(
    arrays: Mapping[_Key, np.ndarray],
    account: Account | None = None,
    progress: Progress | None = None,
) -> dict[_Key, np.ndarray]:
    """Copies of the arrays in memory, with verified values."""
    tensors = {key: array for key, array in arrays.items() if isinstance(array, Tensor)}
    read = read_tensors(list(tensors.values()), account, progress)
    return {**arrays, **dict(zip(tensors, read, strict=True))}


def check_real(where: str, array: np.ndarray) -> None:
    """Refuse complex moments, which torch and adamx keep in different ways."""
    if np.iscomplexobj(array):
        raise CheckpointError(
            where=where,
            expected="real numbers",
            found=f"{array.dtype}: for a complex number torch has two second moments, of its real "
            "and its imaginary part, and adamx has one",
        )
