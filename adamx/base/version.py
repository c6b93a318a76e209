"""The version of adamx."""

from importlib import metadata

__all__ = ["__version__"]

try:
    __version__ = metadata.version("adamx")
except metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "unknown"
