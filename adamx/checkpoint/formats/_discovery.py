"""Finds and imports the modules of this folder that are formats: names without an underscore."""

import importlib
import pkgutil
from pathlib import Path

__all__ = ["MODULES"]

MODULES = tuple(
    importlib.import_module(f"{__package__}.{module.name}")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if not module.name.startswith("_")
)
