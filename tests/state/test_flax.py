"""Optimizers of Flax NNX: their states in boxes, as `nnx.State`, and as plain mappings."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import adamx
from adamx.checkpoint import Checkpoint
from tests.state.holders import SCHEDULE

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")

PROMOTES = True  # Optax's wrappers do

X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)), jnp.float32)
CONFIG = adamx.AdamConfig(learning_rate=1e-2)


class Model(nnx.Module):
    """Lists, statistics that are not trained, and a dropout with its key."""

    def __init__(self, rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(3, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        """Two layers, the mean of which is not zero."""
        return self.dropout(self.norm(self.rest[0](jnp.tanh(self.first(x)))))


PATHS = ["first/bias", "first/kernel", "norm/bias", "norm/scale", "rest/0/bias", "rest/0/kernel"]


def is_kernel(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(path), params)


def labels(params):
    return jax.tree.map(lambda is_it: "a" if is_it else "b", is_kernel(params))


def optimizer_of(tx):
    model = Model(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def train(model, optimizer):
    grads = nnx.grad(lambda model: jnp.mean((model(X) - 1.0) ** 2))(model)
    optimizer.update(model, grads)


HOLDERS = {
    "adam": adamx.adam(SCHEDULE),
    "amsgrad": adamx.adam(1e-2, amsgrad=True),
    "chain": optax.chain(optax.clip(1.0), adamx.adam(SCHEDULE)),
    "inject": optax.inject_hyperparams(adamx.adam)(SCHEDULE),
    "MultiSteps": optax.MultiSteps(adamx.adam(SCHEDULE), 2).gradient_transformation(),
    "masked": optax.masked(adamx.adam(SCHEDULE), is_kernel),
    "partition": optax.partition({"a": adamx.adam(SCHEDULE), "b": adamx.adam(1e-3)}, labels),
}
FORMS: dict[str, Callable[[nnx.Optimizer], Any]] = {
    "optimizer": lambda optimizer: optimizer,
    "state": nnx.state,
    "split": lambda optimizer: nnx.split(optimizer)[1],
    "pure": lambda optimizer: nnx.as_pure(nnx.state(optimizer)),
    "pure_dict": lambda optimizer: nnx.to_pure_dict(nnx.state(optimizer)),
    "state_dict": lambda optimizer: flax.serialization.to_state_dict(
        nnx.as_pure(optimizer.opt_state)
    ),
}


def scalars(tree):
    """Every integer scalar, in order."""
    return [int(x) for x in jax.tree.leaves(tree) if x.shape == () and x.dtype in ("i4", "u4")]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("holder", HOLDERS)
def test_every_form_has_the_same_arrays(holder):
    """Those of a state of plain arrays, and they go back into each form."""
    tx = HOLDERS[holder]
    model, optimizer = optimizer_of(tx)
    for _ in range(4):
        train(model, optimizer)
    plain = nnx.as_pure(optimizer.opt_state)
    expected = adamx.to_numpy(plain)
    assert expected["count"] == (2 if holder == "MultiSteps" else 4)
    if holder != "masked":
        assert [name[3:] for name in expected if name.startswith("mu/")] == PATHS
    for form, take in FORMS.items():
        found = adamx.to_numpy(take(optimizer))
        assert list(found) == list(expected), form
        chex.assert_trees_all_equal(found, expected)
        fresh = take(optimizer_of(tx)[1])
        if holder == "MultiSteps" and form != "state_dict":
            with pytest.raises(
                ValueError, match=r"step.*found one that a wrapper separates from it"
            ):
                adamx.from_numpy(fresh, expected)
            continue
        moved = adamx.from_numpy(fresh, expected)
        assert jax.tree.structure(moved) == jax.tree.structure(fresh)
        chex.assert_trees_all_equal(adamx.to_numpy(moved), expected)
        assert scalars(moved) == scalars(take(optimizer))  # Flax's own count of steps, too


def test_wrappers_are_known_by_their_fields():
    """As they are by their classes, which `nnx.state` does not keep."""
    model, optimizer = optimizer_of(HOLDERS["MultiSteps"])
    for _ in range(5):
        train(model, optimizer)
    fresh = nnx.state(optimizer_of(HOLDERS["MultiSteps"])[1])["opt_state"]
    moved = adamx.from_numpy(fresh, adamx.to_numpy(optimizer))
    assert moved["gradient_step"].get_value() == 2
    assert moved["mini_step"].get_value() == 0


def test_mappings_that_only_look_alike():
    """Fields of Adam without its count of steps; a state of one's own with a field too few."""
    moments = {"mu": jnp.ones(2), "nu": jnp.ones(2)}
    for other in (moments, moments | {"count": jnp.ones(())}, moments | {"count": (), "x": 1}):
        with pytest.raises(ValueError, match="found none in dict"):
            adamx.to_numpy(other)
    state = (adamx.adam(1e-2).init(X), {"t": jnp.int32(0)})
    with pytest.raises(
        ValueError, match=r"state\[1\]\['t'\]: .* expected integers of which adamx knows"
    ):
        adamx.set_weights(state, [1, *adamx.get_weights(state)[1:]])


@pytest.mark.parametrize("way", ["arrays", "checkpoint", "nnx.update"])
def test_a_restored_optimizer_goes_on_as_if_it_had_never_stopped(way):
    """The ways that are documented; the network has no random parts but its key."""
    model, optimizer = optimizer_of(CONFIG.transformation())
    model.dropout.deterministic = True
    for _ in range(3):
        train(model, optimizer)
    checkpoint = Checkpoint.from_state(
        nnx.state(model, nnx.Param), optimizer.opt_state, CONFIG, transformation=optimizer.tx
    )
    weights = nnx.state(model)
    fresh, other = optimizer_of(CONFIG.transformation())
    if way == "arrays":
        arrays = adamx.to_numpy(optimizer.opt_state)
        other.opt_state = adamx.from_numpy(other.opt_state, arrays)
    elif way == "checkpoint":
        tx, state = checkpoint.restore(nnx.state(fresh, nnx.Param))
        other = nnx.Optimizer(fresh, tx, wrt=nnx.Param)
        other.opt_state = adamx.from_numpy(other.opt_state, adamx.to_numpy(state))
    else:
        nnx.update(other, adamx.from_numpy(nnx.state(other), adamx.to_numpy(optimizer)))
        assert other.step.get_value() == 3
    nnx.update(fresh, weights)
    fresh.dropout.deterministic = True
    for _ in range(2):
        train(model, optimizer)
        train(fresh, other)
    found, expected = (
        (nnx.state(m, nnx.Param), o.opt_state) for m, o in [(fresh, other), (model, optimizer)]
    )
    chex.assert_trees_all_equal(found, expected)
    assert adamx.get_weights(other)[0] == 5


@pytest.mark.parametrize("suffix", ["", "/value"])
def test_states_in_boxes_and_without_are_exchanged(suffix):
    """Files of old have the boxes in their names."""
    tx = HOLDERS["amsgrad"]
    model, optimizer = optimizer_of(tx)
    train(model, optimizer)
    arrays = adamx.to_numpy(optimizer)
    named = {f"{name}{suffix if '/' in name else ''}": x for name, x in arrays.items()}
    pure = tx.init(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for state in (pure, optimizer.opt_state, tx.init(nnx.state(model, nnx.Param))):
        chex.assert_trees_all_equal(adamx.to_numpy(adamx.from_numpy(state, named)), arrays)
    with pytest.raises(ValueError, match=r"missing: none; unknown: mu/first/bias/value\. Leave"):
        adamx.from_numpy(pure, {**arrays, "mu/first/bias/value": arrays["mu/first/bias"]})


def test_parameters_that_are_called_value():
    state = adamx.adam(1e-2).init({"value": X, "a": {"value": X}})
    names = ["count", "mu/a/value", "mu/value", "nu/a/value", "nu/value"]
    assert list(adamx.to_numpy(state)) == names
    chex.assert_trees_all_equal(adamx.from_numpy(state, adamx.to_numpy(state)), state)


@pytest.mark.parametrize("spell", ["{}", "{}/value"])
def test_a_checkpoint_takes_a_path_however_it_is_spelled(spell):
    model, optimizer = optimizer_of(CONFIG.transformation())
    train(model, optimizer)
    params = nnx.state(model, nnx.Param)
    order = [spell.format(path) for path in reversed(PATHS)]
    checkpoint = Checkpoint.from_state(
        params, optimizer.opt_state, CONFIG, transformation=optimizer.tx, order=order
    )
    assert checkpoint.names == tuple(reversed(PATHS))
    for given in (order, {spell.format(path): path for path in PATHS}):
        _, state = checkpoint.restore(params, order=given)
        chex.assert_trees_all_equal(adamx.to_numpy(state), adamx.to_numpy(optimizer))
        chex.assert_trees_all_equal(checkpoint.params_like(params, order=given), params)


def test_a_model_with_a_random_key():
    """It is no weight: not saved, and as it was in what is restored."""
    model, optimizer = optimizer_of(CONFIG.transformation())
    train(model, optimizer)
    whole = nnx.state(model)
    checkpoint = Checkpoint.from_state(whole, optimizer.opt_state, CONFIG)
    assert checkpoint.names == tuple(PATHS)
    others = ["dropout/rngs/count", "norm/mean", "norm/var"]
    assert sorted({*checkpoint.params} - {*PATHS}) == others
    chex.assert_trees_all_equal(checkpoint.params_like(whole), whole)


def test_linen_in_boxes():
    """A train state of Flax linen whose parameters carry their partitioning."""
    kernel = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    network = nn.Dense(3, kernel_init=kernel)
    params = network.init(jax.random.key(0), X)["params"]
    tx = adamx.adam(SCHEDULE)
    state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
    new = state.apply_gradients(grads=params)
    arrays = adamx.to_numpy(new)
    assert list(arrays) == ["count", "mu/bias", "mu/kernel", "nu/bias", "nu/kernel"]
    moved = adamx.from_numpy(state, arrays)
    assert moved.step == new.step == 1
    chex.assert_trees_all_equal(moved.opt_state, new.opt_state)
    checkpoint = Checkpoint.from_state(params, new.opt_state, CONFIG)
    assert checkpoint.names == ("bias", "kernel")
    chex.assert_trees_all_equal(checkpoint.restore(params)[1][0], new.opt_state[0])
    wrong = {"kernel": jnp.ones((2, 2)), "bias": params["bias"]}
    with pytest.raises(ValueError, match=r"kernel: expected shape \(2, 2\), found \(2, 3\)"):
        checkpoint.restore(wrong)
