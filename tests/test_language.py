"""One term for one thing: words that this project does not use, and what it says instead.

proselint reads the pages for what is bad style anywhere; this list is the project's own.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = [
    path
    for pattern in ("*.md", "docs/**/*.md", "adamx/**/*.py", "examples/**/*.py", "benchmarks/*.py")
    for path in sorted(ROOT.glob(pattern))
]

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
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in READ
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not found, f"say {INSTEAD[pattern]!r}"


def test_the_files_are_read():
    assert {"README.md", "torch.md", "adam.py", "common.py"} <= {path.name for path in READ}
