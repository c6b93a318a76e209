"""Folders that DeepSpeed wrote on one and two ranks, of its three stages, and Universal ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamx.checkpoint import load, save
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
    run(SCRIPT, path)
    return path


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run(command, check=True, timeout=300, env=environment)


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


@pytest.fixture(scope="module")
def universal(folder):
    """Universal Checkpoints by the names of the folders of two ranks that they are of."""
    made = {}
    options = ("--num_extract_workers", 1, "--num_merge_workers", 1, "--inject_missing_state")
    for name in (f"stage{stage}_ranks2{end}" for stage in (2, 3) for end in ("", "_later")):
        made[name] = folder / f"universal_{name}"
        step = (folder / name / "latest").read_text()
        folders = ("--input_folder", folder / name / step, "--output_folder", made[name])
        run("-m", "deepspeed.checkpoint.ds_to_universal", *folders, *options)
    return made


def test_universal_checkpoints_are_the_same(folder, universal):
    for name, path in universal.items():
        assert_equal(load(path), load(folder / name))


def test_deepspeed_goes_on_with_written_folders(folder, universal):
    """The state of a later step in the folder of an earlier one is that step's own folder.

    DeepSpeed's count of a Universal Checkpoint of stage 3 grows by one for each group at each step,
    from its own folder, too.
    """
    names = [f"stage{stage}_ranks{ranks}" for stage in STAGES for ranks in RANKS]
    names += [path.name for name, path in universal.items() if not name.endswith("_later")]
    for name in names:
        save(folder / f"{name}_written", load(folder / f"{name}_later"), template=folder / name)
    run(SCRIPT, folder, *(f"{name}_{end}" for name in names for end in ("later", "written")))
    for name in names:
        found = load(folder / f"{name}_written_resumed")
        assert found.count == (12 if name == "universal_stage3_ranks2" else 9), name
        assert_equal(found, load(folder / f"{name}_later_resumed"))
