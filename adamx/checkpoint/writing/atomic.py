"""Atomic replacement of files."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["check_place", "make_folder", "replace_file"]


def check_place(path: Path, *, is_folder: bool = False) -> None:
    """Raise the OSError for a path where no file can be: its folder is missing, or it is one.

    Where a folder is to be, nothing may be: a folder cannot be replaced at once.
    """
    if is_folder and os.path.lexists(path):
        raise _name_target(errno.EEXIST, path)
    if path.is_dir():
        raise _name_target(errno.EISDIR, path)
    if not path.parent.is_dir():
        raise _name_target(errno.ENOTDIR if path.parent.exists() else errno.ENOENT, path)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces it when all went well.

    A crash, whenever it comes, leaves `path` as it was or as it is to be. An OSError names `path`,
    since nobody else knows the temporary file.
    """
    check_place(path)
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _name_target(error.errno, path) from error
    os.close(fd)
    temporary = Path(name)
    try:
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_read_umask()
        yield temporary
        temporary.chmod(mode & 0o7777)
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (name, temporary):
            raise
        raise _name_target(error.errno, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        _sync(path.parent, os.O_RDONLY)


@contextlib.contextmanager
def make_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which becomes `path` when all went well."""
    check_place(path, is_folder=True)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise _name_target(error.errno, path) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_read_umask())
        for file in (*temporary.rglob("*"), temporary):
            if file.is_file() or os.name == "posix":  # where folders can be, too
                _sync(file, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if os.name == "posix":
        _sync(path.parent, os.O_RDONLY)


def _name_target(number: int | None, path: Path) -> OSError:
    """The error of the operating system with this number, about `path`."""
    number = number or errno.EIO
    return OSError(number, os.strerror(number), str(path))


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
