"""Recorded checkpoints of trainers that `torch.save` wrote, read without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamx.checkpoint import load, save
from tests.checkpoint.checkpoint_runs import assert_equal

WILD = Path(__file__).parents[1] / "golden" / "wild"
FILES = {
    "objects_beside": "model.pt",
    "torchvision_namespace": "checkpoint.pth",
    "protocol4": "c.pt",
    "ddp_scaler": "checkpoint.pth.tar",
    "tensor_lr": "c.pt",
    "accelerate": "state/optimizer.bin",
}
CODE = """
import sys
sys.modules["torch"] = None
from adamx.checkpoint import load
for path in sys.argv[1:]:
    load(path)
"""


def read(case):
    """The checkpoint; its case; and its truth: arrays by field and name."""
    told = json.loads((WILD / case / "case.json").read_text())
    truth = np.load(WILD / case / "truth.npz")
    path = WILD / case / FILES[case]
    return load(path), told, truth


@pytest.mark.parametrize("case", FILES)
def test_arrays_and_hyperparameters_are_the_recorded_ones(case):
    checkpoint, told, truth = read(case)
    (group,) = told["groups"]
    assert len(checkpoint.names) == len(group["names"])
    for position, name in enumerate(group["names"]):
        own = checkpoint.names[position]
        assert own in (name, str(position))
        assert checkpoint.count == truth[f"step|{name}"]
        for field in ("mu", "nu"):
            found, expected = getattr(checkpoint, field)[own], truth[f"{field}|{name}"]
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        if checkpoint.params:
            np.testing.assert_array_equal(checkpoint.params[name], truth[f"param|{name}"])
    config = group["config"]
    assert checkpoint.config.learning_rate == config["lr"]
    assert (checkpoint.config.b1, checkpoint.config.b2) == tuple(config["betas"])
    assert checkpoint.config.weight_decay == config["weight_decay"]
    assert checkpoint.config.eps == config["eps"]


def test_torch_is_not_imported():
    """Not even where it cannot be."""
    paths = [str(WILD / case / file) for case, file in FILES.items()]
    legacy = WILD.parent / "checkpoints" / "torch_legacy.pt"
    subprocess.run([sys.executable, "-c", CODE, *paths, str(legacy)], check=True, timeout=120)


@pytest.mark.parametrize("case", FILES)
def test_as_its_own_template(case, tmp_path):
    """All that stands beside the state dicts is in the new file, too; torch says so."""
    torch = pytest.importorskip("torch", reason="torch loads what was written")
    checkpoint, _, _ = read(case)
    path = WILD / case / FILES[case]
    new = tmp_path / "new.pt"
    save(new, checkpoint, template=path)
    assert_equal(load(new), checkpoint)
    was, now = (torch.load(p, weights_only=False) for p in (path, new))
    was, now = ({k: v for k, v in x.items() if k not in ("optimizer", "state")} for x in (was, now))
    if case == "accelerate":
        was = now = {}
    assert list(now) == list(was)
    for key, value in was.items():
        assert type(now[key]) is type(value)
        assert repr(now[key]) == repr(value)
