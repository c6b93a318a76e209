"""Loads the files that it is told, one after another, in a process of its own.

    python -m tests.fuzz.worker

Each line of standard input is a path; each line of standard output says, in JSON, what came of it.
Loading a path twice before the first measurement brings in the packages that a format needs.
"""

import ctypes
import faulthandler
import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, load

# Above what the process has when it starts; one file may make it claim no more. A second net: what
# a test looks at is the memory that was really taken.
ADDRESS_SPACE = 4 << 30
LONGEST_MESSAGE = 2_000
CONFIG = AdamConfig(learning_rate=0.01, eps=1e-7, convention="keras")

_BARE = (
    ".weights.h5",
    ".npz",
    ".msgpack",
    ".orbax",
    ".index",
    ".shards",
)  # without hyperparameters

Answer = dict[str, Any]


def main() -> None:
    """Answers until the input ends."""
    faulthandler.enable()
    limit_address_space()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a C library prints is no answer
    for line in sys.stdin:
        print(json.dumps(attempt(Path(line.rstrip("\n")))), file=answers)


def attempt(path: Path) -> Answer:
    """What loading a file gives: an outcome, the message, seconds and bytes of memory."""
    settle()
    before, start = resident("VmRSS"), time.perf_counter()
    outcome, message = loaded_or_refused(path)
    if "torch" in sys.modules:
        outcome, message = "failed", "torch was imported"
    seconds = time.perf_counter() - start
    memory = resident("VmHWM") - before if before else 0
    return {"outcome": outcome, "message": message, "seconds": seconds, "memory": memory}


def loaded_or_refused(path: Path) -> tuple[str, str]:
    """`loaded`, `refused` or `failed`, and why."""
    config = CONFIG if path.name.endswith(_BARE) else None
    try:
        checkpoint = load(path, config=config)
        read_all(checkpoint)
    except CheckpointError as error:
        message = str(error)
        if not message.startswith(f"{path}: "):
            return "failed", f"the message does not name the file: {message[:300]!r}"
        if len(message) > LONGEST_MESSAGE:
            return "failed", f"a message of {len(message)} characters: {message[:300]!r}"
        if not all(c.isprintable() or c == "\n" for c in message):
            return "failed", f"a message with control characters: {message[:300]!r}"
        return "refused", message
    except BaseException as error:
        return "failed", f"{type(error).__name__}: {str(error)[:500]!r}"
    return "loaded", ""


def read_all(checkpoint: Checkpoint) -> None:
    """Read every value: one that is not there ends the process."""
    for field in ("params", "mu", "nu", "nu_max", "extra"):
        arrays: Mapping[str, np.ndarray] = getattr(checkpoint, field)
        for array in arrays.values():
            np.count_nonzero(array)


def limit_address_space() -> None:
    """Where the operating system can."""
    try:
        import resource
    except ImportError:
        return
    if now := resident("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE, now + ADDRESS_SPACE))


def settle() -> None:
    """Give back what can be given back, and let the peak begin anew."""
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """Bytes, as Linux counts them; 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
