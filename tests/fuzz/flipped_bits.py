"""Flips bits of a checkpoint of examples/preemptible.py, one at a time, and restores it each time.

PYTHONPATH=examples python -m tests.fuzz.flipped_bits FOLDER STEP FLIPS

In a process of its own: Orbax leaves unfinished what it was reading beside what it could not read.
"""

import collections
import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType

import adamx
from tests.fuzz.preemptible_runs import arrays, assert_same_bits

__all__ = ["by_path", "example", "flip"]


def example(devices: int) -> tuple[Any, Any]:
    """The program as a module, and what it restores on so many devices."""
    preemptible = importlib.import_module("preemptible")
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    schedule = optax.constant_schedule(1e-3)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamx.adam(schedule))
    return preemptible, jax.eval_shape(preemptible.make_start(tx, mesh, 1437, 0))


def by_path(run: Any) -> dict[str, np.ndarray]:
    """The arrays of a restored run, by the paths that they have in the checkpoint."""
    state = [None, [run.state[1][0]._asdict(), run.state[1][1]._asdict()]]
    tree = run._replace(state=state, key=jax.random.key_data(run.key))._asdict()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def main(out: Path, step: int, flips: int) -> None:
    """Prints how often the flipped bit was found, and by what."""
    preemptible, like = example(1)
    expected = arrays(out, step)
    rng, counts = random.Random(0), collections.Counter()
    with ocp.CheckpointManager(out / "checkpoints") as manager:
        for path in sorted(p for p in (out / "checkpoints" / str(step)).rglob("*") if p.is_file()):
            content = path.read_bytes()
            for _ in range(flips):
                flip(path, rng.randrange(8 * len(content)))
                try:
                    run = preemptible.restore(manager, step, like)
                except Exception as error:
                    by = "the checksums" if "other checksums" in str(error) else "Orbax"
                    counts[f"found by {by}"] += 1
                else:
                    assert_same_bits(by_path(run), expected)
                    counts["of what is not needed"] += 1
                path.write_bytes(content)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
