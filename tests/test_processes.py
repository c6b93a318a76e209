"""Two and four real processes, connected over loopback: the program of examples/data_parallel.py.

Each run has eight devices altogether, so the same program is compiled in each.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.processes

EXAMPLE = Path(__file__).parents[1] / "examples" / "data_parallel.py"
STEPS = 40
HELD = re.compile(r"each device holds ([\d,]+) bytes of ([\d,]+)")


def run(folder: Path, processes: int, *options: str) -> tuple[str, dict[str, np.ndarray]]:
    """What the program printed, and its losses and final parameters."""
    out = folder / f"{processes}.npz"
    command = [sys.executable, str(EXAMPLE), "--processes", str(processes), "--steps", str(STEPS)]
    done = subprocess.run(
        [*command, "--out", str(out), *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(out) as arrays:
        return done.stdout, dict(arrays)


def farthest(arrays, others):
    assert arrays.keys() == others.keys()
    return max(np.max(np.abs(arrays[name] - others[name])) for name in arrays if name != "losses")


def test_the_same_run_in_any_number_of_processes(tmp_path):
    """Two save after a third of the steps, four go on from that and save, one finishes."""
    printed, expected = run(tmp_path, 1)
    assert len(expected["losses"]) == STEPS
    assert expected["losses"][-1] < expected["losses"][0] / 4
    held, whole = (int(x.replace(",", "")) for x in HELD.search(printed).groups())
    assert held <= whole / 7.5

    losses, final = [], {}
    for processes, stop_at in ((2, STEPS // 3), (4, 2 * STEPS // 3), (1, STEPS)):
        folder = ("--checkpoint", str(tmp_path / "saved"), "--stop-at", str(stop_at))
        printed, final = run(tmp_path, processes, *folder)
        assert f"8 devices of {processes} processes" in printed
        assert HELD.search(printed).group(1) == f"{held:,}"
        losses += list(final["losses"])
        assert len(losses) == stop_at
    # The sums are in the order of gloo; measured: 2e-7 and 7e-7.
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=5e-7)
    assert farthest(final, expected) <= 2e-6


def test_a_process_that_fails_stops_the_others(tmp_path):
    missing = tmp_path / "file"
    missing.write_text("not a folder")
    with pytest.raises(AssertionError, match="Traceback"):
        run(tmp_path, 2, "--checkpoint", str(missing))
