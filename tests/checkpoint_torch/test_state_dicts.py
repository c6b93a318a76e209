"""State dicts of torch as nobody recorded them: orders, counts, groups, what is beside."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.checkpoint import CheckpointError, load, save
from adamx.checkpoint.untrusted.torch_archive import read_archive
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.checkpoint.writing.torch_writer import write_archive
from tests.checkpoint_files.wild_cases import read_case


def save_state(path, groups, steps=None):
    """A state dict of torch's AdamW with these parameters' shapes and hyperparameters by group."""
    state, listed, position = {}, [], 0
    for settings, shapes in groups:
        own = list(range(position, position + len(shapes)))
        listed.append(GROUP | settings | {"params": own})
        for index, shape in zip(own, shapes, strict=True):
            moment = np.full(shape, index + 1, np.float32)
            step = np.asarray(7 if steps is None else steps[index], np.float32)
            state[index] = {
                "step": make_tensor(step),
                "exp_avg": make_tensor(0.1 * moment),
                "exp_avg_sq": make_tensor(moment),
            }
        position += len(own)
    write_archive(path, {"optimizer": {"state": state, "param_groups": listed}})
    return path


GROUP = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": False,
    "maximize": False,
    "decoupled_weight_decay": True,
}


def test_parameters_at_other_steps_keep_their_order(tmp_path):
    """Names are given in the optimizer's order, whichever parameters were left out of steps."""
    path = save_state(tmp_path / "x.pt", [({}, [(3,)] * 4)], steps=[4, 2, 4, 2])
    checkpoint = load(path)
    assert checkpoint.names == ("0", "1", "2", "3")
    assert [group.count for group in checkpoint.groups] == [4, 2, 4, 2]
    named = checkpoint.rename(["a", "b", "c", "d"])
    assert [float(named.mu[name][0]) for name in "abcd"] == [
        pytest.approx(0.1 * (i + 1)) for i in range(4)
    ]
    params = {name: jnp.zeros(3) for name in "abcd"}
    _, state = named.restore(params)
    counts = [int(x) for x in jax.tree.leaves(state) if x.shape == ()]
    assert sorted(counts) == [2, 4]  # one part for each number of steps
    save(tmp_path / "alone.pt", named)
    written = read_archive(tmp_path / "alone.pt")
    assert [group["params"] for group in written["param_groups"]] == [[0, 1, 2, 3]]
    assert [float(entry["step"]) for entry in written["state"].values()] == [4, 2, 4, 2]


def with_config(checkpoint, **fields):
    config = dataclasses.replace(checkpoint.config, **fields)
    return dataclasses.replace(checkpoint, config=config)


@pytest.mark.parametrize(
    ("name", "fields", "lost"),
    [
        ("old_hf_adamw", {"convention": "torch"}, "convention='torch'"),
        ("apex_fused_adam", {"decoupled": False, "weight_decay": 0.5}, "decoupled=False"),
        ("apex_fused_adam", {"maximize": True}, "maximize=True"),
    ],
)
def test_a_template_that_would_compute_another_adam(name, fields, lost, tmp_path):
    path = read_case(name).path
    path = path / "optimizer.pt" if path.is_dir() else path
    checkpoint = load(path)
    groups = [
        dataclasses.replace(group, config=dataclasses.replace(group.config, **fields))
        for group in checkpoint.groups
    ]
    with pytest.raises(CheckpointError, match=f"an optimizer that computes .*{lost}") as caught:
        save(tmp_path / "x.pt", dataclasses.replace(checkpoint, groups=groups), template=path)
    assert caught.value.argument == "template"
    assert not list(tmp_path.iterdir())


def test_bias_correction_goes_into_the_librarys_own_key(tmp_path):
    path = read_case("apex_fused_adam").path
    without = with_config(load(path), convention="keras", bias_correction=False)
    save(tmp_path / "x.pt", without, template=path)
    assert load(tmp_path / "x.pt").config == without.config
    [group] = read_archive(tmp_path / "x.pt")["optimizer"]["param_groups"]
    assert group["bias_correction"] is False


def test_a_group_of_the_template_takes_one_set_of_hyperparameters(tmp_path):
    template = save_state(tmp_path / "t.pt", [({}, [(2,), (3,)])], steps=[5, 7])
    source = save_state(tmp_path / "s.pt", [({}, [(2,)]), ({"lr": 5.0}, [(3,)])])
    with pytest.raises(CheckpointError, match="one learning_rate for all variables of a group"):
        save(tmp_path / "x.pt", load(source), template=template)


@pytest.mark.slow
def test_layer_wise_groups_take_no_time(tmp_path):
    """One group for each of many parameters of one shape, beside a model that has another head."""
    path = save_state(tmp_path / "x.pt", [({"lr": 0.1 / i}, [(3, 3)]) for i in range(1, 15)])
    saved = read_archive(path)
    shapes = [(3, 3)] * 13 + [(4, 3)]
    saved["teacher"] = {
        str(i): make_tensor(np.zeros(shape, np.float32)) for i, shape in enumerate(shapes)
    }
    write_archive(tmp_path / "y.pt", saved)
    began = time.process_time()
    checkpoint = load(tmp_path / "y.pt")
    assert time.process_time() - began < 5  # 1e9 orders to try
    assert (checkpoint.params, checkpoint.not_read) == ({}, ("teacher (14 weights)",))


@pytest.mark.parametrize("beside", ["rng", "generator"])
def test_tensors_that_are_no_weights_of_the_optimizers(beside, tmp_path):
    saved = read_archive(save_state(tmp_path / "x.pt", [({}, [(3, 3), (3,)])]))
    shapes = {"rng": [(5056,)], "generator": [(2, 3), (2,)]}[beside]
    saved[beside] = {
        str(i): make_tensor(np.zeros(shape, np.float32)) for i, shape in enumerate(shapes)
    }
    write_archive(tmp_path / "y.pt", saved)
    checkpoint = load(tmp_path / "y.pt")
    assert (checkpoint.params, len(checkpoint.not_read)) == ({}, 1)
    assert checkpoint.rename(["w", "b"]).names == ("w", "b")


@pytest.mark.parametrize("key", ["lr", "betas", "eps", "weight_decay"])
def test_a_hyperparameter_that_is_missing_is_no_default(key, tmp_path):
    saved = read_archive(save_state(tmp_path / "x.pt", [({}, [(3,)])]))
    del saved["optimizer"]["param_groups"][0][key]
    write_archive(tmp_path / "y.pt", saved)
    with pytest.raises(CheckpointError, match=rf"found none of {key}\. To continue with") as caught:
        load(tmp_path / "y.pt")
    assert caught.value.argument == "config"


def test_schedulers_that_set_momentum(tmp_path):
    beside = {"initial_lr": 4e-5, "max_lr": 1e-3, "min_lr": 4e-9}
    beside |= {"base_momentum": 0.85, "max_momentum": 0.95, "swa_lr": 0.05}
    checkpoint = load(save_state(tmp_path / "x.pt", [(beside, [(3,)])]))
    assert [note.partition(":")[0] for note in checkpoint.notes] == [
        "a scheduler set the learning rate",
        "a scheduler set b1 too (cycle_momentum)",
    ]


def test_fairseq_has_its_epsilon_beside_the_root(tmp_path):
    """Its own Adam is one of torch before 1.3, with decoupled decay."""
    saved = read_archive(save_state(tmp_path / "x.pt", [({}, [(3,)])]))["optimizer"]
    for key in ("maximize", "decoupled_weight_decay"):
        del saved["param_groups"][0][key]
    saved["param_groups"][0]["weight_decay"] = 0.1
    history = [{"optimizer_name": "FairseqAdam", "num_updates": 7}]
    whole = {"last_optimizer_state": saved, "optimizer_history": history}
    write_archive(tmp_path / "y.pt", whole)
    config = load(tmp_path / "y.pt").config
    assert (config.convention, config.decoupled, config.weight_decay) == ("keras", True, 0.1)


def test_an_old_torch_does_not_tell_where_epsilon_stands(tmp_path):
    saved = read_archive(save_state(tmp_path / "x.pt", [({}, [(3,)])]))
    del saved["optimizer"]["param_groups"][0]["maximize"]
    write_archive(tmp_path / "y.pt", saved)
    [note] = load(tmp_path / "y.pt").notes
    assert "before 1.3 torch added epsilon to the uncorrected sqrt(v)" in note


def test_older_bitsandbytes_is_known_by_its_state(tmp_path):
    saved = read_archive(save_state(tmp_path / "x.pt", [({}, [(3,)])]))
    [entry], [group] = saved["optimizer"]["state"].values(), saved["optimizer"]["param_groups"]
    moments = {"state1": entry.pop("exp_avg"), "state2": entry.pop("exp_avg_sq")}
    saved["optimizer"]["state"][0] |= moments
    for key in ("amsgrad", "maximize", "decoupled_weight_decay"):
        del group[key]
    write_archive(tmp_path / "y.pt", saved)
    checkpoint = load(tmp_path / "y.pt")
    assert (checkpoint.config.decoupled, float(checkpoint.nu["0"][0])) == (True, 1.0)
    assert "Adam, AdamW and LAMB alike" in checkpoint.notes[0]
