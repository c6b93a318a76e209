"""Adam's state, and its one check: structure, shapes, kinds of number and the step count."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import DictKey

from adamx.base.dtypes import dtype_of, number_kind, type_name
from adamx.base.eight_bit import is_eight_bit, wide_like
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.jax_seam import is_traced
from adamx.base.trees import describe_difference, flatten_with_path, path_name

__all__ = [
    "AdamState",
    "AmsgradState",
    "OpenState",
    "array_name",
    "as_adam",
    "check_count",
    "open_state",
]

AdamState = optax.ScaleByAdamState
AmsgradState = optax.ScaleByAmsgradState


_OF_AN_ENSEMBLE = (
    "If this is the state of an ensemble (jax.vmap) or of replicas (jax.pmap), call this under "
    "jax.vmap, or pass one member: jax.tree.map(lambda x: x[0], state)"
)


class OpenState(NamedTuple):
    """An Adam state as lists: the moments of each leaf of one tree."""

    treedef: Any
    paths: list[jax.tree_util.KeyPath]
    columns: dict[str, list[Any]]  # by field, mu, nu and with AMSGrad nu_max: its leaves


def array_name(field: str, path: jax.tree_util.KeyPath) -> str:
    """The name of an array of a state: `mu/dense/kernel`, or `mu` if the tree is one leaf."""
    return f"{field}/{path_name(path)}" if path else field


def as_adam(node: Any) -> AdamState | AmsgradState | None:
    """`node` as an Adam state, or None if it is not one.

    A mapping with the fields of an Adam state counts as one: `nnx.state` and checkpoints that are
    restored without a target turn named tuples into mappings.
    """
    if isinstance(node, AdamState | AmsgradState):
        return node
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    fields = {key[0].key: x for key, x in children if key and isinstance(key[0], DictKey)}
    for kind in (AdamState, AmsgradState):
        if len(children) == len(fields) and fields.keys() == set(kind._fields):
            counts = jax.tree.leaves(fields["count"])
            return kind(**fields) if len(counts) == 1 and _is_integer(counts[0]) else None
    return None


def open_state(
    adam: AdamState | AmsgradState,
    params: optax.Params | None = None,
    *,
    is_ensemble_allowed: bool = False,
) -> OpenState:
    """Check the moments of `adam`, and list them for each leaf of a tree.

    Args:
      adam: the state; its arrays may be traced.
      params: the tree of parameters that the state must fit. If None, the second moments must fit
        the first ones.
      is_ensemble_allowed: whether the count may be an array of counts, as `jax.vmap` makes it. The
        shape of every moment then begins with the shape of that array.

    Raises:
      InvalidValue: moments of another structure or shape; a negative count, where its value can be
        read without waiting for an accelerator.
      InvalidType: moments that are not floating-point numbers, or complex ones for something real;
        a count that is not an integer scalar.
    """
    members = _ensemble_shape(adam) if is_ensemble_allowed else ()
    check_count(adam.count, members)
    tree, owner = (adam.mu, "first moment") if params is None else (params, "parameter")
    keyed, treedef = flatten_with_path(tree, is_leaf=is_eight_bit)
    columns: dict[str, list[Any]] = {}
    for field in adam._fields[1:]:
        columns[field], structure = jax.tree.flatten(getattr(adam, field), is_leaf=is_eight_bit)
        if structure != treedef:
            difference = describe_difference(getattr(adam, field), tree)
            raise InvalidValue(
                where=f"state: {field}",
                problem=f"the structure differs from that of the {owner}s: {difference}",
            )
        for (path, like), moment in zip(keyed, columns[field], strict=True):
            _check_moment(field, path, moment, like, owner)
    return OpenState(treedef, [path for path, _ in keyed], columns)


def check_count(count: Any, shape: tuple[int, ...] = ()) -> None:
    """Raise unless `count` is an integer of at least 0, or an array of some; see `open_state`."""
    leaves = jax.tree.leaves(count)  # Flax keeps an array within a node
    value: Any = leaves[0] if len(leaves) == 1 else None
    if not _is_integer(value) or jnp.shape(value) != shape:
        raise InvalidType(
            where="state: count",
            expected="an integer scalar",
            found=_describe(value),
            remedy=_OF_AN_ENSEMBLE if _is_integer(value) else "",
        )
    if _is_at_hand(value) and np.any(np.asarray(value) < 0):
        found = np.asarray(value).min()
        raise InvalidValue(where="state: count", expected="a number of at least 0", found=found)


def _ensemble_shape(adam: AdamState | AmsgradState) -> tuple[int, ...]:
    """The shape of the count if the shape of every moment begins with it, or else ()."""
    leaves = jax.tree.leaves(adam.count)
    shape = jnp.shape(leaves[0]) if len(leaves) == 1 else ()
    moments = jax.tree.leaves(adam[1:])
    return shape if all(jnp.shape(x)[: len(shape)] == shape for x in moments) else ()


def _is_integer(x: Any) -> bool:
    if isinstance(x, int):
        return not isinstance(x, bool)
    dtype = dtype_of(x)
    return dtype is not None and jnp.issubdtype(dtype, jnp.integer)


def _describe(x: Any) -> str:
    dtype = dtype_of(x)
    return type_name(x) if dtype is None else f"{dtype} of shape {jnp.shape(x)}"


def _is_at_hand(x: Any) -> bool:
    """Whether the value is known, and in the memory of this host."""
    if not isinstance(x, jax.Array):
        return True
    if is_traced(x) or x.is_deleted() or not x.is_fully_addressable:
        return False
    return all(device.platform == "cpu" for device in x.devices())


def _check_moment(
    field: str, path: jax.tree_util.KeyPath, moment: Any, like: Any, owner: str
) -> None:
    moment, like = wide_like(moment), wide_like(like)
    kind = number_kind(moment)
    if kind != "real" and (kind != "complex" or number_kind(like) != "complex"):
        raise InvalidType(
            where=f"state: {array_name(field, path)}",
            expected=f"floating-point numbers, complex only for a complex {owner}",
            found=dtype_of(moment) or kind,
        )
    if jnp.shape(moment) != jnp.shape(like):
        raise InvalidValue(
            where=f"state: {array_name(field, path)}",
            expected=f"shape {jnp.shape(like)}, like the {owner}",
            found=jnp.shape(moment),
        )
