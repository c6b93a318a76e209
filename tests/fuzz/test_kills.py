"""A writer that is killed leaves the old file or the new one, never a part of one."""

import dataclasses
import random
import signal
import subprocess
import sys
import time

import pytest

from adamx.checkpoint import load, save
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, assert_equal

KILLS = 15
# Saves two checkpoints in turn to the same path, until it is killed.
WRITER = """
import itertools, sys
from adamx.checkpoint import load, save
target, first, second, template = sys.argv[1:]
both = [load(first), load(second)]
print("ready", flush=True)
for checkpoint in itertools.cycle(both):
    save(target, checkpoint, template=template or None)
"""


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["state.safetensors", "model.keras", "model.h5"])
def test_killed_while_writing(name, tmp_path):
    sources = {"model.h5": "tfkeras_model.h5"}
    first = CHECKPOINTS / sources.get(name, "keras3_model.keras")
    second, target = tmp_path / f"second_{name}", tmp_path / name
    template = "" if name.endswith("safetensors") else first
    old = load(first)
    new = load_changed(old, second, template)
    save(target, old, template=template or None)
    outcomes = []
    rng = random.Random(0)
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, target, first, second, template],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.4))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        found = load(target)
        outcomes.append(found.count)
        expected = old if found.count == old.count else new
        assert_equal(found, expected)
    left = len(list(tmp_path.glob(".*.tmp")))
    print(f"{name}: {KILLS} kills, {left} in the midst of a write; steps {outcomes}")
    assert left > 0
    assert len(set(outcomes)) == 2


def load_changed(checkpoint, path, template):
    """The same at another step, in a file."""
    save(path, dataclasses.replace(checkpoint, count=31), template=template or None)
    return load(path)
