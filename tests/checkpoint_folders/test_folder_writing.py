"""Folders of Trainer and Accelerate with other values, from one of the same model as template."""

import dataclasses
import json
import re
import shutil
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.checkpoint import CheckpointError, load, save
from adamx.checkpoint.formats import _hugging_face_writing
from adamx.checkpoint.formats._torch_files import open_saved
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.checkpoint.writing.torch_writer import write_archive
from adamx.cli.main import main
from tests.checkpoint.checkpoint_runs import assert_equal
from tests.checkpoint_files.wild_cases import read_case
from tests.checkpoint_folders.safetensors_writer import write_safetensors
from tests.checkpoint_torch.rank_folders import advance
from tests.fuzz.folders import pack_folder, unpack
from tests.fuzz.hugging_face_files import as_shards

CASES = ("hf_trainer", "accelerate", "old_hf_adamw")


@pytest.fixture(autouse=True)
def without_frameworks(monkeypatch):
    for name in ("torch", "transformers", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_saved(path):
    return open_saved(path, Account(path.stat().st_size)).value


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, tmp_path):
    folder = read_case(name).path
    checkpoint = load(folder)
    assert save(tmp_path / "new", checkpoint, template=folder) == ()
    old, new = files_of(folder), files_of(tmp_path / "new")
    assert old.keys() == new.keys()
    changed = {file for file in old if old[file] != new[file]}
    assert changed <= {"optimizer.pt", "optimizer.bin", "pytorch_model.bin"}  # torch's archives
    again = load(tmp_path / "new")
    assert_equal(again, checkpoint)
    assert again.not_read == checkpoint.not_read
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_weights_in_shards(tmp_path):
    (tmp_path / "old").mkdir()
    for name, data in unpack(as_shards(pack_folder(read_case("accelerate").path))).items():
        (tmp_path / "old" / name).write_bytes(data)
    checkpoint = load(tmp_path / "old")
    params = {name: array + 1 for name, array in checkpoint.params.items()}
    new = dataclasses.replace(checkpoint, params=params)
    save(tmp_path / "new", new, template=tmp_path / "old")
    again = load(tmp_path / "new")
    for name, array in params.items():
        np.testing.assert_array_equal(again.params[name], array, strict=True)


@pytest.mark.parametrize("name", CASES)
def test_counts_follow_the_optimizers(name, tmp_path):
    folder = read_case(name).path
    checkpoint = advance(load(folder), 4, learning_rate=2e-4)
    assert save(tmp_path / "new", checkpoint, template=folder) == ()
    again = load(tmp_path / "new")  # compares Trainer's count with the optimizer's
    assert_equal(again, checkpoint)
    [path] = (tmp_path / "new").glob("scheduler.*")
    old, new = read_saved(folder / path.name), read_saved(path)
    assert new["last_epoch"] == old["last_epoch"] + 4 == checkpoint.count
    assert new["_step_count"] == old["_step_count"] + 4
    assert new["_last_lr"] == [2e-4] * len(checkpoint.groups)
    following = ("last_epoch", "_step_count", "_last_lr")
    assert new | {key: old[key] for key in following} == old
    if name == "hf_trainer":
        text, was = ((f / "trainer_state.json").read_text() for f in (tmp_path / "new", folder))
        assert json.loads(text) == json.loads(was) | {"global_step": checkpoint.count}
        assert re.sub('"global_step": 10', '"global_step": 6', text) == was


def test_a_scheduler_that_counts_otherwise_is_told(tmp_path):
    """Such as Accelerate's on two processes, of which each counts."""
    folder = shutil.copytree(read_case("accelerate").path, tmp_path / "old")
    told = read_saved(folder / "scheduler.bin")
    write_archive(tmp_path / "x", told | {"last_epoch": 2 * told["last_epoch"]})
    (tmp_path / "x").replace(folder / "scheduler.bin")
    left = save(tmp_path / "new", advance(load(folder), 1), template=folder)
    assert left == ("scheduler.bin",)
    assert files_of(tmp_path / "new")["scheduler.bin"] == files_of(folder)["scheduler.bin"]


def with_scheduler(folder, name="scheduler.bin", **more):
    told = read_saved(folder / "scheduler.bin") | more
    write_archive(folder / "x", told)
    (folder / "x").replace(folder / name)


MORE = [
    {"T_cur": 5},
    {"_schedulers": []},
    {"num_bad_epochs": 0},
    {"gamma": 0.5, "step_size": 3},  # of which each rate is made of the last one
    {"lr_lambdas": [{"warmup": 3}]},
    {"lr_lambdas": None},
]


@pytest.mark.parametrize("more", MORE, ids=lambda more: next(iter(more)))
def test_schedulers_that_keep_more_than_a_count(more, tmp_path):
    """Of restarts, of schedulers within, of evaluations, or of what a function keeps."""
    folder = shutil.copytree(read_case("accelerate").path, tmp_path / "old")
    with_scheduler(folder, **more)
    assert save(tmp_path / "new", advance(load(folder), 1), template=folder) == ("scheduler.bin",)
    assert files_of(tmp_path / "new")["scheduler.bin"] == files_of(folder)["scheduler.bin"]


def test_the_scheduler_is_that_of_the_optimizer(tmp_path):
    folder = shutil.copytree(read_case("accelerate").path, tmp_path / "old")
    with_scheduler(folder, "scheduler_1.bin")
    shutil.copy(folder / "optimizer.bin", folder / "optimizer_1.bin")
    keys = {"optimizer": "optimizer_1"}
    checkpoint = advance(load(folder, **keys), 1)
    assert save(tmp_path / "new", checkpoint, template=folder, **keys) == ("scheduler.bin",)
    old, new = files_of(folder), files_of(tmp_path / "new")
    assert {name for name in old if old[name] != new[name]} == {
        "optimizer_1.bin",
        "scheduler_1.bin",
        "model.safetensors",
    }
    assert read_saved(tmp_path / "new" / "scheduler_1.bin")["last_epoch"] == checkpoint.count


def test_what_is_beside_is_copied_and_told(tmp_path):
    """A second copy of the weights, and folders."""
    folder = shutil.copytree(read_case("accelerate").path, tmp_path / "old")
    weights = {name: make_tensor(array) for name, array in load(folder).params.items()}
    write_archive(folder / "pytorch_model.bin", weights)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "x").write_text("kept")
    (folder / "optimizer.bin").chmod(0o444)
    keys = {"weights": "model"}
    left = save(folder / "new", load(folder, **keys), template=folder, **keys)
    assert left == ("pytorch_model.bin", "adapter")
    assert (folder / "new" / "adapter" / "x").read_text() == "kept"
    assert not (folder / "new" / "new").exists()


def test_a_suffix_comes_before_a_template(tmp_path):
    folder = read_case("accelerate").path
    with pytest.raises(
        CheckpointError, match="expected a template in the format 'torch'"
    ) as caught:
        save(tmp_path / "x.pt", load(folder), template=folder)
    assert caught.value.argument == "template"
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_jax_goes_back(tmp_path):
    """Names of the tree meet the folder's by a mapping: of numbers, and of weights."""
    case = read_case("hf_trainer")
    checkpoint = load(case.path).rename(case.names)
    params: Any = {name: jnp.asarray(array) for name, array in checkpoint.params.items()}
    tx, state = checkpoint.restore(params, layout=lambda _, array: array)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    arrays = adamx.to_numpy(state)
    run = dataclasses.replace(
        checkpoint,
        groups=[dataclasses.replace(group, count=8) for group in checkpoint.groups],
        params={name: np.asarray(array) for name, array in params.items()},
        mu={name: arrays[f"mu/{name}"] for name in checkpoint.names},
        nu={name: arrays[f"nu/{name}"] for name in checkpoint.names},
    )
    numbers = load(case.path).names
    order = dict(zip(numbers, case.names, strict=True)) | {name: name for name in params}
    save(tmp_path / "new", run, template=case.path, order=order)
    assert_equal(load(tmp_path / "new").rename(case.names), run)


def test_nothing_is_replaced(tmp_path):
    folder = read_case("accelerate").path
    (tmp_path / "new").mkdir()
    with pytest.raises(FileExistsError, match="new"):
        save(tmp_path / "new", load(folder), template=folder)
    with pytest.raises(
        CheckpointError,
        match="expected template=, a checkpoint of this model in the format 'hugging_face'",
    ) as caught:
        save(tmp_path / "other", load(folder), format="hugging_face")
    assert caught.value.argument == "template"
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_hugging_face_writing, "_write_weights", fail)
    folder = read_case("accelerate").path
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "new", load(folder), template=folder)
    assert list(tmp_path.iterdir()) == []


def test_a_global_step_that_is_not_found(tmp_path):
    folder = shutil.copytree(read_case("hf_trainer").path, tmp_path / "old")
    told = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="one global_step on its own line") as caught:
        save(tmp_path / "new", advance(load(folder), 1), template=folder)
    assert caught.value.argument == "template"
    assert list(tmp_path.iterdir()) == [folder]


def test_weights_in_bfloat16(tmp_path):
    folder = shutil.copytree(read_case("accelerate").path, tmp_path / "old")
    params = {n: jnp.asarray(a, jnp.bfloat16) for n, a in load(folder).params.items()}
    arrays = {name: np.asarray(array) for name, array in params.items()}
    write_safetensors(folder / "model.safetensors", arrays)
    save(tmp_path / "new", load(folder), template=folder)
    again = load(tmp_path / "new").params
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    assert again["l1.weight"].dtype == jnp.bfloat16


def test_the_command(tmp_path, capsys):
    folder = read_case("hf_trainer").path
    arguments = ["--template", str(folder), "--set", "learning_rate=0.0005"]
    assert main(["convert", str(folder), str(tmp_path / "new"), *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'new'}: carried 6 steps, config, mom")
    assert [g.config.learning_rate for g in load(tmp_path / "new").groups] == [0.0005, 0.0005]
    assert main(["convert", str(folder), str(tmp_path / "new"), *arguments]) == 2
    assert capsys.readouterr().err == f"adamx: error: {tmp_path / 'new'}: exists\n"
    assert main(["convert", str(folder), str(tmp_path / "new"), *arguments, "--force"]) == 2
    assert capsys.readouterr().err == f"adamx: error: {tmp_path / 'new'}: File exists\n"
