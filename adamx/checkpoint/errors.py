"""`CheckpointError`, and what converts other errors to it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adamx.base.errors import AdamxError, InvalidValue

__all__ = ["CheckpointError", "convert_error", "name_file"]

_FIELDS = ("where", "remedy", "expected", "found", "problem")  # what is cut last comes first
_LONGEST = 1_500  # characters, so that a file cannot fill the terminal


class CheckpointError(InvalidValue):
    """A file that cannot be read, or a state that a file or a tree cannot hold.

    Its fields (`where`, `expected`, `found`, `remedy`, `problem`) make up the message. `argument`
    names the argument of `load`, `save` or `Checkpoint` that resolves it: "config", "template",
    "order", "names", "format", "optimizer", "weights", "strict", "layout", "generation",
    "transformation", "moments", "checkpoint" (other settings); or it is None.
    """

    __module__ = "adamx.checkpoint"  # as users import it: what pickles and repr name


def convert_error(error: Exception, **fields: Any) -> CheckpointError:
    """An error of another part of adamx as a CheckpointError, with some fields replaced."""
    if not isinstance(error, AdamxError):
        return CheckpointError(**({"problem": str(error)} | fields))
    own = {name: getattr(error, name) for name in (*_FIELDS, "argument", "choices")}
    return CheckpointError(**(own | fields))


@contextlib.contextmanager
def name_file(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a reader raise into one CheckpointError that names it.

    Readers of other packages raise nearly anything on malformed bytes. Errors of the operating
    system (no such file, no permission) and of a missing package are not converted.

    Args:
      path: the file.
      kind: what it is called if it turns out to be damaged, such as "keras file".
    """
    try:
        yield
    except CheckpointError as error:
        raise _make_legible(error).within(str(path)) from error.__cause__
    except (ImportError, UserWarning):  # a warning that the user has made an error
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        damaged = CheckpointError(
            f"truncated or damaged {kind}: {cause}", remedy="copy it again from where it was saved"
        )
        raise _make_legible(damaged).within(str(path)) from error


def _make_legible(error: CheckpointError) -> CheckpointError:
    """The same error, shortened and without control characters, since it may quote the file."""
    left, fields = _LONGEST, {}
    for name in _FIELDS:
        text = getattr(error, name)
        text = text if len(text) <= left else f"{text[:left]} ..."
        left = max(0, left - len(text))
        fields[name] = "".join(
            c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
        )
    return error.replace(**fields)
