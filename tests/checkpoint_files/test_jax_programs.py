"""Recorded checkpoints of Orbax and Flax: read as recorded, and continued as recorded."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load, save
from tests.checkpoint.format_cases import RUN
from tests.checkpoint_files.wild_cases import check_arrays, check_names, check_steps, read_case

SCHEDULE = optax.cosine_decay_schedule(0.002, 50)
CHAIN = AdamConfig(learning_rate=SCHEDULE, clip_global_norm=1.0)
CASES = {
    ("orbax_adamw", "ckpt"): RUN,
    ("orbax_chain", "run"): CHAIN,
    ("orbax_chain", "run/5"): CHAIN,
    ("orbax_chain", "run/5/default"): CHAIN,
    ("flax_msgpack", "state.msgpack"): RUN,
    ("npz_to_numpy", "state.npz"): RUN,
}


@pytest.fixture(params=CASES, ids="/".join)
def recorded(request):
    """A case, and its checkpoint as it is read."""
    case = read_case(*request.param)
    return case, load(case.path, config=CASES[request.param])


def test_the_recorded_arrays(recorded):
    case, checkpoint = recorded
    check_names(case, checkpoint)
    check_arrays(case, checkpoint)
    assert set(checkpoint.naming.values()) == {"file"}
    assert checkpoint.not_read == ()
    if checkpoint.params:
        assert list(checkpoint.params) == list(case.truth["param"])
        assert any("does not store which transformation" in note for note in checkpoint.notes)
    else:
        assert case.path.suffix == ".npz"


def test_their_order_is_not_that_of_a_torch_model(recorded, tmp_path):
    """Trees are sorted: to torch, which goes by position, bias and kernel would be swapped."""
    _, checkpoint = recorded
    config = AdamConfig(convention="torch")
    group = dataclasses.replace(checkpoint.groups[0], config=config)
    checkpoint = dataclasses.replace(checkpoint, groups=(group,))
    with pytest.raises(CheckpointError, match=r"order: expected the order .* pass order=") as error:
        save(tmp_path / "x.pt", checkpoint)
    assert error.value.argument == "order"
    names = [name for name in checkpoint.names if checkpoint.mu[name].ndim == 1]
    group = dataclasses.replace(group, names=tuple(names))
    vectors = {f: {n: getattr(checkpoint, f)[n] for n in names} for f in ("mu", "nu")}
    vectors = dataclasses.replace(checkpoint, groups=(group,), **vectors)
    with pytest.raises(CheckpointError, match=r"norm.weight: not a variable of the checkpoint"):
        save(tmp_path / "x.pt", vectors, order=[*names[1:], "norm.weight"])
    order = names[::-1]
    save(tmp_path / "x.pt", vectors, order=order)
    written = load(tmp_path / "x.pt")
    for found, name in zip(written.mu.values(), order, strict=True):
        np.testing.assert_array_equal(found, checkpoint.mu[name])


def test_the_run_continues(recorded):
    with jax.numpy_dtype_promotion("standard"):  # as the schedules of Optax need it
        check_steps(*recorded)


def test_the_programs_own_chain_continues():
    """With its schedule, whose count is in the state, and its clipping."""
    case = read_case("orbax_chain")
    checkpoint = load(case.path, config=CHAIN)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(SCHEDULE))
    with jax.numpy_dtype_promotion("standard"):
        check_steps(case, checkpoint, transformation=chain)
    _, state = checkpoint.restore(case.truth["param"], transformation=chain)
    counts = [x for x in jax.tree.leaves(state) if np.shape(x) == ()]
    assert [int(count) for count in counts] == [5, 5]


@pytest.mark.parametrize("config", [None, {"learning_rate": 0.1}])
@pytest.mark.parametrize("name", ["orbax_adamw", "flax_msgpack"])
def test_hyperparameters_are_asked_for(name, config):
    with pytest.raises(CheckpointError, match="holds no hyperparameters; pass config=") as caught:
        load(read_case(name).path, config=config)
    assert caught.value.argument == "config"


@pytest.mark.parametrize(("form", "how"), [("orbax", "StandardCheckpointer"), ("flax", "to_bytes")])
def test_their_own_programs_write_them(form, how, tmp_path):
    checkpoint = load(read_case("npz_to_numpy").path, config=RUN)
    with pytest.raises(CheckpointError, match=how) as caught:
        save(tmp_path / "new", checkpoint, format=form)
    assert caught.value.argument == "format"
    assert list(tmp_path.iterdir()) == []
