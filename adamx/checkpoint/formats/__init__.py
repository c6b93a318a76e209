"""One module for each file format; importing this package registers them all."""

from adamx.checkpoint.formats._discovery import MODULES

__all__ = ["MODULES"]
