"""examples/preemptible.py killed again and again: it goes on, and ends with the same bits.

pytest -m fuzz tests/fuzz/test_preemption.py
"""

import collections
import concurrent.futures
import random
import time

import pytest

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

KILLS, CHAINS = 50, 2

pytestmark = pytest.mark.fuzz


def test_killed_at_any_moment(tmp_path):
    started = time.monotonic()
    whole = tmp_path / "whole"
    assert live(whole, "--keep", STEPS).began == 0
    assert finished(whole) == list(range(0, STEPS + 1, EVERY))
    assert live(whole, "--keep", STEPS).began == STEPS
    again = tmp_path / "again"
    seconds = live(again).seconds  # when all is compiled
    assert_same_bits(parameters(again), parameters(whole))

    with concurrent.futures.ThreadPoolExecutor(CHAINS) as pool:
        chains = [pool.submit(chain, tmp_path, whole, seed, seconds) for seed in range(CHAINS)]
        counts = sum((future.result() for future in chains), collections.Counter())
    took = time.monotonic() - started
    print(f"preemption: {dict(counts)}; a run takes {seconds:.1f} s, all {took:.0f} s")
    assert counts["kills"] == KILLS
    assert counts["in the midst of a save"] > KILLS // 4


def chain(folder, whole, seed, seconds):
    """Runs that are killed and started again until there were enough kills, the last to its end."""
    rng, counts, expected = random.Random(seed), collections.Counter(), {}
    while counts["kills"] < KILLS // CHAINS:
        out = folder / f"chain{seed}_{counts['runs']}"
        counts["runs"] += 1
        last = None  # the last checkpoint that was finished when the life before was killed
        while True:
            kill = None
            if counts["kills"] < KILLS // CHAINS:
                kill = rng.choice([at_any_time, while_training, while_saving])(out, rng, seconds)
            life = live(out, kill=kill)
            assert "not whole" not in life.output
            if life.began is not None:
                counts["lives that went on"] += life.began > 0
                assert life.began == (last or 0), life.output
            elif not life.killed:
                raise AssertionError(life.output)
            if not life.killed:
                assert life.returncode == 0, life.output
                break
            counts["kills"] += 1
            counts["in the midst of a save"] += bool(unfinished(out))
            steps = finished(out)
            if steps:
                assert steps[-1] >= (last or 0)
                last = steps[-1]
                if last not in expected:
                    expected[last] = arrays(whole, last)
                assert_same_bits(arrays(out, last), expected[last])
            else:
                assert last is None
        assert_same_bits(parameters(out), parameters(whole))
        assert not unfinished(out)
    return counts


def at_any_time(out, rng, seconds):
    del out

    def kill(process, log):
        del log
        wait(process, rng.uniform(0, seconds))

    return kill


def while_training(out, rng, seconds):
    """From the moment when it says where it begins."""
    del out

    def kill(process, log):
        wait_for(process, lambda: b"anew" in log.read_bytes() or b"went on" in log.read_bytes())
        wait(process, rng.uniform(0, seconds / 3))

    return kill


def while_saving(out, rng, seconds):
    """Shortly after a checkpoint is begun, the first or one of those after it."""
    del seconds
    seen = {path.stat().st_ino for path in unfinished(out)}  # left by the lives before
    count = len(seen) + rng.randint(1, 4)

    def kill(process, log):
        del log

        def another():
            for path in unfinished(out):
                try:
                    seen.add(path.stat().st_ino)
                except FileNotFoundError:  # it was renamed
                    continue
            return len(seen) >= count

        wait_for(process, another)
        wait(process, rng.uniform(0, 0.05))

    return kill


def wait_for(process, happened):
    """Until it happened, or the process ended."""
    while process.poll() is None and not happened():
        time.sleep(0.002)


def wait(process, seconds):
    """For so long, or until the process ended."""
    deadline = time.monotonic() + seconds
    wait_for(process, lambda: time.monotonic() > deadline)
