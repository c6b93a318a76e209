"""What `python -m benchmarks` says before it begins, which is minutes before it ends."""

import sys

import pytest

import adamx
from benchmarks.__main__ import _options, main
from benchmarks.contenders import why_not_imported
from benchmarks.measure import measure
from benchmarks.races import RACES
from benchmarks.workloads import WORKLOADS

PROMOTES = True  # Optax's parts do


@pytest.mark.parametrize(
    ("option", "file", "message"),
    [
        ("--plot", "x.txt", "x.txt: expected a name in .png"),
        ("--plot", "x", "x: expected a name in .png"),
        ("--plot", "nowhere/x.png", "expected a file in a folder that is there"),
        ("--json", "nowhere/x.json", "expected a file in a folder that is there"),
        ("--json", "x.png", "x.png: expected a name in .json"),
    ],
)
def test_files_that_cannot_be_written(option, file, message, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["benchmarks", option, file])
    with pytest.raises(SystemExit):
        _options()
    assert message in capsys.readouterr().err


def test_without_the_kernel_the_first_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(adamx.native, "status", lambda: adamx.native.Status(False, "turned off"))
    monkeypatch.setattr("benchmarks.__main__.about", lambda _: sys.exit("after the first line"))
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    with pytest.raises(SystemExit, match="after the first line"):
        main()
    assert "WITHOUT its compiled kernel: turned off" in capsys.readouterr().out.splitlines()[0]


def test_packages_that_are_not_there():
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert why_not_imported(missing) == "torch is not installed"
    assert why_not_imported(ImportError("libtorch.so: cannot open")).endswith("cannot open")


def test_contenders_are_those_of_the_race(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--moments", "8bit", "--contenders", "8bit"])
    assert _options().contenders == ["float32", "8bit"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--contenders", "8bit"])
    with pytest.raises(SystemExit):
        _options()
    assert "--contenders: 8bit: expected step, packed" in capsys.readouterr().err


def test_contenders_of_a_race_do_the_same_work(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "tiny", {"matrix": (64, 64), "vector": (3,)})
    result = measure("tiny", list(RACES["8bit"].contenders), "8bit", 1, 0, 1, None)
    assert result.contenders.keys() | result.absent.keys() == RACES["8bit"].contenders.keys()
    assert result.contenders["8bit"].distance > 0 == result.contenders["float32"].distance
    assert result.speed("float32").median == 1
