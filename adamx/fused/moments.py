"""The moments in a state, separate or packed, as a whole step takes and returns them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from adamx.base.adam_state import AdamState, AmsgradState, check_count, open_state
from adamx.base.blockwise import EightBitMoment, group_size
from adamx.base.eight_bit import is_eight_bit
from adamx.base.errors import InvalidType
from adamx.fused.layout import PackedAdamState, PackedAmsgradState, buffers_of, packed_spans

__all__ = ["Moments", "check_order", "open_packed", "open_separate"]

_ADAM_STATES = (AdamState, AmsgradState, PackedAdamState, PackedAmsgradState)


class Moments(NamedTuple):
    """The moments of the leaves that are trained, as `step_leaves` takes them."""

    buffers: list[list[chex.ArrayDevice]]  # of mu, nu, with AMSGrad nu_max; scales of mu, of nu
    spots: list[tuple[int, int, int, int]]  # where each leaf's begin; see `Row`
    groups: list[int]  # how many elements share a scale, of moments in 8 bits; or 0
    close: Callable[[Sequence[list[chex.ArrayDevice]]], list[Any]]  # the fields of the next state


def open_separate(adam: Any, params: optax.Params, trained: Sequence[int]) -> Moments:
    """The moments in an `AdamState`, a buffer for each leaf; `trained` are the leaves to step."""
    opened = open_state(adam, params)
    columns = list(opened.columns.values())
    groups = [group_size(x) if is_eight_bit(x := columns[0][i]) else 0 for i in trained]

    def close(new: Sequence[list[chex.ArrayDevice]]) -> list[Any]:
        *arrays, mu_scales, nu_scales = new
        for column, found, scales in zip(columns, arrays, (mu_scales, nu_scales, []), strict=False):
            rest = iter(scales)
            for i, array, group in zip(trained, found, groups, strict=True):
                column[i] = EightBitMoment(array, next(rest)) if group else array
        return [opened.treedef.unflatten(column) for column in columns]

    buffers = [
        [
            column[i].codes if group else jnp.asarray(column[i])
            for i, group in zip(trained, groups, strict=True)
        ]
        for column in columns
    ]
    scales = [
        [column[i].scales for i, group in zip(trained, groups, strict=True) if group]
        for column in columns[:2]
    ]
    spots = [(n, 0, n, 0) for n in range(len(trained))]
    return Moments([*buffers, *scales], spots, groups, close)


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
        rows = zip(names, new[:-2], strict=True)
        return [*(dict(zip(row, arrays, strict=True)) for row, arrays in rows), adam.layout]

    rows = zip(names, fields, strict=True)
    buffers = [[buffers[name] for name in row] for row, buffers in rows]
    return Moments([*buffers, [], []], spots, [0] * len(trained), close)


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
