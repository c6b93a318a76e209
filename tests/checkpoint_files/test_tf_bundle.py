"""TensorFlow's checkpoints that TensorFlow wrote, against the recorded truth."""

import dataclasses
import json
import shutil
import sys
import warnings

import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load, save
from adamx.cli.main import main
from tests.checkpoint_files.wild_cases import check_arrays, check_steps, read_case, shorten

GENERATIONS = {
    "tf1_saver": "tf1",
    "tf2_tfkeras": "tf_keras_legacy",
    "tf2_tfkeras_current": "tf_keras",
    "tf2_keras3": "keras3",
}


def config_of(case):
    """The configuration of the run, as its generation of TensorFlow had it."""
    generation = GENERATIONS[case.path.parent.name]
    settings = case.told["groups"][0]["config"]
    rate = "lr" if generation == "tf1" else "learning_rate"
    given = {rate: settings["lr"], "epsilon": settings["eps"]}
    given |= dict(zip(("beta_1", "beta_2"), settings["betas"], strict=True))
    given |= {"amsgrad": True} if settings["amsgrad"] else {}
    return AdamConfig.from_keras(given, generation)


def steps_of(case):
    [steps] = {int(step) for step in case.truth["step"].values()}
    return steps


@pytest.fixture(params=GENERATIONS)
def case(request):
    return read_case(request.param)


@pytest.fixture
def checkpoint(case, monkeypatch):
    """As it is read without TensorFlow, and without a warning."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(case.path, config=config_of(case))


def test_the_truth(case, checkpoint):
    generation = GENERATIONS[case.path.parent.name]
    assert checkpoint.framework == generation
    assert set(checkpoint.naming.values()) == {"file"}
    # The file of TensorFlow 1 has names alone, sorted.
    order = sorted if generation == "tf1" else list
    assert [shorten(name) for name in checkpoint.names] == order(case.names)
    check_arrays(case, checkpoint)
    assert set(checkpoint.params) == set(checkpoint.names)
    unread = [name.partition("/")[0] for name in checkpoint.not_read]
    assert unread == ([] if generation == "tf1" else ["save_counter"])


def test_an_order_that_torch_can_take(case, checkpoint, tmp_path):
    """Lists are in the optimizer's order; names, and slots, are not."""
    has_lists = GENERATIONS[case.path.parent.name] in ("tf_keras", "keras3")
    assert checkpoint.ordered is has_lists
    config = AdamConfig(convention="torch", amsgrad=checkpoint.config.amsgrad)
    group = dataclasses.replace(checkpoint.groups[0], config=config)
    checkpoint = dataclasses.replace(checkpoint, groups=(group,))
    if has_lists:
        save(tmp_path / "x.pt", checkpoint)
        shapes = [case.truth["param"][name].shape[::-1] for name in case.names]
        assert [array.shape for array in load(tmp_path / "x.pt").mu.values()] == shapes
        return
    with pytest.raises(
        CheckpointError, match="order: expected the order of the parameters in the model"
    ):
        save(tmp_path / "x.pt", checkpoint)


def test_training_continues(case, checkpoint):
    check_steps(case, checkpoint)


def test_what_a_user_may_give(case, tmp_path):
    """The prefix, the index, and a folder with the text file `checkpoint` or without it."""
    folder = tmp_path / "run"
    shutil.copytree(case.path.parent, folder)
    named = {path: load(path, config=config_of(case)) for path in (folder, folder / case.path.name)}
    (folder / "checkpoint").unlink(missing_ok=True)
    for path in (folder, folder / f"{case.path.name}.index"):
        named[path] = load(path, config=config_of(case))
    saved_model = tmp_path / "saved" / "variables"
    saved_model.mkdir(parents=True)
    for file in folder.glob(f"{case.path.name}.*"):
        shutil.copy(file, saved_model / file.name.replace(case.path.name, "variables"))
    named |= {
        path: load(path, config=config_of(case)) for path in (saved_model, saved_model.parent)
    }
    for checkpoint in named.values():
        assert checkpoint.count == steps_of(case)
        assert set(checkpoint.mu) == set(checkpoint.names)


def test_a_folder_with_several(tmp_path):
    case = read_case("tf2_keras3")
    for file in case.path.parent.glob("ckpt-1.*"):
        shutil.copy(file, tmp_path / file.name)
        shutil.copy(file, tmp_path / file.name.replace("ckpt-1", "ckpt-2"))
    with pytest.raises(CheckpointError, match=r"that names the newest, found ckpt-1, ckpt-2"):
        load(tmp_path, config=config_of(case))
    # A folder may have been moved: the path in the text file is not followed.
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/etc/ckpt-2"\n')
    assert load(tmp_path, config=config_of(case)).count == 8
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../ckpt-3"\n')
    with pytest.raises(CheckpointError, match=r"one of ckpt-1, ckpt-2, found 'ckpt-3'"):
        load(tmp_path, config=config_of(case))


ASKED = {
    "tf1_saver": r'b1=0\.9, b2=0\.999, .*\{"lr": \.\.\., "beta_1": 0\.9, "beta_2": 0\.999, '
    r'"decay": \.\.\., "epsilon": 1e-8\}, "tf1"\)',
    "tf2_tfkeras": r'decay=0\.0.*"learning_rate": 0\.001, "beta_1": 0\.9, "beta_2": 0\.999, '
    r'"decay": 0\.0, "epsilon": 1e-7\}, "tf_keras_legacy"\)',
    "tf2_tfkeras_current": r'learning_rate=0\.001, .*"beta_2": \.\.\., "epsilon": 1e-7\}, '
    r'"tf_keras"\)',
    "tf2_keras3": r'"learning_rate": 0\.001, "beta_1": \.\.\., .*"epsilon": 1e-7\}, "keras3"\)',
}


@pytest.mark.parametrize("name", ASKED)
def test_the_error_without_config_says_what_the_file_tells(name):
    case = read_case(name)
    with pytest.raises(CheckpointError, match=ASKED[name]) as caught:
        load(case.path)
    assert caught.value.argument == "config"
    assert "epsilon, clipping and weight decay are never stored" in str(caught.value)


CONTRADICTIONS = {
    "tf1_saver": {"b1": 0.8, "b2": 0.99, "convention": "optax"},
    "tf2_tfkeras": {"b1": 0.8, "learning_rate": 0.1, "decay": 0.5, "convention": "torch"},
    "tf2_keras3": {"learning_rate": 0.1, "convention": "optax"},
}
TOLD = {"b1": 0.9, "b2": 0.999, "learning_rate": 0.001, "decay": 0.0, "convention": "'keras'"}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_warns_with_both_values(name):
    case = read_case(name)
    given = CONTRADICTIONS[name]
    with pytest.warns(UserWarning, match="config= contradicts the file") as caught:
        checkpoint = load(case.path, config=AdamConfig(**given))
    [warning] = caught
    assert warning.filename == __file__
    text = str(warning.message)
    for field, value in given.items():
        assert f"{field} {TOLD[field]}" in text
        assert f"given {value!r}" in text
    assert checkpoint.config == AdamConfig(**given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="contradicts"):
            load(case.path, config=AdamConfig(**given))
    assert checkpoint.count == steps_of(case)


def test_amsgrad_is_in_the_file():
    for name, amsgrad in (("tf2_tfkeras", False), ("tf2_tfkeras_current", True)):
        case = read_case(name)
        config = AdamConfig(convention="keras", amsgrad=not amsgrad)
        with pytest.raises(CheckpointError, match=f"amsgrad: the file has {amsgrad},") as caught:
            load(case.path, config=config)
        assert caught.value.argument == "config"


def test_saving_says_what_to_do_instead(tmp_path, capsys):
    case = read_case("tf2_keras3")
    checkpoint = load(case.path, config=config_of(case))
    for target, chosen in (("x.index", None), ("x", "tensorflow")):
        with pytest.raises(
            CheckpointError, match=r"save it there with tf\.train\.Checkpoint"
        ) as caught:
            save(tmp_path / target, checkpoint, format=chosen)
        assert caught.value.argument == "format"
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        main(["convert", "x", "y", "--to", "tensorflow"])
    assert "invalid choice: 'tensorflow'" in capsys.readouterr().err
    assert save(tmp_path / "x.npz", checkpoint) != ()


def test_the_command_takes_a_prefix(tmp_path, capsys):
    case = read_case("tf2_tfkeras")
    (tmp_path / "config.json").write_text(json.dumps(config_of(case).to_keras("tf_keras_legacy")))
    options = ["--config", str(tmp_path / "config.json"), "--generation", "tf_keras_legacy"]
    assert main(["inspect", str(case.path), *options]) == 0
    shown = capsys.readouterr().out
    assert "z/kernel" in shown
    assert "8 steps" in shown
