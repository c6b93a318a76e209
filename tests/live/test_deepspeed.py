"""Folders that DeepSpeed wrote on one and two ranks, of its three stages, and Universal ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamx.checkpoint import load
from tests.checkpoint.checkpoint_runs import assert_equal

pytest.importorskip("torch")
pytest.importorskip("deepspeed", reason="see the deepspeed session")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked"),
]

SCRIPT = Path(__file__).with_name("write_deepspeed.py")
STAGES, RANKS = (1, 2, 3), (1, 2)
ROUNDING = 5e-7  # of sums over ranks, relative to the largest; 3.3e-7 measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for each stage and number of ranks, and what was trained without DeepSpeed."""
    path = tmp_path_factory.mktemp("deepspeed")
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(SCRIPT), str(path)]
    subprocess.run(command, check=True, timeout=300, env=environment)
    return path


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_stage_has_the_state_of_one_process(folder, stage, ranks):
    expected = load(folder / "alone.pt")
    found = load(folder / f"stage{stage}_ranks{ranks}")
    assert set(found.naming.values()) == {"file"}
    assert found.names == expected.names
    assert found.groups == expected.groups
    for field in ("params", "mu", "nu"):
        for name, array in getattr(expected, field).items():
            limit = ROUNDING * np.max(np.abs(array))
            np.testing.assert_allclose(getattr(found, field)[name], array, rtol=0, atol=limit)


@pytest.mark.parametrize("stage", [2, 3])
def test_universal_checkpoints_are_the_same(folder, stage):
    source = folder / f"stage{stage}_ranks2"
    target = folder / f"universal{stage}"
    module = "deepspeed.checkpoint.ds_to_universal"
    step = (source / "latest").read_text()
    arguments = ["--input_folder", str(source / step), "--output_folder", str(target)]
    arguments += [
        "--num_extract_workers",
        "1",
        "--num_merge_workers",
        "1",
        "--inject_missing_state",
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, timeout=120, env=environment
    )
    assert_equal(load(target), load(source))
