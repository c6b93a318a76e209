"""Which Adam states are found in a state, and what of several that do not fit."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import adamx
from tests.state.holders import HOLDERS, PARAMS, mapping, trained

PROMOTES = True  # Optax's wrappers do


def test_states_without_values():
    tx = adamx.adam(1e-2)
    with pytest.raises(ValueError, match="count: expected an array, found ShapeDtypeStruct"):
        adamx.get_weights(jax.eval_shape(tx.init, PARAMS))
    state = tx.init(PARAMS)
    jax.jit(lambda s: s, donate_argnums=0)(state)
    with pytest.raises(ValueError, match="count: expected an array, found a deleted one"):
        adamx.get_weights(state)
    with pytest.raises(ValueError, match=r"count: .* found a traced one; call this out"):
        jax.jit(adamx.get_weights)(tx.init(PARAMS))


NO_ADAM = {
    "sgd": (
        lambda: optax.sgd(1e-2, momentum=0.9).init(PARAMS),
        "none in tuple of TraceState, EmptyState; pass the state that init of",
    ),
    "params": (lambda: PARAMS, "none in dict; pass the state that init of"),
    "array": (lambda: jnp.ones(2), "none in ArrayImpl; pass"),
    "none": (lambda: None, "none in NoneType; pass"),
    "transformation": (
        lambda: adamx.adam(1e-2),
        "none in GradientTransformationExtraArgs of funct",
    ),
    "packed": (
        lambda: packed(),
        r"a packed one, PackedAdamState; call adamx.unpack\(state, params",
    ),
    "packed_deep": (
        lambda: {"opt": [packed(amsgrad=True)], "step": 0},
        r"a packed one, PackedAmsgradState; call adamx.unpack\(state, params\) first",
    ),
}


def packed(**options):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    return adamx.fused_adam(1e-2, packed=True, **options).init(params)


@pytest.mark.parametrize("case", NO_ADAM)
def test_no_adam_state(case):
    make, message = NO_ADAM[case]
    expected = "state: expected an optimizer state that holds an AdamState or AmsgradState"
    for read in (adamx.get_weights, adamx.to_numpy, lambda state: adamx.set_weights(state, [])):
        with pytest.raises(ValueError, match=f"{expected}, found {message}"):
            read(make())


def part(**leaves):
    """An Adam state of these parameters, of which some may be None."""
    return adamx.adam(1e-2).init(leaves)


X = jnp.ones(2)
OVERLAPS = {
    "whole": (part(x=X, y={"z": X}), part(x=X, y={"z": X}), "mu/x"),
    "whole_one_leaf": (adamx.scale_by_adam().init(X), adamx.scale_by_adam().init(X), "mu"),
    "one_leaf": (part(x=X, y=None), part(x=X, y=X), "mu/x"),
    "other_leaf": (part(x=X, y=X), part(x=None, y=X), "mu/y"),
    "deep": (
        part(x=[None, {"y": (X, X)}], z=X),
        part(x=[X, {"y": (None, X)}], z=None),
        "mu/x/1/y/1",
    ),
    "empty_leaf": (part(x=jnp.ones(0), y=X), part(x=jnp.ones(0), y=None), "mu/x"),
    "boxed": (part(x=nnx.Param(X), y=None), part(x=nnx.Param(X), y=X), "mu/x"),
    "mappings": (mapping(x=X), mapping(x=X, y=X), "mu/x"),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_two_adam_states_that_overlap(case):
    *states, name = OVERLAPS[case]
    message = f"^{name}: expected Adam states that split one tree .* found 2 that overlap"
    for pair in (states, states[::-1]):
        for read in (adamx.get_weights, adamx.to_numpy):
            with pytest.raises(ValueError, match=message):
                read(pair)
        with pytest.raises(ValueError, match=message):
            adamx.set_weights(pair, [])


def test_three_adam_states_of_which_two_overlap():
    parts = [part(x=X, y=None, z=None), part(x=None, y=X, z=None), part(x=None, y=X, z=X)]
    assert list(adamx.to_numpy(parts[:2])) == ["count", "mu/x", "mu/y", "nu/x", "nu/y"]
    with pytest.raises(ValueError, match=r"^mu/y: .*found 2 that overlap"):
        adamx.to_numpy(parts)


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (part(a=1.0), part(b=1.0), "mu"),
        (part(a=[X, None]), part(a=[None]), "mu/a"),
        (part(a=X), part(a={"b": X}), "mu/a"),
        (part(a={"b": X}), part(a=X), "mu/a"),
    ],
)
def test_two_adam_states_of_different_parameters(one, other, name):
    message = rf"^{name}: expected Adam states .* pass them one by one"
    with pytest.raises(ValueError, match=message):
        adamx.to_numpy((one, other))


def test_two_adam_states_at_different_steps():
    tx = HOLDERS["partition"]
    state = trained(tx)
    state.inner_states["a"] = tx.init(PARAMS).inner_states["a"]
    with pytest.raises(ValueError, match="found 2 at the steps 0, 4"):
        adamx.get_weights(state)


def test_paths_that_collide():
    tx = adamx.adam(1e-2)
    with pytest.raises(ValueError, match=re.escape("mu/a/b: two parameters have this path")):
        adamx.to_numpy(tx.init({"a": {"b": 1.0}, "a/b": 1.0}))
