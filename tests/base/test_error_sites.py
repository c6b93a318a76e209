"""Bad input raises errors with fields, and nothing reads the text of one."""

import ast
from pathlib import Path

import pytest

import adamx

PACKAGE = Path(adamx.__file__).parent
ROOMS = ("base", "cli", "config", "fused", "keras", "state", "transforms")
FILES = sorted(
    file.relative_to(PACKAGE).as_posix() for room in ROOMS for file in (PACKAGE / room).glob("*.py")
)
PLAIN = {"ValueError", "TypeError"}


def calls(node, names):
    """The calls within `node` of functions of these names."""
    for child in ast.walk(node):
        if isinstance(child, ast.Call) and getattr(child.func, "id", "") in names:
            yield child


@pytest.mark.parametrize("file", FILES)
def test_errors_have_fields(file):
    tree = ast.parse((PACKAGE / file).read_text())
    assert [call.lineno for call in calls(tree, PLAIN)] == []


@pytest.mark.parametrize("file", FILES)
def test_the_text_of_an_error_is_not_read(file):
    tree = ast.parse((PACKAGE / file).read_text())
    for handler in ast.walk(tree):
        if isinstance(handler, ast.ExceptHandler):
            texts = [argument for call in calls(handler, {"str", "repr"}) for argument in call.args]
            assert handler.name not in [getattr(text, "id", "") for text in texts]
