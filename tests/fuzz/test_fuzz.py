"""Damaged files by the thousand: each loads or gives the one error, in the memory that it may take.

    pytest -m fuzz tests/fuzz

ADAMX_FUZZ_FILES sets how many files of each format. A file that fails is made again by
`python -m tests.fuzz FORMAT NUMBER`.
"""

import collections
import os

import numpy as np
import pytest

from adamx.checkpoint import CheckpointError, load
from tests.fuzz.adamx_files import header_end
from tests.fuzz.bombs import BOMBS
from tests.fuzz.cases import FORMATS, cases
from tests.fuzz.harness import Tally, Worker, outcomes, put

pytestmark = pytest.mark.fuzz

FILES = int(os.environ.get("ADAMX_FUZZ_FILES", "2000"))
FLIPS = 10 * FILES


@pytest.mark.parametrize("name", FORMATS)
def test_each_loads_or_gives_one_error(name, tmp_path):
    if name.startswith("torch"):
        pytest.importorskip("torch")
    form, tally = FORMATS[name], Tally()
    with Worker(as_saved(tmp_path, form)) as worker:
        for outcome in outcomes(worker, cases(name, FILES), tmp_path, form.ending):
            tally.add(outcome)
    print(f"{tally.line(name)}")
    assert not tally.failures, "\n".join(map(str, tally.failures))
    assert tally.counts["refused"] > FILES // 3


@pytest.mark.parametrize("ending", BOMBS)
def test_structure_takes_no_more_memory_than_twice_its_bytes(ending, tmp_path):
    if ending == ".pt":
        pytest.importorskip("torch")
    tally = Tally()
    bombs = ((index, name, make()) for index, (name, make) in enumerate(BOMBS[ending].items()))
    form = next(form for form in FORMATS.values() if form.ending == ending)
    with Worker(as_saved(tmp_path, form)) as worker:
        for outcome in outcomes(worker, bombs, tmp_path, ending):
            tally.add(outcome)
    print(f"{tally.line(f'bombs {ending}')}")
    assert not tally.failures, "\n".join(map(str, tally.failures))


def test_not_one_flipped_bit_goes_unnoticed(tmp_path):
    """Every bit of the header of adamx's own format, and others at random, one at a time."""
    content = FORMATS["adamx"].seeds[0]
    bits = 8 * len(content)
    header = np.arange(8 * header_end(content))
    others = np.random.RandomState(0).choice(bits, min(FLIPS, bits), replace=False)
    path = tmp_path / "flipped.safetensors"
    counts = collections.Counter()
    for bit in np.union1d(header, others):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            load(path)
        except CheckpointError:
            counts["refused"] += 1
        else:
            counts[f"bit {bit} unnoticed"] += 1
    print(f"single bits flipped: {dict(counts)}, of {bits} in the file")
    assert set(counts) == {"refused"}


def as_saved(folder, form):
    """A file of that kind as it was saved."""
    path = folder / f"as_saved{form.ending}"
    put(path, form.seeds[0])
    return path
