"""The optimizer state of other frameworks: read, continued in JAX, and written back."""

from adamx.checkpoint import formats as _formats  # noqa: F401 - registers them
from adamx.checkpoint.api import Format, load, save
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FORMATS
from adamx.checkpoint.layouts import torch_linear
from adamx.checkpoint.torch_names import torch_names
from adamx.config.groups import ParameterGroup

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointError",
    "Format",
    "ParameterGroup",
    "load",
    "save",
    "torch_linear",
    "torch_names",
]


def __dir__() -> list[str]:
    return __all__
