"""What a step of `adamx.keras.Adam` sees of its functions: their data of now, or an error."""

import copy
import dataclasses
import enum
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from adamx.keras import Adam, program

PARAMS = {"w": jnp.ones(2)}


def scaled(scale, params):
    return jnp.sum(params["w"] * scale)


def scaled_within(frozen, params):
    return scaled(frozen.scale.scale, params)


def scaled_in_tree(tree, params):
    return scaled(tree[0]["a"], params)


def scaled_by_keyword(params, *, scale):
    return scaled(scale, params)


def gradient(loss, *args):
    return np.asarray(Adam().get_gradients(loss, PARAMS, *args)["w"])


class Scale:
    """It can change, and is compared by its identity."""

    def __init__(self, scale: Any = 2.0) -> None:
        self.scale = scale

    def loss(self, params, *_):
        """A loss and a constraint."""
        return scaled(self.scale, params)

    __call__ = loss


class Slotted:
    __slots__ = ("scale",)
    loss = __call__ = Scale.loss

    def __init__(self, scale):
        self.scale = scale


@dataclasses.dataclass
class Record:
    """Compared by its value, but not hashable."""

    scale: Any
    loss = __call__ = Scale.loss


CHANGEABLE = {
    "method": lambda x: x.loss,
    "callable": lambda x: x,
    "partial_of_method": lambda x: partial(x.loss),
    "partial_of_object": lambda x: partial(lambda x, *params: x(*params), x),
    "tree_partial": lambda x: Partial(x.loss),
    "jit": lambda x: jax.jit(x.loss),
    "checkpoint": lambda x: jax.checkpoint(x.loss),
    "frozen": lambda x: Frozen(x).loss,
}


@pytest.mark.parametrize("make", CHANGEABLE.values(), ids=CHANGEABLE)
@pytest.mark.parametrize("cls", [Scale, Slotted, Record])
def test_what_can_change_is_refused(cls, make):
    optimizer, x = Adam(), cls(2.0)
    optimizer.build(PARAMS)
    message = rf".*expected a function, or .* found an? {cls.__name__}, .* arguments after the loss"
    for where, call in [
        ("loss", lambda: optimizer.get_updates(PARAMS, None, make(x))),
        ("loss", lambda: optimizer.get_gradients(make(x), PARAMS)),
        (
            "constraints: w",
            lambda: optimizer.get_updates(PARAMS, {"w": make(x)}, partial(scaled, 1)),
        ),
        ("args: 1", lambda: optimizer.get_updates(PARAMS, None, lambda *_: 0.0, 1, make(x))),
        ("params: f", lambda: optimizer.build(PARAMS | {"f": make(x)})),
    ]:
        if where == "params: f" and make is CHANGEABLE["tree_partial"]:
            continue  # of a tree of parameters: JAX compares its function
        with pytest.raises(TypeError, match=f"^{where}{message}"):
            call()
    assert optimizer.iterations == 0


@pytest.mark.parametrize("x", [np.random.default_rng(0), np.random.RandomState(0), {1, 2}])
def test_arguments_that_are_used_up(x):
    with pytest.raises(TypeError, match=r"^args: 0: .* later changes"):
        gradient(lambda *_: 0.0, x)


@dataclasses.dataclass(frozen=True)
class Frozen:
    scale: Any
    loss = __call__ = Scale.loss

    def __post_init__(self):
        object.__setattr__(self, "derived", self.scale)


class Module(eqx.Module):
    scale: Any
    loss = __call__ = Scale.loss


class Linen(nn.Module):
    scale: Any
    loss = Scale.loss


class Nnx(nnx.Module):
    loss = Scale.loss

    def __init__(self, scale):
        self.scale = scale


class Number(enum.Enum):
    TWO = 2.0
    THREE = 3.0

    def loss(self, params):
        """A loss."""
        return scaled(self.value, params)


class Stateless:
    def loss(self, params):
        """A loss."""
        return scaled(2.0, params)


VALUES = {
    "frozen": lambda scale: Frozen(scale).loss,
    "frozen_callable": Frozen,
    "frozen_within": lambda scale: partial(scaled_within, Frozen(Frozen(scale))),
    "partial": lambda scale: partial(scaled, scale),
    "partial_of_tree": lambda scale: partial(scaled_in_tree, [{"a": scale}]),
    "keyword": lambda scale: partial(scaled_by_keyword, scale=scale),
    "equinox": lambda scale: Module(scale).loss,
    "equinox_callable": Module,
    "linen": lambda scale: Linen(scale).loss,
    "nnx": lambda scale: Nnx(scale).loss,
    "tree_partial": lambda scale: Partial(scaled, scale),
    "enum": lambda scale: Number(scale).loss,
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_the_value_of_now_is_seen(make):
    """Compiled once for each number, and found again by its value."""
    compiled = program.clipped_gradients._cache_size()
    for scale in (2.0, 3.0, 2.0):
        np.testing.assert_array_equal(gradient(make(scale)), np.full(2, scale, np.float32))
    assert program.clipped_gradients._cache_size() - compiled == 2
    after = Adam(lr=1.0).get_updates(PARAMS, {"w": bound(make)}, partial(scaled, 1.0))
    np.testing.assert_allclose(after["w"], [0.0, 0.0], atol=1e-6)


def bound(make):
    """A constraint that multiplies by what the gradient of a loss is, less one."""
    loss = make(2.0)
    return partial(lambda loss, w: (jax.grad(loss)({"w": w})["w"] - 1.0) * w, loss)


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("array", [jnp.asarray, np.array])
def test_arrays_are_traced(make, array):
    if make in (VALUES["linen"], VALUES["enum"]):
        return  # such values they cannot have, or not compare
    compiled = program.clipped_gradients._cache_size()
    for scale in ([2.0, 3.0], [4.0, 5.0]):
        np.testing.assert_array_equal(gradient(make(array(scale, np.float32))), np.float32(scale))
    assert program.clipped_gradients._cache_size() - compiled == 1


def test_changes_in_place_are_seen():
    array, number, settings = np.ones(2, np.float32), Nnx(2.0), [2.0]
    losses = [Frozen(array).loss, number.loss, partial(lambda x, p: scaled(x[0], p), settings)]
    assert [gradient(loss)[0] for loss in losses] == [1, 2, 2]
    array[:], number.scale, settings[0] = 5, 6.0, 7.0
    assert [gradient(loss)[0] for loss in losses] == [5, 6, 7]


def test_what_cannot_change_is_compiled_once():
    traces = []

    def loss(self, params):
        traces.append(None)
        return self.scale * jnp.sum(params["w"])

    frozen = type("Traced", (Frozen,), {"loss": loss})(2.0)
    frozen = dataclasses.dataclass(frozen=True)(type(frozen))(2.0)
    optimizer, params = Adam(), PARAMS
    for _ in range(3):
        params = optimizer.get_updates(params, None, frozen.loss)
        params = optimizer.get_updates(params, None, copy.copy(frozen).loss)
    assert len(traces) == 1
    others = [Stateless().loss, jax.jit(partial(scaled, 2.0)), Scale.loss.__get__(Module(2.0))]
    for other in others:
        np.testing.assert_array_equal(gradient(other), np.float32([2, 2]))


def test_numbers_within_functions_may_be_sizes():
    def loss(params, repeats):
        return sum(jnp.sum(params["w"]) for _ in range(repeats))

    for loss_of_three in (
        partial(loss, repeats=3),
        partial(loss, repeats=np.int64(3)),
        lambda params: loss(params, 3),
    ):
        np.testing.assert_array_equal(gradient(loss_of_three), np.float32([3, 3]))
    by_argument = gradient(lambda params, x: loss(params, x.scale), Frozen(3))
    np.testing.assert_array_equal(by_argument, np.float32([3, 3]))


def test_functions_within_parameters():
    params = PARAMS | {"f": partial(jnp.multiply, jnp.float32(3.0)), "g": Frozen(2.0)}

    def loss(params):
        return jnp.sum(params["f"](params["w"])) * params["g"].scale

    after = Adam(lr=0.5).get_updates(params, None, loss)
    np.testing.assert_allclose(after["w"], [0.5, 0.5], rtol=1e-6)
    assert after["f"] is params["f"]
    assert after["g"] is params["g"]
    np.testing.assert_array_equal(Adam().get_gradients(loss, params)["w"], np.float32([6, 6]))
