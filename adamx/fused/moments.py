"""The moments in a state, separate or packed, as a whole step takes and returns them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from adamx.base.adam_state import AdamState, AmsgradState, check_count, open_state
from adamx.base.errors import InvalidType
from adamx.fused.layout import PackedAdamState, PackedAmsgradState, buffers_of, packed_spans

__all__ = ["Moments", "check_order", "open_packed", "open_separate"]

_ADAM_STATES = (AdamState, AmsgradState, PackedAdamState, PackedAmsgradState)


class Moments(NamedTuple):
    """The moments of the leaves that are trained, as `step_leaves` takes them."""

    buffers: list[list[chex.ArrayDevice]]  # of mu, of nu and, with AMSGrad, of nu_max
    spots: list[tuple[int, int, int, int]]  # where each leaf's begin; see `Row`
    close: Callable[[Sequence[list[chex.ArrayDevice]]], list[Any]]  # the fields of the next state


def open_separate(adam: Any, params: optax.Params, trained: Sequence[int]) -> Moments:
    """The moments in an `AdamState`, a buffer for each leaf; `trained` are the leaves to step."""
    opened = open_state(adam, params)
    columns = list(opened.columns.values())

    def close(new: Sequence[list[chex.ArrayDevice]]) -> list[Any]:
        for column, arrays in zip(columns, new, strict=True):
            for i, array in zip(trained, arrays, strict=True):
                column[i] = array
        return [opened.treedef.unflatten(column) for column in columns]

    buffers = [[jnp.asarray(column[i]) for i in trained] for column in columns]
    return Moments(buffers, [(n, 0, n, 0) for n in range(len(trained))], close)


def open_packed(adam: Any, params: optax.Params, trained: Sequence[int]) -> Moments:
    """The moments in a `PackedAdamState`: a few buffers, with many leaves in each."""
    check_count(adam.count)
    fields = list(buffers_of(adam).values())
    names = [sorted(buffers) for buffers in fields]
    mu, nu, *_ = packed_spans(adam, params)
    spots = [
        (names[0].index(mu[i].dtype), mu[i].begin, names[1].index(nu[i].dtype), nu[i].begin)
        for i in trained
    ]

    def close(new: Sequence[list[chex.ArrayDevice]]) -> list[Any]:
        rows = zip(names, new, strict=True)
        return [*(dict(zip(row, arrays, strict=True)) for row, arrays in rows), adam.layout]

    rows = zip(names, fields, strict=True)
    return Moments([[buffers[name] for name in row] for row, buffers in rows], spots, close)


def check_order(grads: object, params: object) -> None:
    """Raise if a state is given for the gradients or the parameters."""
    for name, given in (("grads", grads), ("params", params)):
        if isinstance(given, tuple) and any(isinstance(part, _ADAM_STATES) for part in given):
            raise InvalidType(
                where="step",
                expected="gradients, parameters and state, in this order",
                found=f"an optimizer's state as {name}",
                remedy=(
                    "The order changed in adamx 0.1.0, from step(grads, state, params). Write "
                    "params, state = optimizer.step(grads, params, state)"
                ),
            )
