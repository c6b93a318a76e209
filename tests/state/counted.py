"""States with counters of several kinds."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

import adamx
from adamx.state.counters import find_counters

STEPS = 5
PARAMS = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
SCHEDULE = optax.linear_schedule(1e-2, 0.0, 100)


def multi_steps(adam, **kwargs):
    return optax.MultiSteps(adam, 2, **kwargs).gradient_transformation()


def is_odd(step):
    return step % 2 == 1


@chex.dataclass
class Noted:
    """What someone's own transformation keeps, in a dataclass."""

    count: Any


class Wrapped(NamedTuple):
    count: Any
    inner: Any


class Named(NamedTuple):
    steps: Any


def counting(make):
    """A transformation that keeps `make(count)` and does nothing."""

    def update(updates, state, params=None):
        del params
        return updates, make(jax.tree.leaves(state)[0] + 1)

    return optax.GradientTransformation(lambda _: make(jnp.zeros([], jnp.int32)), update)


def adam(learning_rate=SCHEDULE):
    return adamx.adam(learning_rate)


def trained(tx, steps):
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for t in range(steps):
        _, state = update(jax.tree.map(lambda p, t=t: p + 0.5 + t, PARAMS), state, PARAMS)
    return state


def names(state, kind):
    return sorted(counter.name for counter in find_counters(state) if counter.kind == kind)


UNKNOWN = {
    "named_otherwise": (
        optax.chain(counting(lambda count: Named(steps=count)), adam()),
        r"state\[0\].steps: Named.steps: expected integers of which adamx knows whether",
    ),
    "bare": (
        optax.chain(adam(), counting(lambda count: count)),
        r"state\[1\]: tuple\[1\]: expected",
    ),
    "wrapper": (
        optax.GradientTransformation(lambda p: Wrapped(0, adam().init(p)), optax.identity().update),
        r"state.count: Wrapped.count: expected",
    ),
    "two": (
        optax.chain(*[counting(lambda count: Named(steps=count))] * 2, adam()),
        r"state\[0\].steps: Named.steps, state\[1\].steps: Named.steps: expected",
    ),
}
