"""Tensors of torch as NumPy arrays that share their memory, and back."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from adamx.checkpoint.errors import CheckpointError

__all__ = ["to_array", "to_tensor"]

_BFLOAT16 = np.dtype(jnp.bfloat16)


def to_array(where: str, tensor: Any, size: int) -> np.ndarray:
    """A tensor in a file of `size` bytes as an array.

    Raises:
      CheckpointError: it has no values of its own in the file; `where` it is.
    """
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise CheckpointError(where=where, expected="a dense tensor", found=type(tensor).__name__)
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        raise CheckpointError(
            where=where, expected="a tensor with values", found=f"one on {tensor.device}"
        )
    claimed = tensor.numel() * tensor.element_size()
    if claimed > min(tensor.untyped_storage().nbytes(), size):
        raise CheckpointError(
            f"shape {tuple(tensor.shape)} claims more than the file holds", where=where
        )
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> Any:
    """A contiguous tensor of an array."""
    import torch

    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).contiguous().view(torch.bfloat16)
    return torch.from_numpy(array).contiguous()
