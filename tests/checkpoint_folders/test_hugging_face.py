"""Folders of Trainer and Accelerate: read as recorded, and what is not in them."""

import json
import shutil
import sys

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, load, save
from adamx.checkpoint.untrusted.stand_ins import Global, StandIn
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.checkpoint.writing.torch_writer import write_archive
from tests.checkpoint_files.wild_cases import check_arrays, check_names, check_steps, read_case
from tests.checkpoint_folders.safetensors_writer import write_safetensors

CASES = ("hf_trainer", "accelerate", "old_hf_adamw")
IN_ORDER = "old_hf_adamw"  # pytorch_model.bin


@pytest.fixture(autouse=True)
def without_frameworks(monkeypatch):
    for name in ("torch", "transformers", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def folder(tmp_path):
    """A copy of Trainer's folder."""
    return shutil.copytree(read_case("hf_trainer").path, tmp_path / "checkpoint-6")


def refuse(path, pattern, **arguments):
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load(path, **arguments)
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_arrays(name):
    case = read_case(name)
    checkpoint = load(case.path)
    is_told = name == IN_ORDER
    assert set(checkpoint.naming.values()) == {"inferred" if is_told else "unknown"}
    assert any("torch_names(model, optimizer)" in note for note in checkpoint.notes) != is_told
    assert any(note.startswith("a scheduler set") for note in checkpoint.notes)
    assert any("Conv1D" in note for note in checkpoint.notes) == (name == "hf_trainer")
    if not is_told:
        assert list(checkpoint.names) == [str(index) for index in range(len(case.names))]
        checkpoint = checkpoint.rename(case.names)
        assert set(checkpoint.naming.values()) == {"file"}
    check_names(case, checkpoint)
    check_arrays(case, checkpoint)
    assert checkpoint.params.keys() == case.truth["param"].keys()
    for group, told in zip(checkpoint.groups, case.told["groups"], strict=True):
        assert group.scheduled
        assert group.config.learning_rate == told["config"]["lr"]
        assert group.config.weight_decay == told["config"]["weight_decay"]
        assert group.config.eps == told["config"]["eps"]
    check_steps(case, checkpoint)


def test_what_was_not_read_is_listed():
    read = load(read_case("hf_trainer").path)
    assert read.not_read == ("generation_config.json", "rng_state.pth", "scheduler.pt")
    assert load(read_case("accelerate").path).not_read == ("random_states_0.pkl", "scheduler.bin")


def test_numbers_without_an_order_go_nowhere():
    case = read_case("hf_trainer")
    with pytest.raises(CheckpointError, match="more than one assignment") as caught:
        load(case.path).restore(case.truth["param"], layout=lambda _, array: array)
    assert caught.value.argument == "order"


def test_shapes_alone_name_what_they_settle(tmp_path):
    """Each shape is that of one weight."""
    mu = {"w": np.full((2, 3), 0.5, "f4"), "b": np.full(3, 0.25, "f4")}
    found = load(write_folder(tmp_path / "state", mu, mu))
    assert found.names == ("w", "b")
    assert set(found.naming.values()) == {"inferred"}
    np.testing.assert_array_equal(found.mu["b"], mu["b"])
    twins = {"w": mu["b"], "b": mu["b"]}
    found = load(write_folder(tmp_path / "twins", twins, twins))
    assert found.names == ("0", "1")


def write_folder(folder, mu, nu, weights=None):
    """An optimizer of one group, and weights that are sorted by name."""
    folder.mkdir()
    checkpoint = Checkpoint(
        framework="torch",
        version=None,
        names=tuple(str(i) for i in range(len(mu))),
        config=AdamConfig(learning_rate=1e-3, convention="torch"),
        count=3,
        params={},
        mu={str(i): x for i, x in enumerate(mu.values())},
        nu={str(i): x for i, x in enumerate(nu.values())},
    )
    save(folder / "optimizer.pt", checkpoint, format="torch")
    write_safetensors(folder / "model.safetensors", mu if weights is None else weights)
    return folder


def test_shards_are_put_together(folder):
    whole = load(folder)
    (folder / "model.safetensors").unlink()
    names = list(whole.params)
    shards = {"model-00001-of-00002.safetensors": names[:7]}
    last = "model-00002-of-00002.safetensors"
    shards[last] = names[7:]
    for shard, own in shards.items():
        write_safetensors(folder / shard, {name: whole.params[name] for name in own})
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = load(folder)
    assert found.params.keys() == whole.params.keys()
    for name, array in whole.params.items():
        np.testing.assert_array_equal(found.params[name], array)
    assert found.not_read == whole.not_read
    for wrong, message in [
        (weight_map | {"extra": last}, "found none for extra"),
        ({names[0]: "../model.safetensors"}, "no weight_map to files in its folder"),
        ({names[0]: "gone.safetensors"}, "a file of weights in the folder of its index"),
        (
            weight_map | {names[0]: last},
            "only weights that model.safetensors.index.json lists for it",
        ),
    ]:
        index.write_text(json.dumps({"weight_map": wrong}))
        refuse(folder, message)


def test_several_optimizers_and_models(tmp_path):
    """As Accelerate numbers them; they are told apart by key."""
    mu, nu = {"w": np.ones((2, 3), "f4")}, {"w": np.full((2, 3), 2, "f4")}
    folder = write_folder(tmp_path / "state", mu, nu)
    other = write_folder(tmp_path / "other", {"x": np.ones(5, "f4")}, {"x": np.ones(5, "f4")})
    shutil.copy(other / "optimizer.pt", folder / "optimizer_1.bin")
    (folder / "optimizer.pt").rename(folder / "optimizer.bin")
    shutil.copy(other / "model.safetensors", folder / "model_1.safetensors")
    assert refuse(folder, "2: optimizer, optimizer_1").argument == "optimizer"
    assert load(folder, optimizer="optimizer").names == ("w",)
    second = load(folder, optimizer="optimizer_1")
    assert (second.names, list(second.params)) == (("x",), ["x"])
    assert second.not_read == ("optimizer", "model (1 weights)")


@pytest.mark.parametrize(
    ("steps", "scaler", "message"),
    [
        (7, False, "expected global_step 6, as the optimizer's state says, found 7"),
        (5, True, "expected global_step 6, as the optimizer's state says, found 5"),
        (8, True, None),
    ],
)
def test_steps_that_do_not_agree(steps, scaler, message, folder):
    path = folder / "trainer_state.json"
    path.write_text(path.read_text().replace('"global_step": 6', f'"global_step": {steps}'))
    if scaler:
        (folder / "scaler.pt").write_bytes(b"")
    if message:
        refuse(folder, message)
    else:
        assert any("counts 8 steps, the optimizer 6" in note for note in load(folder).notes)


def test_an_output_folder(folder):
    """It has a folder for each step that was kept."""
    assert load(folder.parent).count == 6
    shutil.copytree(folder, folder.parent / "checkpoint-12")
    refuse(folder.parent, "found 2: checkpoint-6, checkpoint-12; use one of them, such as")


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (["model.safetensors", "config.json"], "found only weights and settings"),
        (["trainer_state.json"], "save_only_model=False"),
        (["model.safetensors", "optimizer_0"], "use the folder that holds it, such as optimizer"),
    ],
)
def test_folders_without_an_optimizer_say_what_to_give(kept, message, folder):
    (folder / "optimizer_0").mkdir()
    for path in folder.iterdir():
        if path.name not in kept:
            path.rmdir() if path.is_dir() else path.unlink()
    refuse(folder, message)


def test_files_without_an_optimizer_say_what_to_give(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "safetensors")
    settings = StandIn(Global("transformers.training_args", "TrainingArguments"), ())
    for name, value in (
        ("training_args.bin", settings),
        ("pytorch_model.bin", {"w": make_tensor(np.ones(3))}),
    ):
        write_archive(tmp_path / name, value, protocol=2)
    write_safetensors(tmp_path / "model.safetensors", {"w": np.ones(3)})
    for name, found in {
        "training_args.bin": r"none, but objects of transformers\.training_args\.Training",
        "pytorch_model.bin": "only weights",
        "model.safetensors": "it holds weights",
    }.items():
        refuse(tmp_path / name, f"found .*{found}.*; [Uu]se the file .*or the folder that has it")


def test_two_files_of_one_name(folder):
    shutil.copy(folder / "optimizer.pt", folder / "optimizer.bin")
    refuse(folder, r"one file called optimizer, found optimizer\.bin, optimizer\.pt")
