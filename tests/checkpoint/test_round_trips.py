"""Out of a file, through adamx's own, and back into a file of the same format: no bit is lost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, load, save
from tests.checkpoint.checkpoint_runs import (
    BY_FILE,
    CHECKPOINTS,
    RECORDED,
    assert_equal,
    loaded,
    restored,
    train,
    without_names,
)

NUMBERS = {"learning_rate": 0.25, "b1": 0.5, "b2": 0.75, "eps": 0.125}


@pytest.fixture(params=RECORDED, ids=lambda recorded: recorded.file)
def recorded(request):
    return request.param


def blank(checkpoint):
    """Another run of the same model: all numbers are others."""
    fields = {
        field: {name: np.zeros_like(array) for name, array in getattr(checkpoint, field).items()}
        for field in ("params", "mu", "nu", "nu_max", "extra")
    }
    groups = []
    for group in checkpoint.groups:
        numbers = {} if callable(group.config.learning_rate) else NUMBERS
        config = dataclasses.replace(group.config, **numbers)
        groups.append(dataclasses.replace(group, count=7, config=config))
    return dataclasses.replace(checkpoint, groups=groups, **fields)


@pytest.mark.sampled(2)
def test_through_adamx_and_back(recorded, tmp_path):
    """Into a template in which every number was another."""
    original = loaded(recorded.file)
    own, template = tmp_path / "state.safetensors", tmp_path / f"template_{recorded.file}"
    assert save(own, original) == ()
    assert_equal(load(own), original)
    save(template, blank(original), template=CHECKPOINTS / recorded.file)
    copy = tmp_path / recorded.file
    left = save(copy, load(own), template=template)
    assert left == (("config",) if recorded.config else ())
    assert_equal(load(copy, config=recorded.config), original)


def test_blank_template_was_blank(recorded, tmp_path):
    """Or the test above would show nothing."""
    original = loaded(recorded.file)
    template = tmp_path / recorded.file
    save(template, blank(original), template=CHECKPOINTS / recorded.file)
    other_rate = None if recorded.config is None else blank(original).config
    read = load(template, config=other_rate)
    assert read.count == 7
    assert not any(array.any() for array in [*read.params.values(), *read.mu.values()])


def test_state_dict_alone(tmp_path):
    original = loaded("torch_frozen.pt")
    left = save(tmp_path / "optimizer.pt", original)
    assert left == tuple(f"params/{name}" for name in original.params)
    assert_equal(load(tmp_path / "optimizer.pt"), without_names(original))


def test_groups_with_hyperparameters_of_their_own(tmp_path):
    file = CHECKPOINTS / "torch_groups.pt"
    original = load(file)
    assert [group.config.weight_decay for group in original.groups] == [0.1, 0.0]
    assert original.names[:4] == ("in.weight", "b2.weight", "b10.weight", "out.weight")
    assert set(original.naming.values()) == {"inferred"}
    assert save(tmp_path / "copy.pt", blank(original), template=file) == ()
    assert save(tmp_path / "again.pt", original, template=tmp_path / "copy.pt") == ()
    assert_equal(load(tmp_path / "again.pt"), original)


def test_a_template_keeps_the_groups_that_one_configuration_cannot_tell(tmp_path):
    file = CHECKPOINTS / "torch_groups.pt"
    original = load(file)
    group = dataclasses.replace(original.groups[0], names=original.names, count=9)
    one = dataclasses.replace(original, groups=[group])
    assert save(tmp_path / "copy.pt", one, template=file) == ("config",)
    copy = load(tmp_path / "copy.pt")
    assert [group.config for group in copy.groups] == [group.config for group in original.groups]
    assert [group.count for group in copy.groups] == [9, 9]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("file", ["keras3_amsgrad.keras", "tf11_model.h5", "keras3_schedule.keras"])
def test_jax_half_way(file, tmp_path):
    """30 steps in JAX, with a file after 15 of them, are 30 steps in JAX."""
    recorded = BY_FILE[file]
    checkpoint = loaded(file)
    weights, fixed, transformation, state = restored(checkpoint, recorded)
    uninterrupted, _ = train(weights, fixed, transformation, state, 8, 1e-3)
    weights, state = train(weights, fixed, transformation, state, 8, 1e-3, last=45)
    config = checkpoint.config
    half = Checkpoint.from_state(weights, state, config, transformation=transformation)
    assert (half.framework, half.count) == ("jax", 45)
    save(tmp_path / "half.safetensors", half)
    again = load(tmp_path / "half.safetensors")
    transformation, state = again.restore(weights)
    weights = again.params_like(weights)
    weights, _ = train(weights, fixed, transformation, state, 8, 1e-3, first=45)
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted)


def low_precision():
    return optax.chain(
        adamx.adam(1e-3, nu_dtype="bfloat16", nu_key=0),
        optax.masked(adamx.stochastic_round(1), {"b": False, "w": True}),
    )


@pytest.mark.slow
def test_a_chain_of_ones_own(tmp_path):
    """Rounding at random is in no configuration: told, and the same bits with the same chain."""
    params = {"b": jnp.linspace(0, 1, 9), "w": jnp.linspace(0.5, 1, 99, dtype=jnp.bfloat16)}
    tx = low_precision()

    @jax.jit
    def run(params, state):
        def step(carry, t):
            params, state = carry
            grads = jax.tree.map(lambda p: jnp.sin(t + jnp.arange(p.size, dtype="float32")), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jnp.arange(7.0))[0]

    with jax.numpy_dtype_promotion("standard"):  # Optax adds float32 to bfloat16
        half, state = run(params, tx.init(params))
        config = AdamConfig(learning_rate=1e-3)
        with pytest.warns(UserWarning, match=r"stochastic_round.*restore\(params, transformation="):
            checkpoint = Checkpoint.from_state(half, state, config, transformation=low_precision())
        save(tmp_path / "half.safetensors", checkpoint)
        again = load(tmp_path / "half.safetensors")
        transformation, restored = again.restore(half, transformation=low_precision())
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        expected = run(half, state)
        found = run(again.params_like(half), restored)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.any(expected[0]["w"] != half["w"])
    assert callable(transformation.update)


def test_a_transformation_that_trains_a_part():
    params = {"b": jnp.ones(3), "w": jnp.ones(2)}
    trains_w = optax.masked(adamx.adam(1e-3), {"b": False, "w": True})
    state = trains_w.init(params)
    state = trains_w.update(params, state, params)[1]
    with pytest.warns(
        UserWarning, match="adamx cannot distinguish them: .*pass the transformation="
    ):
        checkpoint = Checkpoint.from_state(params, state, AdamConfig(learning_rate=1e-3))
    _, restored = checkpoint.restore(params, transformation=trains_w)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    with pytest.raises(CheckpointError, match="b: has no moments in the file"):
        checkpoint.restore(params)
    all_of_it, config = adamx.adam(1e-3), AdamConfig(learning_rate=1e-3)
    state = all_of_it.init(params)
    whole = Checkpoint.from_state(params, state, config, transformation=all_of_it)
    with pytest.raises(CheckpointError, match=r"transformation: .* found none for b \(frozen\)"):
        whole.restore(params, transformation=trains_w)
    with pytest.raises(CheckpointError, match="transformation: expected one with amsgrad=False"):
        whole.restore(params, transformation=adamx.adam(1e-3, amsgrad=True))


def test_a_part_that_is_frozen_from_now_on():
    """The error says how; parameters that were frozen before, and have no moments, do not count."""
    params = {"embed": jnp.ones((4, 3)), "out": {"w": jnp.ones(2), "b": jnp.ones(3)}}
    all_but_w = optax.masked(adamx.adam(1e-3), {"embed": True, "out": {"w": False, "b": True}})
    only_b = optax.masked(adamx.adam(1e-3), {"embed": False, "out": {"w": False, "b": True}})
    _, state = all_but_w.update(params, all_but_w.init(params), params)
    with pytest.warns(UserWarning, match="adamx cannot distinguish them"):
        checkpoint = Checkpoint.from_state(params, state, AdamConfig(learning_rate=1e-3))
    with pytest.raises(CheckpointError, match=r"found none for embed \(frozen\)\. ") as raised:
        checkpoint.restore(params, transformation=only_b)
    assert raised.value.argument == "transformation"
    assert "adamx.from_numpy(fresh, {name: arrays[name] for name in" in raised.value.remedy

    _, whole = checkpoint.restore(params | {"out": {"w": None, "b": params["out"]["b"]}})
    arrays, fresh = adamx.to_numpy(whole), only_b.init(params)
    new = adamx.from_numpy(fresh, {name: arrays[name] for name in adamx.to_numpy(fresh)})
    assert list(adamx.to_numpy(new)) == ["count", "mu/out/b", "nu/out/b"]
    np.testing.assert_array_equal(new.inner_state[0].mu["out"]["b"], checkpoint.mu["out/b"])

    other = params | {"out": {"w": jnp.ones(2), "c": jnp.ones(3)}}
    mask = {"embed": False, "out": {"w": False, "c": True}}
    with pytest.raises(CheckpointError, match="out/b: in the file, but not in the tree"):
        checkpoint.restore(other, transformation=optax.masked(adamx.adam(1e-3), mask))


def test_averages_are_kept_or_named(tmp_path):
    source = loaded("keras3_ema.keras")
    assert len(source.extra) == 9
    assert source.extra["ema_momentum"] == 0.9
    left = save(tmp_path / "plain.keras", source, template=CHECKPOINTS / "keras3_schedule.keras")
    assert left == tuple(source.extra)


def test_bfloat16_and_other_dtypes(tmp_path):
    base = loaded("keras3_model.keras")
    arrays = {
        "a": np.array([1, 1.5, np.nan], jnp.bfloat16),
        "b": np.float64(1) / np.arange(1, 4),
        "c": np.array(2, np.float16),
        "d": np.zeros((0, 3), np.float32),
        "e": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    checkpoint = dataclasses.replace(base, names=tuple(arrays), params={}, mu=arrays, nu=arrays)
    save(tmp_path / "x.safetensors", checkpoint)
    assert_equal(load(tmp_path / "x.safetensors"), checkpoint)
