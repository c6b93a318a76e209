"""The command `adamx`, as its user meets it: its arguments, its errors and its exit codes."""

import io
import subprocess
import sys

import pytest

import adamx.cli.loading
import adamx.cli.output
from adamx.cli.main import main
from tests.checkpoint.checkpoint_runs import CHECKPOINTS
from tests.cli.command_runs import KERAS, NAMES, NUMBERED, rows


@pytest.mark.parametrize("command", ["inspect", "convert", "diff"])
@pytest.mark.parametrize("file", ["keras3_model.keras", "tf11_model.h5", "keras3.weights.h5"])
def test_a_damaged_file_is_one_line_that_names_it(run, tmp_path, command, file):
    damaged = tmp_path / file
    damaged.write_bytes((CHECKPOINTS / file).read_bytes()[:20_000])
    other = {"inspect": [], "convert": [tmp_path / "new.safetensors"], "diff": [KERAS]}[command]
    code, out, err = run(command, damaged, *other)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"adamx: error: {damaged}: truncated or damaged ")
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_errors_of_the_operating_system_are_one_line(run, tmp_path):
    missing = tmp_path / "missing.keras"
    expected = (2, [], [f"adamx: error: {missing}: No such file or directory"])
    assert run("inspect", missing) == expected
    assert run("diff", KERAS, missing) == expected
    assert run("convert", KERAS, tmp_path / "new.h5", "--template", missing) == expected
    assert run("convert", KERAS, tmp_path / "new.safetensors", "--order", missing) == expected


@pytest.mark.parametrize(
    "argv",
    [[], ["inspect"], ["convert", "a"], ["diff", "a"], ["convert", "a", "b", "--set", "c=1"]],
)
def test_bad_arguments(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: adamx")


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"adamx {adamx.__version__}\n"


def test_numbered_weights_need_a_configuration(run, settings):
    code, _, err = run("inspect", NUMBERED)
    assert code == 2
    assert err[-1] == "On the command line: --config FILE, or --set FIELD=VALUE"

    config = settings(learning_rate=0.01, beta_1=0.25, loss_scale_factor=None)
    code, out, _ = run("inspect", NUMBERED, "--config", config)
    assert code == 0
    assert "b1             0.25" in out
    assert list(rows(out)) == NAMES


def test_a_configuration_may_not_tell_its_generation(run, settings):
    config = settings(learning_rate=0.01)
    code, _, err = run("inspect", NUMBERED, "--config", config)
    assert code == 2
    assert err[0].startswith(f"adamx: error: {config}: generation: expected one of tf1, ")
    assert err[-1] == "On the command line: --generation NAME"
    code, _, _ = run("inspect", NUMBERED, "--config", config, "--generation", "keras3")
    assert code == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"lr": -1}', "\xff"])
def test_a_malformed_configuration_is_named(run, tmp_path, text):
    config = tmp_path / "config.json"
    config.write_bytes(text.encode("latin-1"))
    code, _, err = run("inspect", NUMBERED, "--config", config)
    assert code == 2
    assert err[0].startswith(f"adamx: error: {config}: ")


def test_interrupted(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(adamx.cli.loading, "load", interrupted)
    assert run("inspect", KERAS) == (130, [], [])


class Terminal(io.StringIO):
    def isatty(self):  # noqa: D102
        return True


def test_progress_is_for_who_waits_at_a_terminal(monkeypatch, tmp_path):
    def shown(target, error):
        monkeypatch.setattr(sys, "stderr", error)
        assert main(["convert", str(KERAS), str(tmp_path / target)]) == 0
        return error.getvalue()

    assert shown("small.safetensors", Terminal()) == ""
    monkeypatch.setattr(adamx.cli.output, "_LARGE", 0)
    assert shown("unseen.safetensors", io.StringIO()) == ""
    seen = shown("seen.safetensors", Terminal())
    assert "reading keras3_model.keras" in seen
    assert "writing seen.safetensors" in seen
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert shown("without_rich.safetensors", Terminal()) == ""


@pytest.mark.slow
def test_as_a_module_for_a_reader_that_leaves():
    command = [sys.executable, "-m", "adamx", "inspect", str(KERAS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout.splitlines()[0]) == ("", f"file              {KERAS}")
    assert list(rows(done.stdout.splitlines())) == NAMES
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 141)
