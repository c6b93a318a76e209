"""The README says what is true."""

import re
from pathlib import Path

import numpy as np
import pytest

import adamx

PROMOTES = True  # the examples use Optax's schedules

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_python_blocks_run(capsys):
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(BLOCKS) == 1
    assert "slope" in capsys.readouterr().out
    np.testing.assert_allclose(namespace["params"]["slope"], 3, atol=1e-3)
    np.testing.assert_allclose(namespace["params"]["offset"], 2, atol=1e-3)


def test_commands():
    commands = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert commands == [
        "pip install -e .\n",
        'pip install -e ".[examples]" && python examples/train_digits.py\n',
        'pip install -e ".[test]" && pytest -n 2\n',
    ]


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert all(len(line) <= 100 or line.startswith("|") for line in lines)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)\)|^\[\w+\]: (\S+)$", page.read_text("utf-8"), re.MULTILINE)
    assert len(links) > 15 or page.stem != "README"
    for link in (one or other for one, other in links):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_formats_are_counted():
    written = sum(form.writable for form in adamx.checkpoint.FORMATS.values())
    assert f"from {len(adamx.checkpoint.FORMATS)} formats, writes {written}," in README


def test_names_exist():
    for name in set(re.findall(r"`adamx\.(\w+)", README)):
        assert hasattr(adamx, name)
