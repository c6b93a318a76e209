"""How HDF5 files of Keras begin, and which of the two kinds they are."""

from pathlib import Path

from adamx.checkpoint.format import Head
from adamx.checkpoint.untrusted.hdf5 import SIGNATURE, Reader

__all__ = ["MODEL", "OPTIMIZER", "holds_whole_model", "starts_hdf5"]

MODEL, OPTIMIZER = "model_weights", "optimizer_weights"

_USER_BLOCK = 512  # bytes, with which a file may begin


def starts_hdf5(head: Head) -> bool:
    """Whether the signature of HDF5 is at one of the two positions where Keras may have it."""
    return head.start.startswith(SIGNATURE) or head.start[_USER_BLOCK:].startswith(SIGNATURE)


def holds_whole_model(path: Path) -> bool:
    """Whether an HDF5 file has a group of a whole model's file."""
    with Reader.open(path) as reader:
        return reader.group(MODEL) is not None or reader.group(OPTIMIZER) is not None
