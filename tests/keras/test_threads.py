"""Threads that share an `adamx.keras.Adam`, and losses that call back."""

import copy
import pickle
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.keras import Adam

PARAMS = {"w": jnp.ones(2)}


def total(params):
    return jnp.sum(params["w"])


def step(optimizer):
    return optimizer.get_updates(PARAMS, None, total)


CHANGES = {
    "get_updates": (step, 2),
    "iterations": (lambda optimizer: setattr(optimizer, "iterations", 7), 7),
    "set_weights": (lambda optimizer: optimizer.set_weights([7, np.ones(2), np.ones(2)]), 7),
    "build": (lambda optimizer: optimizer.build(PARAMS), 0),
}


@pytest.mark.parametrize(("change", "steps"), CHANGES.values(), ids=CHANGES)
def test_a_change_during_a_step_comes_after_it(change, steps):
    optimizer = Adam()
    optimizer.build(PARAMS)
    other = threading.Thread(target=change, args=(optimizer,))

    def loss(params):
        if not other.ident:  # in the midst of a step
            other.start()
            other.join(timeout=0.5)
        return total(params)

    optimizer.get_updates(PARAMS, None, loss)
    other.join()
    assert optimizer.iterations == steps


@pytest.fixture
def _switching():
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switching")
def test_threads_lose_nothing():
    optimizer, steps, lost = Adam(), 30, []
    step(optimizer)  # compiles

    def train():
        for _ in range(steps):
            step(optimizer)

    def configure(name):
        for value in np.linspace(0.1, 0.9, 5000).tolist():
            setattr(optimizer, name, value)
            if getattr(optimizer, name) != value:
                lost.append(name)

    threads = [threading.Thread(target=train) for _ in range(3)]
    threads += [threading.Thread(target=configure, args=(x,)) for x in ("lr", "decay", "beta_1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.iterations == 1 + 3 * steps
    assert lost == []


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("part", ["loss", "constraint", "callback"])
def test_a_step_does_not_change_its_own_optimizer(name, part):
    optimizer = Adam()
    optimizer.build(PARAMS)

    def change():
        with pytest.raises(ValueError, match=f"^{name}: expected a call outside of a step"):
            CHANGES[name][0](optimizer)
        called.append(None)

    def loss(params):
        if part == "loss":
            change()
        elif part == "callback":
            jax.debug.callback(change)
        return total(params)

    def constraint(w):
        if part == "constraint":
            change()
        return w

    called = []
    with jax.disable_jit(part == "callback"):  # else it may come after the step
        optimizer.get_updates(PARAMS, {"w": constraint}, loss)
    assert called
    assert optimizer.iterations == 1


def test_a_loss_may_look_at_its_optimizer():
    optimizer, seen = Adam(lr=0.5), []

    def look():
        optimizer.lr /= 2
        seen.append((optimizer.lr, optimizer.iterations, len(optimizer.get_weights())))

    def loss(params):
        look()
        jax.debug.callback(look)
        return total(params)

    optimizer.get_updates(PARAMS, None, loss)
    jax.effects_barrier()
    assert len(seen) == 2
    assert optimizer.lr == 0.125


class Named(Adam):
    """A class with attributes of its own."""


@pytest.mark.parametrize("cls", [Adam, Named])
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_waits_for_nobody(cls, duplicate):
    """It has a lock of its own, so that even a step of the original may use it."""
    optimizer = cls(lr=0.5)
    step(optimizer)
    if cls is Named:
        optimizer.name = "first"
    copies = []

    def loss(params):
        copies.append(duplicate(optimizer))
        copies[0].build(PARAMS)
        return total(params)

    with jax.disable_jit():  # within it nothing can be built
        optimizer.get_updates(PARAMS, None, loss)
    assert type(copies[0]) is cls
    assert (copies[0].iterations, optimizer.iterations) == (0, 2)
    assert getattr(copies[0], "name", "first") == "first"
    copies[0].lr = 0.25
    assert optimizer.lr == 0.5


def test_pickles_of_before_are_read():
    """They have the slots without a lock."""
    optimizer = Adam(lr=0.5)
    step(optimizer)
    slots = {name: getattr(optimizer, name) for name in ("_config", "_fixed", "_state")}
    again = Adam.__new__(Adam)
    again.__setstate__((None, slots))
    step(again)
    assert (again.iterations, optimizer.iterations) == (2, 1)
