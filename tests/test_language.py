"""One term for one thing: words that this project does not use, and what it says instead.

proselint reads the pages for what is bad style anywhere; this list is the project's own.
"""

import re
from pathlib import Path

import pytest

import adamx

ROOT = Path(__file__).parents[1]
PACKAGE = Path(adamx.__file__).parent  # which may be installed elsewhere
READ = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *PACKAGE.rglob("*.py")])
READ += sorted([*ROOT.glob("examples/**/*.py"), *ROOT.glob("benchmarks/*.py")])

INSTEAD = {
    r"\bgo(es|ing)? on\b": "continue",
    r"\bone behind the other\b": "contiguous",
    r"\bin the midst\b": "while",
    r"\bas if nothing had happened\b": "continues",
    r"\bhalf a place\b": "half an ulp",
    r"\bstands? (beside|elsewhere|otherwise)\b": "is",
    r"\b(is|are) told\b": "say who says it: the file stores, adamx reports",
    r"\bgives? an? error\b": "raises",
    r"\bvouch": "untrusted",
    r"\bFor people who\b.*\bFor people who\b": "one sentence on whom a page is for",
    r"\bmakes? up for\b": "corrects",
}


@pytest.mark.parametrize("pattern", INSTEAD)
def test_terms(pattern):
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in READ
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not found, f"say {INSTEAD[pattern]!r}"


def test_the_files_are_read():
    assert {"README.md", "torch.md", "adam.py", "common.py"} <= {path.name for path in READ}
