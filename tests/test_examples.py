"""The examples where their extra is not installed."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
# A module that is imported already is found without its package.
NEEDED = ("matplotlib", "matplotlib.pyplot", "orbax", "orbax.checkpoint", "rich", "rich.console")
NEEDED += ("sklearn", "sklearn.datasets")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_without_its_extra_names_it(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    for name in ("figures", "train_digits"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in NEEDED:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        SystemExit, match=r'(matplotlib|orbax|rich).*: pip install -e "\.\[examples'
    ):
        runpy.run_path(str(path), run_name="an_example")
