"""Counters of steps, which files hold as scalars of many kinds."""

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError

__all__ = ["count_steps", "read_count"]


def read_count(name: str, array: np.ndarray) -> int:
    """The whole number that a file holds as some scalar."""
    if array.size != 1 or not np.isfinite(array).all() or array.item() != int(array.item()):
        raise CheckpointError(where=name, expected="a whole number", found=f"{array!r:.80}")
    return int(array.item())


def count_steps(checkpoint: Checkpoint) -> int:
    """The steps of the run; groups that were added late have done fewer."""
    return max(group.count for group in checkpoint.groups)
