"""examples/preemptible.py with checkpoints that are damaged, gone, or too large for the disk.

pytest -m fuzz tests/fuzz/test_checkpoint_damage.py
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from tests.fuzz.flipped_bits import by_path, example, flip
from tests.fuzz.preemptible_runs import (
    EVERY,
    STEPS,
    arrays,
    assert_same_bits,
    finished,
    live,
    parameters,
    unfinished,
)

pytestmark = pytest.mark.fuzz

LAST, BEFORE = STEPS, STEPS - EVERY
FLIPS = 20  # in each file
# How far parameters are apart after 30 steps on 8 devices and 30 on 1, 2 or 4, from those of 60 on
# 8: measured is 2^-25 each time, half the last place of a number around 0.5. This is twice that.
APART = 2.0**-24


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("damage") / "whole"
    assert live(out, "--keep", STEPS).began == 0
    return out


def copied(run, name):
    """The folder of a run once more, with its last three checkpoints and without its result."""
    out = run.with_name(name)
    shutil.copytree(run, out)
    (out / "params.npz").unlink()
    for step in finished(out)[:-3]:
        shutil.rmtree(out / "checkpoints" / str(step))
    return out


def array_file(checkpoint):
    return max(checkpoint.glob("run/ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_at(path, *fractions):
    for fraction in fractions:
        flip(path, int(8 * path.stat().st_size * fraction))


def flip_in_an_array(checkpoint):
    """The lowest bit of one number, in files that are otherwise as if Orbax had written it so."""
    store = {"driver": "ocdbt", "base": f"file://{checkpoint / 'run'}"}
    spec = {"driver": "zarr", "kvstore": {**store, "path": "state.1.0.nu.hidden.kernel/"}}
    array = tensorstore.open(spec, open=True).result()
    number = array[300, 40]
    changed = np.asarray(number.read().result()).view(np.uint32) ^ 1
    number.write(changed.view(np.float32)).result()


def lose_power(checkpoint):
    """What may be left then: Orbax has synced the arrays and their index, but none of these."""
    (checkpoint / "_CHECKPOINT_METADATA").write_bytes(b"")
    for name in ("record/metadata", "run/_METADATA", "run/array_metadatas/process_0"):
        (checkpoint / name).write_bytes(b"")


DAMAGE = {
    "arrays truncated": lambda x: halve(array_file(x)),
    "manifest truncated": lambda x: halve(x / "run" / "manifest.ocdbt"),
    "record truncated": lambda x: halve(x / "record" / "metadata"),
    # In several places, since among the arrays lie old parts of the index, which nobody reads. They
    # are compressed, and by the place it is the decompression or the checksums that find it.
    "bits of arrays": lambda x: flip_at(array_file(x), 0.25, 0.5, 0.75),
    "bit of a number": flip_in_an_array,
    "bit of the manifest": lambda x: flip_at(x / "run" / "manifest.ocdbt", 0.5),
    "bit of the record": lambda x: flip_at(x / "record" / "metadata", 0.5),
    "arrays deleted": lambda x: array_file(x).unlink(),
    "structure deleted": lambda x: (x / "run" / "_METADATA").unlink(),
    "folder deleted": lambda x: shutil.rmtree(x / "run"),
    "all in it deleted": lambda x: [shutil.rmtree(x), x.mkdir()],
    "power lost": lose_power,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_checkpoint_before_is_taken(name, whole):
    out = copied(whole, name.replace(" ", "_"))
    DAMAGE[name](out / "checkpoints" / str(LAST))
    life = live(out)
    assert life.returncode == 0, life.output
    assert f"checkpoint {LAST} is not whole" in life.output
    if name == "bit of a number":
        assert "other checksums" in life.output
    assert life.began == BEFORE
    assert (out / "checkpoints" / f"corrupt-{LAST}").is_dir()
    assert finished(out)[-1] == LAST
    assert_same_bits(arrays(out, LAST), arrays(whole, LAST))
    assert_same_bits(parameters(out), parameters(whole))


def test_several_damaged_and_one_gone(whole):
    out = copied(whole, "several")
    shutil.rmtree(out / "checkpoints" / str(LAST))
    DAMAGE["bits of arrays"](out / "checkpoints" / str(BEFORE))
    life = live(out)
    assert life.returncode == 0, life.output
    assert life.began == BEFORE - EVERY
    assert_same_bits(parameters(out), parameters(whole))


def test_all_damaged(whole):
    out = copied(whole, "all")
    for step, damage in zip(
        finished(out), ("bits of arrays", "arrays truncated", "bit of the record"), strict=True
    ):
        DAMAGE[damage](out / "checkpoints" / str(step))
    assert_refused(out, "found 3, none of them whole")


def test_none_there(whole):
    out = copied(whole, "none")
    for step in finished(out):
        shutil.rmtree(out / "checkpoints" / str(step))
    assert_refused(out, "found 0, none of them whole")


def test_settings_gone(whole):
    out = copied(whole, "settings_gone")
    (out / "run.json").unlink()
    assert_refused(out, "found no such file")


def test_settings_damaged(whole):
    out = copied(whole, "settings_damaged")
    halve(out / "run.json")
    assert_refused(out, "expected the settings of this run")


@pytest.mark.parametrize("other", [("--seed", 1), ("--learning-rate", 0.1), ("--steps", STEPS + 1)])
def test_other_settings(other, whole):
    out = copied(whole, f"other{other[0]}")
    assert_refused(out, "expected the settings of this run", *other)


def assert_refused(out, message, *options):
    """An error, nothing changed, and no new start."""
    before = contents(out)
    life = live(out, *options)
    assert life.returncode == 1, life.output
    assert message in life.output
    assert "--out" in life.output  # what to do
    assert life.began is None
    assert contents(out) == before


def contents(out):
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "lock"]
    return {path: path.read_bytes() for path in files}


def test_result_without_the_rest(whole):
    """Nothing but the parameters of a run is there: they are not overwritten."""
    out = whole.with_name("result")
    out.mkdir()
    shutil.copy(whole / "params.npz", out)
    assert_refused(out, "found no such file")


def test_a_second_program_in_the_same_folder(whole):
    """It ends at once, and the first one goes on."""
    out = whole.with_name("shared")
    out.mkdir()
    with (out / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_refused(out, "expected no other program at work there")
    assert live(out).returncode == 0
    assert_same_bits(parameters(out), parameters(whole))


def test_no_flipped_bit_goes_unnoticed(whole):
    """Bits of every file of a checkpoint, one at a time: an error, or the arrays as they were."""
    out = copied(whole, "flipped")
    command = [sys.executable, "-m", "tests.fuzz.flipped_bits", out, LAST, FLIPS]
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [str(word) for word in command],
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path_with(root / "examples")},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    counts = json.loads(child.stdout)
    print(f"single bits flipped in a checkpoint: {counts}")
    assert counts["found by the checksums"] >= FLIPS // 2
    assert set(counts) == {"found by the checksums", "found by Orbax", "of what is not needed"}


def path_with(folder):
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_other_numbers_of_devices(whole, monkeypatch):
    eight = whole.with_name("eight")
    assert live(eight, "--devices", 8, "--keep", STEPS).began == 0
    for step in finished(eight):
        if step > STEPS // 2:
            shutil.rmtree(eight / "checkpoints" / str(step))
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    expected, apart = arrays(eight, STEPS // 2), {}
    for devices in (1, 2, 4, 8):
        preemptible, like = example(devices)
        with ocp.CheckpointManager(eight / "checkpoints") as manager:
            run = preemptible.restore(manager, STEPS // 2, like)
        assert_same_bits(by_path(run), expected)
        moment = run.state[1][0].mu["hidden"]["kernel"]
        assert moment.sharding.shard_shape(moment.shape) == (512 // devices, 72)

        out = copied(eight, f"on{devices}")
        life = live(out, "--devices", devices)
        assert life.returncode == 0, life.output
        assert life.began == STEPS // 2
        found, there = parameters(out), parameters(eight)
        apart[devices] = max(float(np.abs(found[name] - there[name]).max()) for name in there)
    print(f"from 8 devices to others: parameters apart by {apart}")
    assert apart[8] == 0
    assert max(apart.values()) <= APART


# A checkpoint takes 576 KiB, and with three kept up to four are there at once.
@pytest.mark.parametrize("size", [1000, 1600, 2200])
def test_full_disk(size, whole, tmp_path):
    out = tmp_path / "disk"
    out.mkdir()
    (tmp_path / "compiled").symlink_to(whole.with_name("compiled"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(out)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        assert_stopped(live(out), out, whole, "No space left on device")
        subprocess.run(["mount", "-o", "remount,size=100m", str(out)], check=True)
        assert_goes_on(out, whole)
    finally:
        subprocess.run(["umount", str(out)], check=True)


# The first checkpoint has no file of 160 KB; those after it, whose moments are not 0, have larger.
@pytest.mark.parametrize("limit", [100_000, 200_000])
def test_too_large_a_file(limit, whole):
    """The same without mounting anything, on any machine."""
    out = whole.with_name(f"limit_{limit}")
    assert_stopped(live(out, limit=limit), out, whole, "File too large")
    assert_goes_on(out, whole)


def assert_stopped(life, out, whole, cause):
    """It ended with a message, and the checkpoints that it leaves are whole."""
    assert life.returncode == 1, life.output
    assert f"could not write to {out}" in life.output
    assert cause in life.output
    assert "MiB are free" in life.output
    assert "If it is full, make room. Start the same command again" in life.output
    assert not (out / "params.npz").exists()
    for step in finished(out):
        assert_same_bits(arrays(out, step), arrays(whole, step))


def assert_goes_on(out, whole):
    last = max(finished(out), default=0)
    life = live(out)
    assert life.returncode == 0, life.output
    assert life.began == last
    assert not unfinished(out)
    assert_same_bits(parameters(out), parameters(whole))
