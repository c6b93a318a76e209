"""Folders of several files that are one checkpoint."""

import errno
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


def copy_folder(folder: Path, target: Path, leave_out: Collection[str] = ()) -> list[str]:
    """Copy a folder into another one, which may be within, and return the names of what was copied.

    Args:
      folder: with files, folders, and links, which are followed.
      target: where to; it is empty, and is not copied.
      leave_out: names in the folder that are not copied either.

    Raises:
      OSError: something in it cannot be copied; the error names it.
    """
    place, copied = target.resolve(), []

    def ignore(at: str, names: list[str]) -> set[str]:
        here = Path(at).resolve()
        back = {here, *here.parents, place}  # following links to these would never end
        paths = {name: Path(at) / name for name in names}
        ignored = {name for name, path in paths.items() if path.resolve() in back}
        ignored |= {name for name, path in paths.items() if not path.exists()}  # dangling links
        if here == folder.resolve():
            ignored |= {*leave_out}
            copied.extend(sorted({*names} - ignored))
        return ignored

    try:
        shutil.copytree(
            folder,
            target,
            ignore=ignore,
            copy_function=shutil.copyfile,
            dirs_exist_ok=True,
        )
    except shutil.Error as error:  # a list of all that failed
        source, _, reason = error.args[0][0]
        raise OSError(errno.EIO, f"could not be copied: {reason}", str(source)) from error
    return copied
