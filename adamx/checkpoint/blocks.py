"""Iterate over large arrays in blocks."""

from collections.abc import Iterator

import numpy as np

__all__ = ["INTEGERS", "iterate_blocks"]

INTEGERS = "biu"  # kinds of dtypes
_BLOCK = 1 << 13  # entries


def iterate_blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Blocks of the same entries of arrays of one shape, so that copies stay small.

    Integers stay integers; other numbers become float64, a complex number two of them.
    """
    kinds = {array.dtype.kind for array in arrays}
    wide = np.dtype(np.complex128 if "c" in kinds else np.float64)
    if kinds <= set(INTEGERS):
        wide = np.result_type(*arrays)
    flags = ("external_loop", "buffered", "zerosize_ok")
    dtypes = [wide] * len(arrays)
    # Not "safe", since bfloat16 is none of NumPy's own.
    blocks = np.nditer(
        arrays, flags, op_dtypes=dtypes, order="C", casting="unsafe", buffersize=_BLOCK
    )
    for block in blocks:
        several = block if isinstance(block, tuple) else (block,)
        yield tuple(x.view(np.float64) if x.dtype.kind == "c" else x for x in several)
