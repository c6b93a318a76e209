"""The examples where their extra is not installed."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
# A module that is imported already is found without its package.
NEEDED = ("matplotlib", "matplotlib.pyplot", "orbax", "orbax.checkpoint", "rich", "rich.console")
NEEDED += ("sklearn", "sklearn.datasets")
HINT = r'(matplotlib|orbax|rich|sklearn).*: pip install -e "\.\[examples'


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_example_without_its_extra_names_it(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.delitem(sys.modules, "common", raising=False)
    for name in NEEDED:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=HINT):
        runpy.run_path(str(path), run_name="an_example")


# The oldest matplotlib allowed calls what a newer pyparsing renamed.
@pytest.mark.filterwarnings("ignore:'[A-Za-z]+' deprecated - use '[a-z_]+'")
@pytest.mark.parametrize("package", ["matplotlib", "orbax", "rich", "sklearn"])
def test_one_package_of_the_extra_is_missed(package, monkeypatch):
    for name in NEEDED:
        if name.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=HINT):
        runpy.run_path(str(FOLDER / "common.py"), run_name="an_example")
