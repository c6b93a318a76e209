"""Processes that are the ranks of one run."""

import sys
from collections.abc import Sequence
from multiprocessing.context import ForkProcess

__all__ = ["run"]

_SECONDS = 60


def run(ranks: Sequence[ForkProcess]) -> None:
    """Run all of them at once; the program ends if one fails."""
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(_SECONDS)
    failed = [process.exitcode for process in ranks if process.exitcode != 0]
    for process in ranks:
        process.kill()
    if failed:
        sys.exit(f"{len(failed)} of {len(ranks)} ranks failed: {failed}")
