"""Which updates lead to a rounded parameter: any later change would round it again.

In `optax.chain` a transformation knows nothing about its neighbours. But the object that one
returns is the object that the next one receives, in a traced function as well.
"""

import weakref
from typing import Any

from adamx.base.errors import InvalidValue
from adamx.base.trees import flatten_with_path, leaf_name

__all__ = ["check_not_rounded", "mark_rounded"]

_rounded: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def mark_rounded(x: Any) -> Any:
    """Mark the array `x` for as long as it exists, and return it."""
    _rounded[id(x)] = x
    return x


def check_not_rounded(updates: Any) -> None:
    """Raise if an array among `updates` is marked."""
    for path, x in flatten_with_path(updates)[0]:
        if _rounded.get(id(x)) is x:
            raise InvalidValue(
                where=leaf_name(path),
                expected="an update that is not yet rounded",
                found="one that stochastic_round or residual_params returned",
                remedy="make this the last transformation of the chain",
            )
