"""What every format needs: its error, its optional package, a file that appears whole or not."""

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = [
    "Account",
    "CheckpointError",
    "Progress",
    "account_for_json",
    "naming_file",
    "parsed_json",
    "plain_text",
    "replacing",
    "require",
]

Progress = Callable[[int], None]
"""Called with the number of bytes just read or written."""


class CheckpointError(ValueError):
    """A file that cannot be read, or a state that a file or a tree cannot hold."""

    __module__ = "adamx.checkpoint"  # as users import it: what pickles and repr name


_EXTRAS = {
    "h5py": "checkpoint",
    "rich": "checkpoint",
    "safetensors": "checkpoint",
    "torch": "torch",
}


def require(module: str, purpose: str) -> ModuleType:
    """The optional package, or an ImportError that says what to install."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {package}: pip install 'adamx[{_EXTRAS[package]}]'"
        ) from error


@contextlib.contextmanager
def naming_file(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a reader raise into one CheckpointError that names it.

    Readers of other packages raise nearly anything on malformed bytes. Errors of the operating
    system (no such file, no permission) and a missing package stay what they are.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {_legible(str(error))}") from error.__cause__
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        told = _legible(" ".join(str(error).split())[:300]) or type(error).__name__
        raise CheckpointError(f"{path}: truncated or damaged {kind}: {told}") from error


_LONGEST = 1_500


def _legible(message: str) -> str:
    """A message that may quote a file, without control characters, and not without end."""
    shown = message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ..."
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown
    )


class Account:
    """The memory that reading a file may take: twice the file's size, and a little.

    Attributes:
      size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = 2 * size + _SLACK

    def spend(self, count: int) -> None:
        """Take so many bytes; raise if there are no more."""
        self._left -= count
        if self._left < 0:
            raise CheckpointError(
                f"what it describes takes more memory than twice its {self.size} bytes: its parts "
                "refer to each other, or it holds too much beside arrays"
            )

    def allow(self, count: int) -> None:
        """Grant more, for what takes more in memory than in the file, however honest that is."""
        self._left += count


# Bytes: what may be taken whatever the file's size; what a value of JSON takes, about.
_SLACK, _VALUE = 2 << 20, 80


def parsed_json(text: str | bytes, account: Account) -> Any:
    """What JSON says."""
    account_for_json(text, account)
    return json.loads(text if isinstance(text, str) else text.decode())


def account_for_json(text: str | bytes, account: Account) -> None:
    """Spend what a JSON text and its values take."""
    if isinstance(text, str):
        values = sum(map(text.count, ",:[{"))
    else:
        values = sum(map(text.count, (b",", b":", b"[", b"{")))
    account.spend(values * _VALUE + len(text) * (3 if text.isascii() else 9))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place when all went well.

    A crash, whenever it comes, leaves `path` as it was or as it is to be.
    """
    path = Path(path)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(fd)
    temporary = Path(name)
    try:
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        yield temporary
        temporary.chmod(mode & 0o7777)
        _synced(temporary, os.O_RDWR)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        _synced(path.parent, os.O_RDONLY)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _synced(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def plain_text(value: Any) -> str:
    """Text that a file holds as bytes or as text."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
