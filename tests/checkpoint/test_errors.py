"""The one error of checkpoints: an object with fields, whose text nobody reads."""

import ast
import pickle
from pathlib import Path

import pytest

import adamx
from adamx.base.errors import InvalidValue
from adamx.checkpoint import CheckpointError, load, save
from adamx.checkpoint.errors import convert_error, name_file
from adamx.cli.main import main
from adamx.cli.output import explain
from tests.checkpoint.checkpoint_runs import CHECKPOINTS

ROOMS = [Path(adamx.__file__).parent / room for room in ("checkpoint", "cli")]
FILES = sorted(file for room in ROOMS for file in room.rglob("*.py"))
ARGUMENTS = {"checkpoint", "config", "format", "generation", "layout", "moments", "names", "order"}
ARGUMENTS |= {"optimizer", "strict", "template", "transformation", "weights"}
# What other packages raise has no fields: these show its text.
SHOWN = {"_hugging_face_order.py", "_orbax_arrays.py", "errors.py"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_text_of_an_error_is_not_read(file):
    for handler in ast.walk(ast.parse(file.read_text())):
        if isinstance(handler, ast.ExceptHandler) and file.name not in SHOWN:
            texts = [
                node.args[0]
                for node in ast.walk(handler)
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("str", "repr")
            ]
            assert handler.name not in [getattr(text, "id", "") for text in texts]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_arguments_are_known(file):
    """Those that errors name; `None` and names of variables are not looked at."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "argument":
            texts = {text.value for text in ast.walk(node) if isinstance(text, ast.Constant)}
            assert {text for text in texts if isinstance(text, str)} <= ARGUMENTS


def test_fields_make_the_sentence():
    error = CheckpointError(where="a/b", expected="one", found=2, remedy="give order=")
    assert str(error) == "a/b: expected one, found 2; give order="
    again = pickle.loads(pickle.dumps(error.replace(argument="order")))
    assert (str(again), again.where, again.argument) == (str(error), "a/b", "order")


def test_errors_of_other_rooms_keep_their_fields():
    error = convert_error(
        InvalidValue("too large", where="b1", argument="config"), remedy="Halve it"
    )
    assert isinstance(error, CheckpointError)
    assert (error.where, error.argument, str(error)) == ("b1", "config", "b1: too large. Halve it")
    assert str(convert_error(OSError("gone"))) == "gone"


def raised(error, path=Path("x.h5")):
    with pytest.raises(CheckpointError) as caught, name_file(path, "h5 file"):
        raise error
    return caught.value


def test_the_file_is_named():
    inner = CheckpointError(where="a", expected="one", argument="order")
    error = raised(inner)
    assert (str(error), error.where, error.argument) == (
        "x.h5: a: expected one",
        "x.h5: a",
        "order",
    )
    again = "; copy it again from where it was saved"
    assert str(raised(KeyError("mu"))) == f"x.h5: truncated or damaged h5 file: 'mu'{again}"
    deep = f"x.h5: truncated or damaged h5 file: RecursionError{again}"
    assert str(raised(RecursionError())) == deep
    assert isinstance(raised(KeyError("mu")).__cause__, KeyError)


@pytest.mark.parametrize("error", [ImportError("h5py"), FileNotFoundError(2, "no", "x.h5")])
def test_what_is_no_damage_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, name_file(Path("x.h5"), "h5 file"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("field", ["problem", "where", "expected", "found", "remedy"])
def test_what_a_file_says_is_made_legible(field):
    error = raised(CheckpointError(**{field: "\x1b[2J" + "x" * 100_000 + "\n"}))
    assert "\x1b" not in str(error)
    assert "\\x1b[2J" in str(error)
    assert len(str(error)) < 1_600
    assert raised(CheckpointError(found="x" * 10_000, remedy="Stop", where="a")).remedy == "Stop"


OPTIONS = {
    "checkpoint": "--set FIELD=VALUE",
    "config": "--config FILE, or --set FIELD=VALUE",
    "format": "--to FORMAT",
    "generation": "--generation NAME",
    "optimizer": "--optimizer KEY",
    "order": "--order FILE",
    "strict": "--names FILE, or without --strict",
    "names": "--names FILE",
    "template": "--template FILE",
    "weights": "--weights KEY",
}


@pytest.mark.parametrize("argument", [*sorted(ARGUMENTS), None])
def test_an_argument_is_an_option_of_the_command(argument):
    text = explain(CheckpointError("give config= or template=", argument=argument))
    hint = f"\nOn the command line: {OPTIONS[argument]}" if argument in OPTIONS else ""
    assert text == f"give config= or template={hint}"


def test_arguments_that_answer(tmp_path):
    """One error for each, as a user gets it."""
    keras, torch = CHECKPOINTS / "keras3_model.keras", CHECKPOINTS / "torch_names.pt"
    weights = CHECKPOINTS / "keras3_frozen.weights.h5"
    assert argument_of(lambda: load(weights)) == "config"
    assert argument_of(lambda: save(tmp_path / "x.keras", load(keras))) == "template"
    assert argument_of(lambda: save(tmp_path / "x", load(keras))) == "format"
    tree = {"in": {"kernel": load(keras).params["in/kernel"]}}
    assert argument_of(lambda: load(keras).restore(tree)) == "order"
    assert argument_of(lambda: load(torch).restore(tree, order=["in/kernel"])) == "order"
    by_step = load(torch, config={"decay": 0.1})
    assert argument_of(lambda: save(tmp_path / "x.pt", by_step)) == "checkpoint"


def argument_of(call):
    with pytest.raises(CheckpointError) as caught:
        call()
    return caught.value.argument


def test_the_command_says_which_option(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"learning_rate": 0.1}')
    weights = str(CHECKPOINTS / "keras3.weights.h5")
    assert main(["inspect", weights, "--config", str(tmp_path / "config.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"adamx: error: {tmp_path / 'config.json'}: generation: expected one of"
    )
    assert error.endswith("\nOn the command line: --generation NAME\n")
