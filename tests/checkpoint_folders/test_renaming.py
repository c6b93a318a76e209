"""Names that a model of torch has for its optimizer's variables, given to a checkpoint."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, ParameterGroup, load, torch_names
from adamx.cli.main import main
from tests.checkpoint_files.wild_cases import check_arrays, check_names, read_case

SHAPES = {"body.weight": (2, 3), "body.bias": (3,), "head.weight": (2, 3)}
NAMES = list(SHAPES)
DOCS = Path(__file__).parents[2] / "docs" / "guides" / "checkpoints.md"


def numbered(weights=SHAPES, frozen=()):
    """A checkpoint of two groups that has numbers alone."""
    arrays = {str(i): np.full(s, i + 1.0) for i, s in enumerate(SHAPES.values()) if i not in frozen}
    config = AdamConfig(convention="torch")
    parts = [("0", "2"), ("1",)]
    return Checkpoint(
        framework="torch",
        version=None,
        groups=[ParameterGroup(names=part, config=config, count=3) for part in parts],
        params={name: np.zeros(shape) for name, shape in weights.items()},
        mu=arrays,
        nu=arrays,
    )


IN_ORDER = ["body.weight", "head.weight", "body.bias"]  # of the groups


@pytest.mark.parametrize("frozen", [(), (2,)])
def test_all_that_has_names_is_renamed(frozen):
    found = numbered(frozen=frozen).rename(IN_ORDER)
    assert [group.names for group in found.groups] == [
        ("body.weight", "head.weight"),
        ("body.bias",),
    ]
    assert found.naming == dict.fromkeys(IN_ORDER, "file")
    numbers = {"body.weight": 1, "body.bias": 2, "head.weight": 3}
    for arrays in (found.mu, found.nu):
        assert {name: array.flat[0] for name, array in arrays.items()} == {
            name: n for name, n in numbers.items() if n - 1 not in frozen
        }


@pytest.mark.parametrize(
    ("wrapper", "in_weights"),
    [("module.", True), ("_orig_mod.", True), ("module._orig_mod.", False), ("module.", False)],
)
def test_wrappers_make_no_difference(wrapper, in_weights):
    wrapped = [wrapper + name for name in IN_ORDER]
    weights = {wrapper + n: s for n, s in SHAPES.items()} if in_weights else SHAPES
    found = numbered(weights).rename(IN_ORDER if in_weights else wrapped)
    assert list(found.names) == (wrapped if in_weights else IN_ORDER)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES, "body.bias: expected shape (3,), found (2, 3)"),
        (NAMES[:2], "expected 3 names, one for each variable of the optimizer, found 2"),
        ([*IN_ORDER[:2], "body.weight"], "expected every name once, found body.weight twice"),
        ([*IN_ORDER[:2], "tail.bias"], "names of the weights in the file, which are body.weight,"),
        ("body.weight", "expected a list of names, found str"),
        ([*IN_ORDER[:2], 7], "expected names such as 'hidden.weight', found 7"),
        ([*IN_ORDER[:2], ""], "expected names such as 'hidden.weight', found ''"),
    ],
)
def test_names_that_do_not_fit(names, message):
    with pytest.raises((CheckpointError, TypeError), match=re.escape(message)):
        numbered().rename(names)


def test_without_weights_any_names_will_do():
    assert numbered({}).rename(["x", "y", "z"]).names == ("x", "y", "z")


class Array:
    """Compares by value, as a tensor does."""

    def __init__(self, shape):
        self.shape = shape

    def __eq__(self, other):
        raise AssertionError("a tensor was compared by value")

    def __hash__(self):
        raise TypeError("not by its value")


def make_model(prefix=""):
    """A model and its optimizer of two groups."""
    parameters = {prefix + name: Array(shape) for name, shape in SHAPES.items()}
    groups = [[parameters[prefix + name] for name in part] for part in (IN_ORDER[:2], IN_ORDER[2:])]
    model = SimpleNamespace(named_parameters=lambda: iter(parameters.items()))
    return model, SimpleNamespace(param_groups=[{"params": group} for group in groups])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_names_are_those_of_the_groups(prefix, tmp_path, monkeypatch):
    model, optimizer = make_model(prefix)
    assert torch_names(model, optimizer) == IN_ORDER
    [script] = re.findall(r"```python\n(names = \{\}\n.*?)```", DOCS.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(script, {"model": model, "optimizer": optimizer})
    assert Path("names.txt").read_text().split() == IN_ORDER


def test_a_module_called_module_keeps_its_name():
    """Unless all of the model is within it."""
    parameters = [("module.weight", Array((2,))), ("weight", Array((2,)))]
    model = SimpleNamespace(named_parameters=lambda: iter(parameters))
    optimizer = SimpleNamespace(param_groups=[{"params": [p for _, p in parameters[::-1]]}])
    assert torch_names(model, optimizer) == ["weight", "module.weight"]


def test_parameters_of_another_model():
    _, optimizer = make_model()
    with pytest.raises(CheckpointError, match=r"number 0 of shape \(2, 3\), number 1 of shape"):
        torch_names(make_model()[0], optimizer)


def test_the_command_takes_names(tmp_path, capsys):
    case, target = read_case("hf_trainer"), tmp_path / "new.safetensors"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(case.names))
    strict = ["--strict", "--names", str(names)]
    assert main(["convert", str(case.path), str(target), *strict]) == 0
    found = load(target)
    check_names(case, found)
    check_arrays(case, found)
    names.write_text("\n".join(case.names[1:]))
    assert main(["inspect", str(case.path), "--names", str(names)]) == 2
    assert "expected 16 names, one for each variable" in (told := capsys.readouterr().err)
    assert "On the command line: --names FILE" in told
    assert main(["inspect", str(case.path), "--strict"]) == 2
