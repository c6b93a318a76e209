"""The moments in a state, separate or packed, as a whole step takes them and gives them back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from adamx.base.checks import leaf_name
from adamx.fused.packed import packed_spans

__all__ = ["Moments", "open_packed", "open_separate"]


class Moments(NamedTuple):
    """The moments of the leaves that are trained, as `whole_step` takes them."""

    buffers: list[list[chex.ArrayDevice]]  # of mu, of nu and, with AMSGrad, of nu_max
    places: list[tuple[int, int, int, int]]  # for each leaf; see `Place`
    close: Callable[[Sequence[list[chex.ArrayDevice]]], list[Any]]  # the fields of the next state


def open_separate(adam: Any, params: optax.Params, trained: Sequence[int]) -> Moments:
    """The moments in an `AdamState`: a buffer for each leaf; `trained` are those to be stepped."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(params)
    columns = []
    for field in adam._fields[1:]:
        try:
            column = treedef.flatten_up_to(getattr(adam, field))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"state.{field}: expected the structure of params, {treedef}; found "
                f"{jax.tree.structure(getattr(adam, field))}"
            ) from error
        for (path, p), moment in zip(keyed, column, strict=True):
            if jnp.shape(moment) != jnp.shape(p):
                raise ValueError(
                    f"state.{field}, {leaf_name(path)}: expected shape {jnp.shape(p)}, like the "
                    f"parameter; found {jnp.shape(moment)}"
                )
            kinds = (jnp.inexact,) if jnp.iscomplexobj(p) else (jnp.floating,)
            if not any(jnp.issubdtype(jnp.result_type(moment), kind) for kind in kinds):
                raise TypeError(
                    f"state.{field}, {leaf_name(path)}: expected floating-point numbers, complex "
                    f"only beside a complex parameter; found {jnp.result_type(moment)}"
                )
        columns.append(column)

    def close(new: Sequence[list[chex.ArrayDevice]]) -> list[Any]:
        for column, arrays in zip(columns, new, strict=True):
            for i, array in zip(trained, arrays, strict=True):
                column[i] = array
        return [treedef.unflatten(column) for column in columns]

    buffers = [[jnp.asarray(column[i]) for i in trained] for column in columns]
    return Moments(buffers, [(n, 0, n, 0) for n in range(len(trained))], close)


def open_packed(adam: Any, params: optax.Params, trained: Sequence[int]) -> Moments:
    """The moments in a `PackedAdamState`: a few buffers, with many leaves in each."""
    leaves = jax.tree.leaves(params)
    names = [sorted(buffers) for buffers in adam[1:]]
    mu, nu, *_ = packed_spans(adam, leaves)
    places = [
        (names[0].index(mu[i].dtype), mu[i].begin, names[1].index(nu[i].dtype), nu[i].begin)
        for i in trained
    ]

    def close(new: Sequence[list[chex.ArrayDevice]]) -> list[Any]:
        rows = zip(names, new, strict=True)
        return [dict(zip(row, arrays, strict=True)) for row, arrays in rows]

    rows = zip(names, adam[1:], strict=True)
    return Moments([[buffers[name] for name in row] for row, buffers in rows], places, close)
