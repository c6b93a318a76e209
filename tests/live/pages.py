"""The blocks of the documentation's pages, and a way to run them where the frameworks are."""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from adamx.checkpoint import CheckpointError

__all__ = ["DOCS", "Block", "read_blocks", "run_page"]

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^( *)```(\S*).*\n((?:.*\n)*?)\1``` *$", re.MULTILINE)
OPTIONS = re.compile(r"---\n(.*?)---\n", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page: its language or directive, its options, and its lines."""

    kind: str
    options: str
    code: str


def read_blocks(path):
    """All fenced blocks of a page, in its order."""
    blocks = []
    for indent, kind, code in FENCE.findall(path.read_text(encoding="utf-8")):
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        options = OPTIONS.match(code) if kind.startswith("{") else None
        start = options.end() if options else 0
        blocks.append(Block(kind, options[1] if options else "", code[start:]))
    return blocks


def run_page(page, here, there, monkeypatch, folder):
    """Run a page: its cells in the names `here`, the Python of another framework in `there`.

    A line `...  # 4 steps` of the latter becomes `train(4)`, a function that the test gives. The
    working directory is the page's own, which its first cell leaves for one within `folder`.
    """
    monkeypatch.chdir((DOCS / page).parent)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for block in read_blocks(DOCS / page):
        if block.kind == "python":
            code = re.sub(
                r"^\.\.\.  # (\d+) steps.*$", r"train(\1)", block.code, flags=re.MULTILINE
            )
            exec(compile(code, page, "exec"), there)
        elif block.kind == "{code-cell}":
            code = re.sub(r"^%.*$", "", block.code, flags=re.MULTILINE)  # IPython's own
            raises = "raises-exception" in block.options
            with pytest.raises(CheckpointError) if raises else contextlib.nullcontext():
                exec(compile(code, page, "exec"), here)
