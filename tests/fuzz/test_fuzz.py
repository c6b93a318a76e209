"""Damaged files by the thousand: each loads or gives the one error, in the memory that it may take.

    pytest -m fuzz tests/fuzz

A file that fails is made again by `python -m tests.fuzz FORMAT NUMBER`.
"""

import pytest

from tests.fuzz.cases import FORMATS, cases
from tests.fuzz.harness import Tally, Worker, outcomes

pytestmark = pytest.mark.fuzz
PROMOTES = True

FILES = 2_000


@pytest.mark.parametrize("name", FORMATS)
def test_each_loads_or_gives_one_error(name, tmp_path, capsys):
    form, tally = FORMATS[name], Tally()
    warm_up = tmp_path / f"as_saved{form.ending}"
    warm_up.write_bytes(form.seeds[0])
    with Worker(warm_up) as worker:
        for outcome in outcomes(worker, cases(name, FILES), tmp_path, form.ending):
            tally.add(outcome)
    with capsys.disabled():
        print(f"\n{tally.line(name)}")
    assert not tally.failures, "\n".join(map(str, tally.failures))
