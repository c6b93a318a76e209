"""Files of torch as trainers write them: groups, names, several models, kinds of Adam."""

import contextlib
import dataclasses
import re
import shutil
import warnings

import numpy as np
import pytest

from adamx.checkpoint import CheckpointError, load, save
from adamx.checkpoint.untrusted.torch_archive import read_archive
from adamx.cli.main import main
from tests.checkpoint.checkpoint_runs import assert_equal
from tests.checkpoint_files.wild_cases import (
    WILD,
    check_arrays,
    check_names,
    check_steps,
    read_case,
)
from tests.checkpoint_torch.rank_folders import edit

READ = (
    "nanogpt",
    "torchvision_namespace",
    "objects_beside",
    "protocol4",
    "ddp_scaler",
    "tensor_lr",
    "late_layer",
    "lightning_groups",
    "lightning_sched",
    "fsdp_flat",
    "fsdp_nested",
    "apex_fused_adam",
    "ema_beside",
    "gan",
    "bnb8",
    "torchao8",
)


def read(name):
    case = read_case(name)
    keys = {key: value for key, value in case.told["selectors"].items() if value}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return case, load(case.path, **keys)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", READ)
def test_arrays_names_and_steps_are_the_recorded_ones(name):
    case, checkpoint = read(name)
    check_names(case, checkpoint)
    check_arrays(case, checkpoint)
    # Of moments in 8 bits, what torch itself makes of the same numbers.
    check_steps(case, checkpoint, final="final32" if "final32" in case.truth else "final")
    told = "file" if case.told["names_in_file"] else "inferred"
    assert set(checkpoint.naming.values()) == {told}


@pytest.mark.parametrize("name", READ)
def test_hyperparameters_are_those_of_each_group(name):
    case, checkpoint = read(name)
    for group, own in zip(case.told["groups"], checkpoint.groups, strict=True):
        config, told = own.config, group["config"]
        assert (config.learning_rate, config.eps) == (told["lr"], told["eps"])
        assert [config.b1, config.b2] == told["betas"]
        assert (config.weight_decay, config.amsgrad) == (told["weight_decay"], False)
        assert config.decoupled == told["decoupled"] or not config.weight_decay
        assert own.scheduled == ("initial_lr" in told)


def test_the_other_optimizer_of_a_file():
    other = read_case("gan").told["others"][0]
    case = read_case("gan", truth=other["truth"], groups=other["groups"])
    checkpoint = load(case.path, **other["selectors"])
    check_arrays(case, checkpoint)
    check_steps(case, checkpoint)
    assert checkpoint.not_read == ("G (11 weights)", "optG", "epoch=5")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "optimizer: expected the key of one of the file's optimizers, found 2: optG, optD"),
        ({"optimizer": "optD"}, "weights: expected the key .* found 2 that fit: G, D; pass"),
        ({"optimizer": "G"}, "optimizer: expected one of optG, optD, found 'G'"),
        ({"optimizer": "optG", "weights": "epoch"}, "weights: expected one of G, D, found 'epoch'"),
    ],
)
def test_several_optimizers_and_models_are_listed(keys, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(WILD / "gan" / "gan.pt", **keys)
    assert caught.value.argument in ("optimizer", "weights")


@pytest.mark.parametrize("config", [None, "given"])
@pytest.mark.parametrize(("file", "name"), [("nadam.pt", "NAdam"), ("adamax.pt", "Adamax")])
def test_other_optimizers_are_refused_by_name(file, name, config):
    """Whatever configuration is given: it does not make an Adam of their moments."""
    given = None if config is None else load(WILD / "protocol4" / "c.pt").config
    with pytest.raises(CheckpointError, match=f"found the state of {name}: ") as caught:
        load(WILD / "refused" / file, config=given)
    assert caught.value.argument is None


def test_names_that_rest_on_an_order_are_said_to():
    """The file was written with two layers in the other order, which nothing in it tells."""
    case = read_case("swapped_same_shape")
    checkpoint = load(case.path)
    assert set(checkpoint.naming.values()) == {"inferred"}
    assert list(checkpoint.names) != case.names
    with pytest.raises(CheckpointError, match=r"11 of 11 inferred .* same shape: emb\.weight, l1"):
        load(case.path, strict=True)
    # Names that are inferred are not written as facts.
    assert "param_names" not in str(case.path.read_bytes())


def test_inferred_names_do_not_become_facts(tmp_path):
    inferred = load(WILD / "swapped_same_shape" / "c.pt")
    save(tmp_path / "alone.pt", inferred)
    assert set(load(tmp_path / "alone.pt").naming.values()) == {"unknown"}
    save(tmp_path / "own.safetensors", inferred)
    assert load(tmp_path / "own.safetensors").naming == inferred.naming


@pytest.mark.parametrize("name", [n for n in READ if n not in ("bnb8", "torchao8")])
def test_there_and_back_through_the_file_as_template(name, tmp_path):
    """Other numbers into a copy, and the own ones into that."""
    case, checkpoint = read(name)
    keys = {key: value for key, value in case.told["selectors"].items() if value}
    fields = {
        field: {n: np.zeros_like(array) for n, array in getattr(checkpoint, field).items()}
        for field in ("params", "mu", "nu")
    }
    changed = dataclasses.replace(checkpoint, **fields)
    assert save(tmp_path / "blank.pt", changed, template=case.path, **keys) == ()
    assert_equal(load(tmp_path / "blank.pt", **keys), changed)
    assert save(tmp_path / "back.pt", checkpoint, template=tmp_path / "blank.pt", **keys) == ()
    assert_equal(load(tmp_path / "back.pt", **keys), checkpoint)


HEALTH = read_case("health").told["entries"]


def test_tied_weights_stay_tied(tmp_path):
    """Of two names of one tensor, torch would take the value of the last."""
    path = read_case("nanogpt").path
    checkpoint = load(path)
    tied = ["_orig_mod.transformer.wte.weight", "_orig_mod.lm_head.weight"]
    changed = {name: checkpoint.params[name] + 1 for name in tied}
    later = dataclasses.replace(checkpoint, params={**checkpoint.params, **changed})
    save(tmp_path / "new.pt", later, template=path)
    model = read_archive(tmp_path / "new.pt")["model"]
    assert model[tied[0]].storage is model[tied[1]].storage
    np.testing.assert_array_equal(model[tied[0]], changed[tied[0]])
    one = dataclasses.replace(later, params={**later.params, tied[0]: changed[tied[0]] + 1})
    with pytest.raises(CheckpointError, match="since both are one tensor") as caught:
        save(tmp_path / "other.pt", one, template=path)
    assert caught.value.argument == "checkpoint"
    assert not (tmp_path / "other.pt").exists()


def test_what_counts_beside_a_later_state_is_told(tmp_path, capsys):
    """NanoGPT's own count of steps, in a file that was the template of another step's state."""
    path = read_case("nanogpt").path
    checkpoint = load(path)
    groups = [dataclasses.replace(group, count=group.count + 3) for group in checkpoint.groups]
    later = dataclasses.replace(checkpoint, groups=groups)
    left = save(tmp_path / "later.pt", later, template=path)
    assert [what.split(" ")[0] for what in left] == [
        "model_args",
        "iter_num=6",
        "best_val_loss",
        "config",
    ]
    assert read_archive(tmp_path / "later.pt")["iter_num"] == read_archive(path)["iter_num"]
    arguments = ["convert", str(tmp_path / "later.pt"), str(tmp_path / "new.pt")]
    assert main([*arguments, "--template", str(path)]) == 0
    assert f"not carried: {', '.join(left)}\n" in capsys.readouterr().out


@pytest.mark.parametrize("entry", HEALTH, ids=lambda entry: entry["entry"])
def test_sick_states_are_told(entry):
    checkpoint = load(WILD / "health" / entry["entry"])
    [problem] = checkpoint.problems()
    where = entry["where"]
    assert (problem.name, problem.field) == (where["name"], where["field"])
    if where["index"]:
        assert f"at {where['index']}" in problem.finding
    refusal = contextlib.nullcontext()
    if "below 0" in problem.finding:
        refusal = pytest.raises(ValueError, match="expected a second moment of at least 0")
    with pytest.warns(UserWarning, match=re.escape(str(problem))), refusal:
        checkpoint.restore(dict(checkpoint.params), layout=lambda _, array: array)


def test_moments_in_8_bits_are_not_written_into_their_file(tmp_path):
    path = WILD / "bnb8" / "c.pt"
    with pytest.raises(
        CheckpointError, match="expected moments of 16 bits or more in the template"
    ):
        save(tmp_path / "new.pt", load(path), template=path)
    assert not list(tmp_path.iterdir())


def test_steps_in_states_and_in_groups(tmp_path):
    """As DeepSpeed's FusedAdam has them: that of the group stays 0."""
    path = tmp_path / "old.pt"
    shutil.copy(read_case("old_hf_adamw").path / "optimizer.pt", path)
    edit(path, lambda saved: [group.update(step=0) for group in saved["param_groups"]])
    checkpoint = load(path)
    groups = [dataclasses.replace(group, count=group.count + 3) for group in checkpoint.groups]
    later = dataclasses.replace(checkpoint, groups=groups)
    save(tmp_path / "new.pt", later, template=path)
    assert_equal(load(tmp_path / "new.pt"), later)
    saved = read_archive(tmp_path / "new.pt")
    assert [group["step"] for group in saved["param_groups"]] == [0] * len(groups)
    assert {entry["step"] for entry in saved["state"].values()} == {groups[0].count}


@pytest.mark.parametrize(("name", "key"), [("apex_fused_adam", "step"), ("old_hf_adamw", None)])
def test_steps_are_written_where_and_as_the_library_has_them(name, key, tmp_path):
    """Apex counts in the group; transformers with integers."""
    path = read_case(name).path
    path = path / "optimizer.pt" if path.is_dir() else path
    checkpoint = load(path)
    groups = [dataclasses.replace(group, count=9) for group in checkpoint.groups]
    new = dataclasses.replace(checkpoint, groups=groups)
    save(tmp_path / "new.pt", new, template=path)
    was, now = (read_archive(p) for p in (path, tmp_path / "new.pt"))
    was, now = was.get("optimizer", was), now.get("optimizer", now)
    assert [entry.keys() for entry in now["state"].values()] == [
        entry.keys() for entry in was["state"].values()
    ]
    steps = [now["param_groups"][0][key]] if key else [e["step"] for e in now["state"].values()]
    assert {(type(step), step) for step in steps} == {(int, 9)}
    hyperparameters = [{k: v for k, v in g.items() if k != "step"} for g in now["param_groups"]]
    assert hyperparameters == [
        {k: v for k, v in g.items() if k != "step"} for g in was["param_groups"]
    ]
