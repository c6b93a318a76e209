"""One module for each way in which a checkpoint lies on disk; importing this registers them all."""

from adamx.checkpoint.formats._discovery import MODULES

__all__ = ["MODULES"]
