"""Two and four real processes, connected over loopback: the program of examples/data_parallel.py.

Each run has eight devices altogether, so the same program is compiled in each.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.processes

EXAMPLE = Path(__file__).parents[2] / "examples" / "data_parallel.py"
STEPS = 40
HELD = re.compile(r"each device holds ([\d,]+) bytes of ([\d,]+)")


def run(folder: Path, processes: int, *options: str) -> tuple[str, dict[str, np.ndarray]]:
    """What the program printed, and its losses and final parameters."""
    out = folder / str(processes)
    command = [sys.executable, str(EXAMPLE), "--processes", str(processes), "--steps", str(STEPS)]
    done = subprocess.run(
        [*command, "--out", str(out), *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    path = out / "data_parallel.npz"
    assert f"the losses and the parameters are in {path}" in done.stdout
    with np.load(path) as arrays:
        return done.stdout, dict(arrays)


def farthest(arrays, others):
    assert arrays.keys() == others.keys()
    return max(np.max(np.abs(arrays[name] - others[name])) for name in arrays if name != "losses")


def test_the_same_run_in_any_number_of_processes(tmp_path):
    """Two save after a third of the steps, four continue from that and save, one finishes."""
    printed, expected = run(tmp_path, 1)
    assert len(expected["losses"]) == STEPS
    assert expected["losses"][-1] < expected["losses"][0] / 4
    held, whole = (int(x.replace(",", "")) for x in HELD.search(printed).groups())
    assert held <= whole / 7.5

    losses, final, folder = [], {}, ("--checkpoint", str(tmp_path / "saved"))
    for processes, stop_at in ((2, STEPS // 3), (4, 2 * STEPS // 3), (1, STEPS)):
        printed, final = run(tmp_path, processes, *folder, "--stop-at", str(stop_at))
        assert f"8 devices of {processes} processes" in printed
        assert HELD.search(printed).group(1) == f"{held:,}"
        losses += list(final["losses"])
        assert len(losses) == stop_at
    # The sums are in the order of gloo; measured: 2e-7 and 7e-7.
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=5e-7)
    assert farthest(final, expected) <= 2e-6

    # Another seed would be tested on images of the first one's training set.
    command = [sys.executable, str(EXAMPLE), "--steps", str(STEPS), "--seed", "1", *folder]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "expected the settings of this run" in done.stderr


@pytest.mark.parametrize("signalled", ["a process", "the starter"])
def test_none_outlives_the_others(signalled, tmp_path):
    """One process that is killed ends all, and so does the end of what started them."""
    command = [sys.executable, str(EXAMPLE), "--processes", "2", "--steps", "1000000"]
    command += ["--out", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        starter = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: "step 50:" in (tmp_path / "log").read_text(errors="replace"), 120)
        children = children_of(starter.pid)
        assert len(children) == 2
        if signalled == "a process":
            os.kill(children[1], signal.SIGKILL)
        else:
            starter.terminate()
        assert starter.wait(10) != 0
        wait_for(lambda: not any(map(is_alive, children)), 10)
    finally:
        starter.terminate()
        starter.wait(10)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def stat(pid):
    """The state of a process and its parent, as Linux tells them."""
    state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def children_of(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if stat(path.name)[1] == pid:
                found.append(int(path.name))
    return sorted(found)


def is_alive(pid):
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False
