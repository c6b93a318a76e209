"""Changes of an optimizer: one at a time, and never by traced values."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax

from adamx.base.errors import InvalidValue
from adamx.base.jax_seam import is_traced

__all__ = ["Changes", "refuse_traced"]


class Changes:
    """Lets one thread at a time change an optimizer, from reading its state to storing the next.

    The other threads wait. Within a change the same thread cannot make another one, which would be
    lost: a loss that calls its own optimizer raises an error.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_changing = False

    @contextlib.contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """A context within which `caller` makes one change."""
        with self._lock:
            if self._is_changing:
                raise InvalidValue(
                    where=caller,
                    expected="a call outside of a step of the same optimizer",
                    found="a call from its loss or a constraint",
                    remedy="call it before or after the step, or use another optimizer",
                )
            self._is_changing = True
            try:
                yield
            finally:
                self._is_changing = False


def refuse_traced(caller: str, tree: Any) -> None:
    """Raise if an array in `tree` is traced: a state of such arrays ends with their trace."""
    if any(is_traced(x) for x in jax.tree.leaves(tree)):
        raise InvalidValue(
            where=caller,
            expected="a call outside of jit, grad, vmap and other transformations",
            found="a call with traced arrays",
            remedy="inside them use optimizer.transformation, and pass its state explicitly",
        )
