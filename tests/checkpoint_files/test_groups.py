"""Checkpoints with several groups of hyperparameters: restored, carried, and refused."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamx import AdamConfig, EightBit
from adamx.checkpoint import Checkpoint, CheckpointError, ParameterGroup, load, save

SHAPES = {"kernel": (4, 3), "bias": (3,), "head": (3, 2)}
PLAIN = AdamConfig(learning_rate=1e-2, weight_decay=0.1)


def grouped(*groups, counts=(5, 5, 5)):
    """A checkpoint with a group for each variable; the last configuration is of the rest."""
    random = np.random.default_rng(0)
    configs = [*groups, *[groups[-1]] * (len(SHAPES) - len(groups))]
    arrays = {name: random.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
    return Checkpoint(
        framework="jax",
        version=None,
        groups=[
            ParameterGroup(names=(name,), config=config, count=count)
            for name, config, count in zip(SHAPES, configs, counts, strict=True)
        ],
        params=arrays,
        mu={name: 0.01 * array for name, array in arrays.items()},
        nu={name: np.abs(array) for name, array in arrays.items()},
    )


def params_of(checkpoint):
    return {name: jnp.asarray(array) for name, array in checkpoint.params.items()}


def run(checkpoint, steps=3):
    """Some steps of what `restore` gives, on gradients that are the parameters."""
    params = params_of(checkpoint)
    tx, state = checkpoint.restore(params)
    for _ in range(steps):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
    return params


def run_alone(checkpoint, name, steps=3):
    """The same of one variable alone, with the transformation of its group."""
    group = next(group for group in checkpoint.groups if name in group.names)
    fields = {field: {name: getattr(checkpoint, field)[name]} for field in ("params", "mu", "nu")}
    return run(dataclasses.replace(checkpoint, groups=[group], **fields), steps)[name]


CASES = {
    "only decay": grouped(PLAIN, AdamConfig(learning_rate=1e-2)),
    "a decay that is an array": grouped(
        dataclasses.replace(PLAIN, weight_decay=jnp.float32(0.1)), AdamConfig(learning_rate=1e-2)
    ),
    "two decays": grouped(PLAIN, dataclasses.replace(PLAIN, weight_decay=0.3)),
    "rates": grouped(PLAIN, dataclasses.replace(PLAIN, learning_rate=1e-3)),
    "betas": grouped(PLAIN, dataclasses.replace(PLAIN, b1=0.5, b2=0.9, convention="keras")),
    "a layer that came later": grouped(PLAIN, counts=(40, 40, 2)),
    "torch's rounded decay": grouped(
        dataclasses.replace(PLAIN, convention="torch"),
        AdamConfig(learning_rate=1e-2, convention="torch"),
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES)
def test_each_variable_moves_as_its_group_alone(case):
    moved = run(CASES[case])
    for name in SHAPES:
        np.testing.assert_allclose(moved[name], run_alone(CASES[case], name), rtol=1e-6)


def test_one_adam_with_a_mask_where_only_the_decay_differs():
    params = params_of(CASES["only decay"])
    tx, state = CASES["only decay"].restore(params)
    assert len([x for x in jax.tree.leaves(state) if x.shape == ()]) == 1  # one count
    still = jax.tree.map(jnp.zeros_like, params)
    with_decay, _ = tx.update(still, state, params)
    without, _ = tx.update(still, state, still)
    changed = {name for name in SHAPES if np.any(with_decay[name] != without[name])}
    assert changed == {"kernel"}


def test_a_global_norm_is_of_all_groups_together():
    clipped = [dataclasses.replace(PLAIN, clip_global_norm=0.5, learning_rate=r) for r in (1e-2, 1)]
    checkpoint = grouped(*clipped)
    params = params_of(checkpoint)
    tx, state = checkpoint.restore(params)
    updates, _ = tx.update(params, state, params)
    scale = 0.5 / optax.tree.norm(params)
    bare = grouped(*[dataclasses.replace(c, clip_global_norm=None) for c in clipped])
    tx, state = bare.restore(params)
    expected, _ = tx.update(jax.tree.map(lambda g: g * scale, params), state, params)
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)


def test_norms_that_differ_cannot_be_told_apart():
    checkpoint = grouped(PLAIN, dataclasses.replace(PLAIN, clip_global_norm=1.0))
    with pytest.raises(
        CheckpointError, match="clip_global_norm: expected one value for all groups"
    ):
        checkpoint.restore(params_of(checkpoint))


@pytest.mark.parametrize(
    ("case", "field", "unlike"),
    [("rates", "config", "learning_rate"), ("a layer that came later", "count", "count")],
)
def test_there_is_no_single_one(case, field, unlike):
    message = f"{field}: expected one for all variables, found 3 groups that differ in {unlike};"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        getattr(CASES[case], field)


def test_a_count_of_their_own_needs_a_partition():
    checkpoint = CASES["a layer that came later"]
    with pytest.raises(CheckpointError, match="groups are at different steps, found counts of 40"):
        checkpoint.restore(params_of(checkpoint), transformation=optax.adam(1e-3))


@pytest.mark.parametrize("case", CASES)
def test_adamx_own_file_keeps_groups(case, tmp_path):
    assert save(tmp_path / "a.safetensors", CASES[case]) == ()
    assert load(tmp_path / "a.safetensors").groups == CASES[case].groups


def test_replacing_a_part_needs_one_group():
    checkpoint = CASES["rates"]
    with pytest.raises(
        CheckpointError, match="config: expected either groups, or names, config and"
    ):
        dataclasses.replace(checkpoint, config=PLAIN)
    one = dataclasses.replace(
        grouped(PLAIN),
        groups=[CASES["rates"].groups[0]],
        **{
            field: {"kernel": getattr(checkpoint, field)["kernel"]}
            for field in ("params", "mu", "nu")
        },
    )
    assert dataclasses.replace(one, count=7).groups[0].count == 7


def test_groups_in_8_bits_are_rounded_apart():
    """Two variables with the same moments and gradients, each the first of its group."""
    zeros, rng = np.zeros((8, 64), np.float32), np.random.default_rng(0)
    groups = [
        ParameterGroup(names=(name,), config=AdamConfig(learning_rate=rate), count=5)
        for name, rate in (("a", 1e-2), ("b", 1e-3))
    ]
    moments = {"a": zeros, "b": zeros}
    held = Checkpoint(
        framework="jax", version=None, groups=groups, params={}, mu=moments, nu=moments
    )
    params = {name: jnp.asarray(zeros) for name in moments}
    tx, state = held.restore(params, moments=EightBit(min_size=0))
    grads = dict.fromkeys(params, jnp.asarray(rng.standard_normal(zeros.shape, np.float32)))
    _, state = jax.jit(tx.update)(grads, state, params)
    parts = [x for x in jax.tree.leaves(state) if x.dtype == np.uint8]
    assert len(parts) == 2
    assert np.mean(parts[0] != parts[1]) > 0.1
