"""Folders of several files that are one checkpoint."""

from pathlib import Path

from adamx.base.trees import listed

__all__ = ["list_names", "measure"]


def measure(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def list_names(folder: Path) -> str:
    """What is in a folder, for errors."""
    return listed(sorted(path.name for path in folder.iterdir())) or "an empty folder"
