"""Which Adam, and which weights, are found in the states of Optax that files hold by name."""

import dataclasses
import itertools
from typing import NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load

PARAMS = {
    "a": {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.ones(4)},
    "mu": {"kernel": jnp.ones((2, 2))},  # as one half of an autoencoder is called
}
NAMES = ("a/bias", "a/kernel", "mu/kernel")
ADAM = optax.adam(1e-3)
SCHEDULED = optax.adam(optax.constant_schedule(1e-3))


def state_after(transformation, steps=3):
    state = transformation.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):  # as Optax needs it
        for _ in range(steps):
            _, state = transformation.update(PARAMS, state, PARAMS)
    return state


def pick(test):
    """A mask by the names of arrays."""
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: test(path[-1].key), tree)


KERNELS, OTHERS = pick("kernel".__eq__), pick("kernel".__ne__)
LABELS = pick(lambda name: "kernels" if name == "kernel" else "others")


def read(tree, folder, *, amsgrad=False, **selectors):
    path = folder / "state.msgpack"
    path.write_bytes(flax.serialization.to_bytes(tree))
    return load(path, config=AdamConfig(amsgrad=amsgrad), **selectors)


ONE_ADAM = {
    "alone": ADAM,
    "with a schedule": SCHEDULED,
    "in a chain of chains": optax.chain(optax.clip(1.0), optax.chain(optax.identity(), ADAM)),
    "with an average": optax.chain(ADAM, optax.ema(0.9)),
    "injected": optax.inject_hyperparams(optax.adam)(1e-3),
    "finite": optax.apply_if_finite(ADAM, 3),
}


AROUND = [
    lambda state: {"params": PARAMS, "tx": state},
    lambda state: (PARAMS, state),
    lambda state: {"run": (state, PARAMS)},
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ONE_ADAM)
@pytest.mark.parametrize("around", AROUND, ids=["named", "tuple", "tuple within"])
def test_one_adam(name, around, tmp_path):
    state = state_after(ONE_ADAM[name])
    checkpoint, expected = read(around(state), tmp_path), adamx.to_numpy(state)
    assert (checkpoint.names, checkpoint.count) == (NAMES, 3)
    assert set(checkpoint.params) == set(NAMES)
    for field, path in itertools.product(("mu", "nu"), NAMES):
        np.testing.assert_array_equal(getattr(checkpoint, field)[path], expected[f"{field}/{path}"])


class Kept(NamedTuple):
    before: dict


@pytest.mark.parametrize("around", [lambda state: state, lambda state: {"tx": state}])
def test_a_state_alone(around, tmp_path):
    """What other parts of a chain keep for each parameter is no weight."""
    kept = optax.GradientTransformation(Kept, lambda grads, state, _=None: (grads, state))
    for chain in (ADAM, optax.chain(ADAM, optax.ema(0.9), kept)):
        checkpoint = read(around(state_after(chain)), tmp_path)
        assert (checkpoint.names, checkpoint.params) == (NAMES, {})


def test_one_array(tmp_path):
    state = optax.adam(1e-3).init(jnp.ones(3))
    assert read({"tx": state, "w": jnp.ones(3)}, tmp_path).names == ("",)


PARTS = {
    "partition": optax.partition({"kernels": ADAM, "others": SCHEDULED}, LABELS),
    "masked": optax.chain(optax.masked(ADAM, KERNELS), optax.masked(SCHEDULED, OTHERS)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_groups(name, tmp_path):
    checkpoint = read({"params": PARAMS, "tx": state_after(PARTS[name])}, tmp_path)
    assert {group.names for group in checkpoint.groups} == {
        ("a/kernel", "mu/kernel"),
        ("a/bias",),
    }
    assert checkpoint.count == 3
    assert set(checkpoint.params) == set(NAMES)
    assert any("has parts" in note for note in checkpoint.notes)


def test_parts_at_different_steps(tmp_path):
    def later(node):
        return node._replace(count=node.count + 4) if hasattr(node, "mu") else node

    is_adam = lambda node: hasattr(node, "mu")  # noqa: E731
    state = state_after(optax.partition({"kernels": ADAM, "others": ADAM}, LABELS))
    inner = state.inner_states
    inner["others"] = jax.tree.map(later, inner["others"], is_leaf=is_adam)
    checkpoint = read({"params": PARAMS, "tx": state}, tmp_path)
    assert {group.names: group.count for group in checkpoint.groups} == {
        ("a/kernel", "mu/kernel"): 3,
        ("a/bias",): 7,
    }
    _, restored = checkpoint.restore(PARAMS)
    counts = {int(x) for x in jax.tree.leaves(restored) if x.dtype == jnp.int32}
    assert counts == {3, 7}


def test_a_part_that_is_not_adam(tmp_path):
    checkpoint = read({"params": PARAMS, "tx": state_after(optax.contrib.muon(1e-3))}, tmp_path)
    assert checkpoint.names == ("a/bias",)
    assert checkpoint.not_read == ("tx.inner_states.muon: 4 arrays",)
    with pytest.raises(CheckpointError, match="a/kernel"):
        checkpoint.restore(PARAMS)


def test_amsgrad(tmp_path):
    state = state_after(optax.amsgrad(1e-3))
    checkpoint = read({"params": PARAMS, "tx": state}, tmp_path, amsgrad=True)
    np.testing.assert_array_equal(checkpoint.nu_max["a/kernel"], state[0].nu_max["a"]["kernel"])
    with pytest.raises(CheckpointError, match="amsgrad: the file has True, config=") as caught:
        read({"params": PARAMS, "tx": state}, tmp_path)
    assert caught.value.argument == "config"
    path, config = tmp_path / "state.msgpack", AdamConfig(amsgrad=True, convention="torch")
    with pytest.raises(CheckpointError, match=r"expected convention=.optax. with AMSGrad"):
        load(path, config=config)


def test_what_else_is_in_the_file(tmp_path):
    """Keys of random numbers are no weights; integers are."""
    params = {**PARAMS, "key": jax.random.PRNGKey(0), "seen": jnp.asarray(7, jnp.int32)}
    tree = {
        "params": params,
        "tx": state_after(ADAM),
        "step": jnp.asarray(9),
        "statistics": {"mean": jnp.ones(3), "variance": jnp.ones(3)},
    }
    checkpoint = read(tree, tmp_path)
    assert set(checkpoint.params) == {*NAMES, "seen"}
    assert checkpoint.not_read == ("params.key", "statistics: 2 arrays")
    assert "step is 9, and Adam has done 3 steps" in checkpoint.notes


def test_injected_hyperparameters_are_told(tmp_path):
    state = state_after(optax.inject_hyperparams(optax.adam)(0.25))
    assert any("learning_rate=0.25" in note for note in read(state, tmp_path).notes)


def test_narrow_moments(tmp_path):
    state = state_after(optax.adam(1e-3, mu_dtype=jnp.bfloat16))
    checkpoint = read({"params": PARAMS, "tx": state}, tmp_path)
    assert checkpoint.mu["a/kernel"].dtype == jnp.bfloat16
    expected = np.asarray(state[0].mu["a"]["kernel"])
    assert checkpoint.mu["a/kernel"].tobytes() == expected.tobytes()


TWO = {name: {"params": PARAMS, "tx": state_after(ADAM, n)} for name, n in (("g", 2), ("d", 5))}
AVERAGED = {"params": PARAMS, "ema": jax.tree.map(lambda x: 2 * x, PARAMS), "tx": state_after(ADAM)}
SCHEDULE_ELSEWHERE = state_after(SCHEDULED)
SCHEDULE_ELSEWHERE = (
    SCHEDULE_ELSEWHERE[0],
    SCHEDULE_ELSEWHERE[1]._replace(count=jnp.asarray(9)),
)
REFUSED = {
    "two optimizers": (TWO, r"one Adam, found 2: g\.tx, d\.tx; choose one", "optimizer"),
    "averages": (AVERAGED, r"found 2: params, ema; choose one", "weights"),
    "accumulated": (
        state_after(optax.MultiSteps(ADAM, 2)),
        "mini_step: expected 0, .*found 1 accumulated gradients",
        None,
    ),
    "a schedule elsewhere": (
        {"tx": SCHEDULE_ELSEWHERE},
        r"tx\.1\.count: expected 3 steps, as tx\.0 has done, found 9",
        None,
    ),
    "replicas": (
        jax.tree.map(lambda x: jnp.stack([x, x]), state_after(ADAM)),
        r"0\.count: expected one number, found shape \(2,\)",
        None,
    ),
    "momentum": ({"tx": state_after(optax.sgd(0.1, 0.9))}, r"found tx\.0 \(trace\)", None),
    "lion": ({"tx": state_after(optax.lion(0.1))}, r"found tx\.0 \(count, mu\)", None),
    "novograd": (state_after(optax.novograd(0.1)), "one number for each array", None),
    "no state": (PARAMS, "count, mu and nu in one node, found none among", None),
    "one name twice": (
        optax.adam(1e-3).init({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}),
        "expected every name once",
        None,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    tree, message, argument = REFUSED[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tree, tmp_path)
    assert caught.value.argument == argument


def test_selectors(tmp_path):
    checkpoint = read(TWO, tmp_path, optimizer="d", weights="d.params")
    assert checkpoint.count == 5
    assert checkpoint.not_read == ("g: 10 arrays",)
    averages = read(AVERAGED, tmp_path, weights="ema")
    np.testing.assert_array_equal(averages.params["a/kernel"], np.ones((3, 4)))
    for selectors in ({"optimizer": "e"}, {"optimizer": "d.tx.0", "weights": "d"}):
        with pytest.raises(CheckpointError, match=r"expected one of .*d.*found") as caught:
            read(TWO, tmp_path, **selectors)
        assert caught.value.argument == list(selectors)[-1]


def test_a_restored_partition_with_its_own_hyperparameters(tmp_path):
    """Each part continues as in the program."""
    own = optax.partition({"kernels": optax.adam(0.1), "others": optax.adam(0.01)}, LABELS)
    state = state_after(own)
    checkpoint = read({"params": PARAMS, "tx": state}, tmp_path)
    rates = {("a/bias",): 0.01, ("a/kernel", "mu/kernel"): 0.1}
    groups = [
        dataclasses.replace(group, config=AdamConfig(learning_rate=rates[group.names]))
        for group in checkpoint.groups
    ]
    checkpoint = dataclasses.replace(checkpoint, groups=groups)
    transformation, restored = checkpoint.restore(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        found, _ = transformation.update(PARAMS, restored, PARAMS)
        expected, _ = own.update(PARAMS, state, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, expected)
