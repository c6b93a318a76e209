"""Which updates were rounded at random already: whatever is done to them rounds them anew.

`optax.chain` tells a transformation nothing of its neighbours. But what one returns is the very
object that the next one gets, in a traced function as well.
"""

import weakref
from typing import Any

from adamx.base.errors import InvalidValue
from adamx.base.trees import flatten_with_path, leaf_name

__all__ = ["check_not_rounded", "mark_rounded"]

_rounded: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def mark_rounded(x: Any) -> Any:
    """`x`, an array; remembered as long as there is one."""
    _rounded[id(x)] = x
    return x


def check_not_rounded(updates: Any) -> None:
    """Raise if an array among `updates` is marked."""
    for path, x in flatten_with_path(updates)[0]:
        if _rounded.get(id(x)) is x:
            raise InvalidValue(
                where=leaf_name(path),
                expected="an update that is still to be rounded",
                found="one that stochastic_round returned",
                remedy="make stochastic_round the last part of the chain",
            )
