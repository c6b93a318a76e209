"""The memory that reading a file may take, and what reading reports."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from adamx.checkpoint.errors import CheckpointError

__all__ = ["Account", "Progress", "charge_json", "parse_json"]

Progress = Callable[[int], None]
"""Called with the number of bytes just read or written."""

# Bytes: what may be taken whatever the file's size; what a value of JSON takes, about.
_SLACK, _VALUE = 2 << 20, 80


class Account:
    """The memory that reading a file may take: twice the file's size, and a little.

    Attributes:
      size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = 2 * size + _SLACK

    def spend(self, count: int) -> None:
        """Charge `count` bytes; raise when the budget is spent."""
        self._left -= count
        if self._left < 0:
            raise CheckpointError(
                f"what it describes takes more memory than twice its {self.size} bytes: its parts "
                "refer to each other, or it holds too much data other than arrays"
            )

    def allow(self, count: int) -> None:
        """Grant more, for what takes more in memory than in the file without being malicious."""
        self._left += count

    @contextlib.contextmanager
    def lend(self) -> Iterator[None]:
        """Refund at the end what is charged within; its memory has to be freed by then."""
        left = self._left
        yield
        self._left = left


def parse_json(text: str | bytes, account: Account) -> Any:
    """The value of a JSON text, charged to the account."""
    charge_json(text, account)
    return json.loads(text if isinstance(text, str) else text.decode())


def charge_json(text: str | bytes, account: Account) -> None:
    """Charge what a JSON text and its values take."""
    if isinstance(text, str):
        values = sum(map(text.count, ",:[{"))
    else:
        values = sum(map(text.count, (b",", b":", b"[", b"{")))
    account.spend(values * _VALUE + len(text) * (3 if text.isascii() else 9))
