"""What Python and C++ both name: the same fields, in the same order."""

import re
from pathlib import Path

import pytest

import adamx
from adamx import native
from adamx.base.numerics import Convention, Scalars
from adamx.fused.plan import Row

SOURCES = Path(adamx.__file__).parent / "native"

pytestmark = pytest.mark.skipif(
    not (SOURCES / "ffi.cc").is_file(), reason="installed from a wheel, which has no C++ sources"
)


def fields(file, struct):
    """The members of a struct of C++, in order."""
    text = re.sub(r"//.*", "", (SOURCES / file).read_text())
    [body] = re.findall(rf"struct {struct} {{(.*?)\n}};", text, re.DOTALL)
    declarations = (line.split(maxsplit=1)[1] for line in body.split(";") if line.strip())
    return tuple(name.strip() for names in declarations for name in names.split(","))


def test_the_scalars_of_a_step():
    assert fields("leaf.h", "Scalars") == Scalars._fields


def test_the_rows_of_the_table():
    assert fields("arguments.h", "Row") == Row._fields


def test_a_convention():
    assert fields("leaf.h", "Options")[:2] == Convention._fields


def test_the_version_in_the_registered_names():
    [version] = re.findall(r"kInterface = (\d+);", (SOURCES / "ffi.cc").read_text())
    assert (f"adamx_step_v{version}", f"adamx_norm_v{version}") == (native.STEP, native.NORM)
