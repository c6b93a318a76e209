"""What torch and adamx keep in different ways."""

import numpy as np

from adamx.checkpoint.errors import CheckpointError

__all__ = ["check_real"]


def check_real(where: str, array: np.ndarray) -> None:
    """Refuse complex moments, which torch and adamx keep in different ways."""
    if np.iscomplexobj(array):
        raise CheckpointError(
            where=where,
            expected="real numbers",
            found=f"{array.dtype}: torch has a second moment for the real and the imaginary part "
            "of each, adamx one for both",
        )
