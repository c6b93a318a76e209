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
    """Raise the OSError for a path that cannot be a file: it is a folder, or its folder is missing.

    For a folder, nothing may exist at the path: a folder cannot be replaced atomically.
    """
    if is_folder and os.path.lexists(path):
        raise _name_target(errno.EEXIST, path)
    if path.is_dir():
        raise _name_target(errno.EISDIR, path)
    if not path.parent.is_dir():
        raise _name_target(errno.ENOTDIR if path.parent.exists() else errno.ENOENT, path)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces it if the block raises nothing.

    A crash at any moment leaves `path` either old or new. An OSError names `path`, since the caller
    does not know the temporary file.
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
    """A temporary folder beside `path`, which becomes `path` if the block raises nothing."""
    check_place(path, is_folder=True)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise _name_target(error.errno, path) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_read_umask())
        for file in (*temporary.rglob("*"), temporary):
            if file.is_file() or os.name == "posix":  # it can sync folders, too
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
