"""The documentation has every public name, and pages that can be read."""

import re
from pathlib import Path

import pytest

import adamx

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MODULES = (adamx, adamx.checkpoint, adamx.keras, adamx.native)
DIRECTIVE = re.compile(r"^ *\.\. (auto\w+|currentmodule):: ([\w.]+)$", re.MULTILINE)


def documented():
    """The full names that the reference documents."""
    names = set()
    for page in (DOCS / "reference").glob("*.md"):
        module = ""
        for directive, name in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if directive == "currentmodule":
                module = name
            else:
                names.add(name if name.startswith("adamx") else f"{module}.{name}")
    return names


def test_every_public_name_is_in_the_reference():
    wanted = {f"{module.__name__}.{name}" for module in MODULES for name in module.__all__}
    modules = {module.__name__ for module in MODULES}
    assert documented() - modules == wanted - modules - {"adamx.__version__"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_short(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    titles = re.findall(r"^# .+$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    assert len(titles) == 1
