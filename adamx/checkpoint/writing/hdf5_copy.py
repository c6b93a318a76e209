"""Copy HDF5 files with some arrays replaced."""

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.precision import find_losses
from adamx.checkpoint.untrusted.account import Progress
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.untrusted.hdf5_messages import BFLOAT16

__all__ = ["copy_hdf5"]

_Arrays = Mapping[str, np.ndarray]


def copy_hdf5(
    source: Reader,
    target: Path | io.RawIOBase,
    arrays: _Arrays,
    *,
    texts: Mapping[str, str],
    whole: Collection[str],
) -> None:
    """Write a copy of a file with some arrays replaced.

    Args:
      source: the open file.
      target: the new file, or a stream that can be read, written and seek.
      arrays: by path.
      texts: attributes of the root to replace.
      whole: groups that get only the arrays in `arrays`.
    """
    import h5py

    source.datasets(source.root)  # raises if links lead out of the file or form a cycle
    with h5py.File(source.stream, "r") as old, h5py.File(target, "w") as new:
        _copy_group(old, new, "", arrays, whole, source.progress)
        for path in arrays:
            if path not in new:
                new[path] = arrays[path]
                if arrays[path].dtype == BFLOAT16:
                    new[path].attrs["dtype"] = "bfloat16"
        for name, text in texts.items():
            new.attrs[name] = np.bytes_(text.encode("utf-8"))


def _copy_group(
    old: Any,
    new: Any,
    prefix: str,
    arrays: _Arrays,
    whole: Collection[str],
    progress: Progress | None,
) -> None:
    _copy_attributes(old, new)
    for name, node in old.items():
        path = f"{prefix}{name}"
        if not hasattr(node, "shape"):
            _copy_group(node, new.create_group(name), f"{path}/", arrays, whole, progress)
        elif path in arrays and node.shape == arrays[path].shape:
            data = _convert(path, arrays[path], node.dtype)
            _copy_attributes(node, new.create_dataset(name, data=data))
            if progress:
                progress(arrays[path].nbytes)
        elif path not in arrays and prefix.removesuffix("/") not in whole:
            old.copy(name, new)


def _copy_attributes(old: Any, new: Any) -> None:
    """With their own types: TensorFlow 1.1 needs its texts as bytes."""
    for name in old.attrs:
        new.attrs.create(name, old.attrs[name], dtype=old.attrs.get_id(name).dtype)


def _convert(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` in the dtype of the dataset that it replaces."""
    if array.dtype == BFLOAT16 and dtype.kind == "V":
        return np.ascontiguousarray(array).view(dtype)
    if problems := find_losses(name, array, dtype):
        raise CheckpointError(problems[0])
    return array.astype(dtype, copy=False)
