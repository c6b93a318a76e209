"""Feeds files to a worker, and notices when it dies or does not answer."""

import collections
import contextlib
import dataclasses
import io
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from tests.fuzz import bundle_files

__all__ = ["ALLOWANCE", "Outcome", "Tally", "Worker", "outcomes", "put"]

SECONDS = 10.0  # for one file
# What reading may take whatever the file's size: 2 MiB for structures, a block of 1 MiB or 4 MiB
# while a checksum is computed, and what the allocator keeps. A file as it was saved needs less than
# 0.1 MiB of it.
ALLOWANCE = 4 << 20

_FOLDERS = {".dcp", ".deepspeed", ".hugging_face", ".orbax", ".shards"}
# Threads of tensorstore free large blocks, and glibc would keep each thread's.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}

_ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What loading one file gave."""

    index: int
    told: str  # what was done to the file
    size: int
    kind: str  # loaded, refused, failed
    message: str
    seconds: float
    memory: int

    @property
    def beyond(self) -> int:
        """Bytes beyond twice the file's size and the allowance."""
        return self.memory - 2 * self.size - ALLOWANCE

    @property
    def is_failure(self) -> bool:
        """Neither loaded nor refused, or that took too much memory or time."""
        return self.kind == "failed" or self.beyond > 0 or self.seconds > SECONDS


class Worker:
    """A process that loads files, started anew after it died."""

    def __init__(self, warm_up: Path) -> None:
        self._warm_up = warm_up
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._asked = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()

    def ask(self, path: Path) -> None:
        """Have a file loaded; `answer` waits for it."""
        if self._process is None:
            self._start()
        self._send(path)

    def answer(self) -> dict[str, Any]:
        """What came of the last file asked for; a crash or a hang is an answer, too."""
        assert self._process is not None
        line = self._line(self._asked + SECONDS - time.monotonic())
        if line:
            return json.loads(line)
        seconds = time.monotonic() - self._asked
        self._process.kill()
        code = self._process.wait()
        told = f"no answer after {seconds:.0f} s" if seconds >= SECONDS else f"died with {code}"
        self._log.seek(0)
        trace = self._log.read().decode(errors="replace")[-2000:]
        self._end()
        return {"outcome": "failed", "message": f"{told}\n{trace}", "seconds": seconds, "memory": 0}

    def _start(self) -> None:
        self._log.seek(0)
        self._log.truncate()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            cwd=_ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **_GIVE_BACK},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        for _ in range(3):
            self._send(self._warm_up)
            line = self._line(60)
            if not line or json.loads(line)["outcome"] != "loaded":
                self._log.seek(0)
                raise RuntimeError(f"the worker does not work: {line!r} {self._log.read()!r}")

    def _send(self, path: Path) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._asked = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{path}\n".encode())
            self._process.stdin.flush()

    def _line(self, seconds: float) -> bytes:
        """The next line, or an empty one."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(max(seconds, 0))
        return self._process.stdout.readline() if ready else b""

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def outcomes(
    worker: Worker, cases: Iterable[tuple[int, str, bytes]], folder: Path, ending: str
) -> Iterator[Outcome]:
    """Load each case; while one is loaded, the next is made."""
    paths = [folder / f"{name}{ending}" for name in ("even", "odd")]
    waiting: tuple[int, str, int] | None = None
    for turn, (index, told, content) in enumerate(cases):
        path = paths[turn % 2]
        put(path, content)
        if waiting is not None:
            yield _outcome(waiting, worker.answer())
        worker.ask(path)
        waiting = (index, told, len(content))
    if waiting is not None:
        yield _outcome(waiting, worker.answer())


def put(path: Path, content: bytes) -> None:
    """Write a file; of a folder the content is an archive, of an index it holds its shard, too."""
    if path.suffix == ".index":
        index, data = bundle_files.split(content)
        path.write_bytes(index)
        path.with_name(f"{path.stem}.data-00000-of-00001").write_bytes(data)
    elif path.suffix in _FOLDERS:
        shutil.rmtree(path, ignore_errors=True)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(path)
    else:
        path.write_bytes(content)


def _outcome(case: tuple[int, str, int], answer: dict[str, Any]) -> Outcome:
    return Outcome(*case, answer["outcome"], answer["message"], answer["seconds"], answer["memory"])


class Tally:
    """Counts outcomes, and keeps those that are to be told."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[Outcome] = []
        self._slowest: Outcome | None = None
        self._largest: Outcome | None = None

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        self.counts["failed" if outcome.is_failure else outcome.kind] += 1
        if outcome.is_failure:
            self.failures.append(outcome)
        self._slowest = max(self._slowest or outcome, outcome, key=lambda o: o.seconds)
        self._largest = max(self._largest or outcome, outcome, key=lambda o: o.beyond)

    def line(self, name: str) -> str:
        """The counts, and the extremes with the case they belong to."""
        if self._slowest is None or self._largest is None:
            return f"{name}: no files"
        counts = ", ".join(f"{self.counts[k]} {k}" for k in ("loaded", "refused", "failed"))
        most, slow = self._largest, self._slowest
        return (
            f"{name:<20} {self.counts.total()} files: {counts}; most memory beside twice the size "
            f"{(most.beyond + ALLOWANCE) / 2**20:.1f} MiB (case {most.index}, {most.size} bytes); "
            f"slowest {slow.seconds:.2f} s (case {slow.index})"
        )
