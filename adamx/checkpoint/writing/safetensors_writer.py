"""Safetensors files, written without their package, which takes no bfloat16 of NumPy."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adamx.checkpoint.untrusted.account import Progress
from adamx.checkpoint.untrusted.safetensors_file import DTYPES

__all__ = ["write_safetensors"]

_ALIGNMENT = 8  # bytes: where values begin
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Write arrays one after another, in their order.

    Args:
      path: the file.
      arrays: by name, of dtypes that safetensors have.
      metadata: texts by name; left out if there are none.
      progress: called with the number of bytes just written.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        place = [end, end + array.nbytes]
        code = _CODES[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": place}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            if progress:
                progress(array.nbytes)
