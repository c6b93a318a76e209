"""Packed states: which arrays they hold, and where in these the part of each leaf begins."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.dtypes import compute_dtype
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.trees import flatten_with_path, path_name

__all__ = [
    "Buffers",
    "PackedAdamState",
    "PackedAmsgradState",
    "PackedState",
    "Span",
    "buffers_of",
    "leaf_dtype",
    "locate",
    "packed_spans",
    "with_layout",
]

_ALIGNMENT = 64  # bytes: a line of the cache, and the widest vector register

Buffers = dict[str, chex.ArrayDevice]
# A key of a dictionary, since keys are part of a tree's structure: it follows the arrays through
# `jax.jit` and into every file, and adds no array itself.
Layout = dict[str, tuple[()]]


class PackedAdamState(NamedTuple):
    """An `AdamState` whose moments are stored contiguously.

    Attributes:
      count: the number of steps done, an int32 scalar.
      mu, nu: flat arrays by the name of their dtype, `{"float32": ...}`: one, or one for each dtype
        if they differ. A leaf's part begins at a multiple of 64 bytes; zeros fill the gaps.
      layout: `{digest: ()}` with a digest of the names and shapes of the parameters and of where
        their moments are, by which `step` and `unpack` detect a state of other parameters. None
        disables this check, as in a state that is made by hand.
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    # The field's name in Optax's states; tuples have a method of that name.
    count: chex.ArrayDevice  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Buffers
    nu: Buffers
    layout: Layout | None = None


class PackedAmsgradState(NamedTuple):
    """An `AmsgradState` whose moments are stored contiguously; see `PackedAdamState`."""

    __module__ = "adamx"  # as users import it: what pickles and repr name

    count: chex.ArrayDevice  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Buffers
    nu: Buffers
    nu_max: Buffers
    layout: Layout | None = None


PackedState = PackedAdamState | PackedAmsgradState


def buffers_of(adam: PackedState) -> dict[str, Buffers]:
    """The buffers by field: mu, nu and, with AMSGrad, nu_max."""
    return {name: getattr(adam, name) for name in adam._fields if name not in ("count", "layout")}


class Span(NamedTuple):
    """Where a leaf's part begins: the dtype of its buffer, and its first element."""

    dtype: str
    begin: int


def locate(sizes: Sequence[int], dtypes: Sequence[np.dtype]) -> tuple[list[Span], dict[str, int]]:
    """Where the parts of leaves of these sizes and dtypes begin, and the sizes of the buffers."""
    ends: dict[str, int] = {}
    found = []
    for size, dtype in zip(sizes, dtypes, strict=True):
        begin = ends.get(dtype.name, 0)
        step = max(1, _ALIGNMENT // dtype.itemsize)
        found.append(Span(dtype.name, begin))
        ends[dtype.name] = begin + math.ceil(size / step) * step
    return found, ends


def leaf_dtype(field: str, param: Any, names: set[str]) -> np.dtype:
    """The dtype of a parameter's moment `field` ("mu", "nu", "nu_max"), given the buffers' names.

    With one buffer, that of the buffer; with several, the one that `scale_by_adam` has by default.
    """
    if len(names) == 1:
        return jnp.dtype(next(iter(names)))
    dtype = jnp.result_type(param)
    return dtype if field == "mu" else compute_dtype(dtype)


def _leaf_spans(field: str, buffers: Buffers, params: Sequence[Any]) -> list[Span]:
    """Where in `buffers` the parts of `params` begin; raise a ValueError if they do not fit."""
    dtypes = [leaf_dtype(field, p, set(buffers)) for p in params]
    found, ends = locate([int(np.prod(jnp.shape(p))) for p in params], dtypes)
    sizes = {name: jnp.size(buffer) for name, buffer in buffers.items()}
    if ends != sizes:
        raise InvalidValue(
            where=f"state: {field}",
            expected=f"buffers of {ends or 'no'} elements for these parameters",
            found=sizes,
            remedy="the state was packed for other parameters",
        )
    for name, buffer in buffers.items():
        if (jnp.result_type(buffer).name, jnp.ndim(buffer)) != (name, 1):
            raise InvalidType(
                where=f"state: {field}",
                expected=f"a one-dimensional array of {name}, as the buffer is named",
                found=f"{jnp.result_type(buffer)} of shape {jnp.shape(buffer)}",
            )
    return found


def packed_spans(adam: PackedState, params: optax.Params) -> list[list[Span]]:
    """For each field, where in its buffers the parts of the leaves of `params` begin.

    Raise a ValueError for a state of other parameters, or if nu_max is not laid out like nu.
    """
    found = _field_spans(adam, params)
    if adam.layout is not None and adam.layout != _layout(params, found):
        raise InvalidValue(
            where="state",
            expected="one that was packed for these parameters",
            found="one that was packed for parameters of other names, shapes or dtypes",
            remedy=(
                "Unpack it with those parameters. If the tree has changed since, unpack with the "
                "old one, move the moments into the new one, and call adamx.pack for it"
            ),
        )
    return found


def _field_spans(adam: PackedState, params: optax.Params) -> list[list[Span]]:
    leaves = jax.tree.leaves(params)
    found = [_leaf_spans(field, x, leaves) for field, x in buffers_of(adam).items()]
    if isinstance(adam, PackedAmsgradState) and found[1] != found[2]:
        raise InvalidValue(
            where="state: nu_max",
            expected=f"the dtypes of nu ({', '.join(adam.nu)}), as a packed state needs",
            found=", ".join(adam.nu_max),
            remedy="Convert one of them first",
        )
    return found


def with_layout(adam: PackedState, params: optax.Params) -> Any:
    """`adam` with its field `layout` set for these parameters."""
    return adam._replace(layout=_layout(params, _field_spans(adam, params)))


def _layout(params: optax.Params, spans: Sequence[Sequence[Span]]) -> Layout:
    """A digest of each leaf's name and shape, and of where its moments are."""
    named = flatten_with_path(params)[0]
    leaves = [[path_name(path), *jnp.shape(leaf)] for path, leaf in named]
    digest = hashlib.sha256(json.dumps([leaves, spans]).encode())
    return {digest.hexdigest()[:16]: ()}
