"""Starts examples/preemptible.py, kills it, and reads what it left without its help."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

__all__ = [
    "EVERY",
    "STEPS",
    "Life",
    "arrays",
    "assert_same_bits",
    "finished",
    "live",
    "parameters",
    "unfinished",
]

PROGRAM = Path(__file__).parents[2] / "examples" / "preemptible.py"
STEPS, EVERY = 60, 6

# With a bound for the bytes of a file, which is how a disk fills up without a disk.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@dataclasses.dataclass(frozen=True)
class Life:
    """One start of the program, until its end or the kill."""

    returncode: int
    output: str
    seconds: float

    @property
    def began(self) -> int | None:
        """The step it went on from; 0 if it started anew; None if it did not come so far."""
        match = re.search(r"^(?:started anew|went on from step (\d+))$", self.output, re.MULTILINE)
        return int(match[1] or 0) if match else None

    @property
    def killed(self) -> bool:
        """Whether it was killed before its end."""
        return self.returncode == -signal.SIGKILL


def live(
    out: Path,
    *options: object,
    kill: Callable[["subprocess.Popen[bytes]", Path], None] | None = None,
    limit: int | None = None,
) -> Life:
    """Start the program, its output going to `out`.log; `kill` returns when it is to be killed.

    Folders beside each other share what was compiled.
    """
    words = [PROGRAM, "--out", out, "--steps", STEPS, "--save-every", EVERY, *options]
    words = words if limit is None else ["-c", LIMITED, limit, *words]
    log = out.with_name(f"{out.name}.log")
    start = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(out.parent / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            start_new_session=True,
        )
    try:
        if kill is None:
            process.wait(300)
        else:
            kill(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
    return Life(process.wait(), log.read_text(), time.monotonic() - start)


def finished(out: Path) -> list[int]:
    """The steps whose checkpoints have their final names, in order."""
    return sorted(int(x.name) for x in out.glob("checkpoints/*") if x.name.isdecimal())


def unfinished(out: Path) -> list[Path]:
    """Checkpoints that were not yet renamed."""
    return list(out.glob("checkpoints/*.orbax-checkpoint-tmp"))


def arrays(out: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, by their paths."""
    folder = out / "checkpoints" / str(step) / "run"
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    found = checkpointer.restore(folder, restore_args=as_numpy)
    return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(found)}


def parameters(out: Path) -> dict[str, np.ndarray]:
    """What the program wrote in the end."""
    with np.load(out / "params.npz") as found:
        return dict(found)


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names, dtypes, shapes and bytes."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name
