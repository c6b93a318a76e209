"""What transformations share that round parameters narrower than float32, at the end of a chain."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax

from adamx.base.checks import check_given, check_gradients
from adamx.base.dtypes import result_dtype
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.random_bits import leaf_keys
from adamx.base.rounded import mark_rounded
from adamx.base.trees import is_none, listed

__all__ = ["check_narrow", "check_update", "count_narrow", "is_narrow", "map_narrow"]


class _State(Protocol):
    @property
    def narrow(self) -> dict[str, tuple[()]] | None: ...


S = TypeVar("S", bound=_State)


def is_narrow(p: Any) -> bool:
    """Whether a leaf is a real array, or number, with less precision than float32."""
    dtype = result_dtype(p)
    return (
        dtype is not None
        and jnp.issubdtype(dtype, jnp.floating)
        and jnp.finfo(dtype).nmant < jnp.finfo(jnp.float32).nmant
    )


def count_narrow(params: optax.Params) -> Any:
    """The dtypes narrower than float32 among `params`, with the number of their leaves."""
    if type(params).__name__ == "_ParamsPlaceholder":  # of optax.tree_map_params
        return 0  # a leaf, in whose place the state may have any tree
    counts = Counter(jnp.result_type(p).name for p in jax.tree.leaves(params) if is_narrow(p))
    return {f"{count} of {name}": () for name, count in sorted(counts.items())}


def check_narrow(params: optax.Params, narrow: dict[str, tuple[()]] | None) -> None:
    """Raise unless the narrow dtypes of `params` are those that `init` counted, if it did."""
    found = count_narrow(params)
    if narrow is not None and found != narrow:
        raise InvalidValue(
            where="params",
            expected=f"the dtypes given to init, {listed(narrow) or 'no narrow ones'}",
            found=listed(found) or "none narrower than float32",
            remedy="optax.apply_updates keeps the parameters' dtypes, equinox.apply_updates does "
            "not",
        )


def check_update(
    updates: optax.Updates, state: optax.OptState, params: optax.Params | None, kind: type[S]
) -> tuple[S, optax.Params]:
    """State and parameters; raise unless they belong together, and to the updates.

    Args:
      updates, state, params: the arguments of `update`.
      kind: the class of the state.
    """
    params = check_given(params, "to round their next values")
    if not isinstance(state, kind):
        expected = f"{kind.__name__}, as init made it"
        raise InvalidType(where="state", expected=expected, found=type(state).__name__)
    check_gradients(updates, params, "the parameters")
    check_narrow(params, state.narrow)
    return state, params


def map_narrow(
    update_leaf: Callable[..., tuple[Any, ...]],
    key: chex.ArrayDevice,
    count: chex.ArrayDevice,
    updates: optax.Updates,
    params: optax.Params,
    *kept: Any,
) -> list[Any]:
    """Update each narrow parameter, with a key of its own.

    Args:
      update_leaf: called with the leaves of `updates`, `params` and `kept`, and the leaf's key;
        returns the update, to which nothing may be added, and the leaves to keep.
      key, count: those of the state.
      updates, params, kept: trees; `kept` has any subtree in the place of a leaf of `params`.

    Returns:
      The trees of updates, and of what is kept. All others than narrow leaves are those given.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=is_none)
    keys = leaf_keys(key, count, len(leaves))
    rows = []
    columns = (leaves, *map(treedef.flatten_up_to, (params, *kept)))
    for i, (u, p, *k) in enumerate(zip(*columns, strict=True)):
        if u is None or not is_narrow(p):
            rows.append((u, *k))
        else:
            rounded, *k = update_leaf(u, p, *k, keys[i])
            rows.append((mark_rounded(rounded), *k))
    empty = [()] * (1 + len(kept))
    return [treedef.unflatten(column) for column in (zip(*rows, strict=True) if rows else empty)]
