"""`adamx inspect --plot`."""

import sys

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint.compare import count_entries
from tests.cli.command_runs import TORCH


def test_entries_are_counted_by_powers_of_ten():
    """After one step sqrt(v^) is |g|, and every entry that moved has gone by 1."""
    random = np.random.default_rng(0)
    g = 10.0 ** random.uniform(-20, 6, size=(40, 1000))
    g[0] = 0
    found = count_entries(0.1 * g, 0.001 * g * g, AdamConfig(), 1)
    assert (found.root.sum(), found.step.sum()) == (g.size, g.size)
    powers = np.log10(g[1:])
    inner = (powers >= found.root_edges[1]) & (powers < found.root_edges[-2])
    expected, _ = np.histogram(powers[inner], found.root_edges)
    np.testing.assert_array_equal(found.root[1:-1], expected[1:-1])
    assert found.root[0] == np.count_nonzero(powers < found.root_edges[1]) + 1000
    assert found.step[0] == 1000  # which never moved
    assert found.step[47:49].sum() == g.size - 1000  # on either side of 1, by rounding
    assert found.largest_step == pytest.approx(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # older matplotlib, as it is imported
def test_the_picture(run, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra that draws it is not installed")
    code, _, err = run("inspect", TORCH, "--plot", tmp_path / "moments.png")
    assert (code, err) == (0, [])
    assert (tmp_path / "moments.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(run, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, err = run("inspect", TORCH, "--plot", tmp_path / "moments.png")
    assert (code, out) == (2, [])
    assert err[0].startswith("adamx: error: --plot needs the package matplotlib: pip install")
    assert not list(tmp_path.iterdir())
