"""The optimizer state of other frameworks: read, continued in JAX, and written back."""

from adamx.checkpoint.files import CheckpointError
from adamx.checkpoint.formats import FORMATS, Format, load, save
from adamx.checkpoint.record import Checkpoint
from adamx.checkpoint.trees import torch_linear

__all__ = ["FORMATS", "Checkpoint", "CheckpointError", "Format", "load", "save", "torch_linear"]
