"""Folders that `torch.distributed.checkpoint` writes on several ranks, each with a part of all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamx.checkpoint import load
from tests.checkpoint.checkpoint_runs import assert_equal

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked"),
]

SCRIPT = Path(__file__).with_name("write_distributed.py")
RANKS = (1, 2, 4)


def test_the_same_state_from_any_number_of_ranks(tmp_path):
    command = [sys.executable, SCRIPT, tmp_path, *RANKS]
    subprocess.run(list(map(str, command)), check=True, timeout=180)
    whole = load(tmp_path / "ranks_1")
    assert (whole.count, len(whole.names), len(whole.params)) == (3, 6, 6)
    for ranks in RANKS:
        folder = tmp_path / f"ranks_{ranks}"
        split = load(folder)
        assert len(list(folder.glob("*.distcp"))) == ranks
        assert set(split.naming.values()) == {"file"}
        assert_equal(split, whole)
        assert_equal(load(f"{folder}_behind"), whole)
        shards = load(f"{folder}_shards", config=whole.config)
        assert shards.names == tuple(sorted(whole.names))
        assert (shards.count, shards.ordered) == (whole.count, False)
        for field in ("params", "mu", "nu"):
            for name, array in getattr(whole, field).items():
                np.testing.assert_array_equal(getattr(shards, field)[name], array, strict=True)
