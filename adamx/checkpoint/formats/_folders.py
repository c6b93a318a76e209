"""Folders of several files that are one checkpoint."""

import shutil
from collections.abc import Collection
from pathlib import Path

from adamx.base.trees import listed

__all__ = ["copy_folder", "list_names", "measure"]


def measure(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def list_names(folder: Path) -> str:
    """What is in a folder, for errors."""
    return listed(sorted(path.name for path in folder.iterdir())) or "an empty folder"


def copy_folder(folder: Path, target: Path, leave_out: Collection[str] = ()) -> None:
    """Copy all in a folder but what is called so into another one, which may be within."""
    without = {*leave_out, target.name}
    shutil.copytree(
        folder,
        target,
        ignore=lambda at, names: without & {*names} if Path(at) == folder else (),
        copy_function=shutil.copyfile,
        ignore_dangling_symlinks=True,
        dirs_exist_ok=True,
    )
