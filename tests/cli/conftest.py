"""Fixtures of the command's tests."""

import json

import pytest

from adamx.cli.main import main


@pytest.fixture
def run(capsys):
    """Run the command: its exit code, and the lines of both outputs."""

    def ran(*argv):
        code = main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return ran


@pytest.fixture
def settings(tmp_path):
    """Write a configuration of Keras as JSON."""

    def written(**config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return path

    return written
