"""Which numbers a dtype cannot hold."""

from collections.abc import Sequence

import numpy as np

from adamx.checkpoint.errors import CheckpointError

__all__ = ["check_losses", "find_losses"]


def find_losses(key: str, array: np.ndarray, dtype: np.typing.DTypeLike) -> list[str]:
    """What is lost when `array` becomes `dtype`: nothing, or one line."""
    narrow = np.dtype(dtype)
    if array.dtype == narrow or np.can_cast(array.dtype, narrow, "safe"):
        return []
    with np.errstate(all="ignore"):
        same = np.array_equal(array.astype(narrow).astype(array.dtype), array, equal_nan=True)
    if same:
        return []
    return [
        f"{key}: expected values that the target's {narrow} can hold, found {array.dtype}; use "
        f"{array.dtype} there, or round the checkpoint's arrays first (dataclasses.replace)"
    ]


def check_losses(losses: Sequence[str]) -> None:
    """Raise if there are any."""
    if losses:
        raise CheckpointError("\n  ".join(["values would lose precision:", *losses]))
