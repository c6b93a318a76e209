"""Why there is no library: said to those who run a source tree, and to those who installed."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from adamx import native
from adamx.native import loader, probe


def test_a_source_tree(tmp_path):
    """A checkout that hides the package that is installed, or that nobody has built."""
    folder = tmp_path / "adamx" / "native"
    folder.mkdir(parents=True)
    (folder / "CMakeLists.txt").touch()
    reason = loader._why_absent([folder])
    assert f"imported from its source tree, {tmp_path}," in reason
    assert f"`pip install -e {tmp_path}`" in reason
    assert "another folder" in reason


def test_an_installation(tmp_path):
    assert "there was no C++ compiler when adamx was installed" in loader._why_absent([tmp_path])


def fake_kernel(change):
    """A library that computes a step as NumPy does, and then changes the results."""

    def adamx_probe(number, n, *pointers):
        dtype = np.dtype(probe._DTYPES[number.value])
        *arrays, _ = [
            (ctypes.c_char * (n.value * dtype.itemsize)).from_address(x.value)
            for x in (*pointers[:4], pointers[3])
        ]
        g, m, v, p = (np.frombuffer(x, dtype) for x in arrays)
        wide = [x.astype(np.promote_types(dtype, "float32")) for x in (g, m, v, p)]
        with np.errstate(all="ignore"):
            for mine, other in zip((m, v, p), probe._step(*wide), strict=True):
                mine[:] = change(other.astype(dtype))

    return SimpleNamespace(adamx_probe=adamx_probe)


CHANGES = {
    "NaN lost": lambda x: np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf),
    "infinity lost": lambda x: np.nan_to_num(x, nan=np.nan),
    "subnormals lost": lambda x: np.where(np.abs(x) < np.finfo(x.dtype).tiny, 0, x),
    "a last place": lambda x: np.nextafter(x, x.dtype.type(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_kernel_that_computes_wrongly(change):
    assert probe.find_fault(fake_kernel(lambda x: x)) is None
    assert "of a step in float32" in (probe.find_fault(fake_kernel(change)) or "")


def test_loading_leaves_subnormal_numbers_alone():
    assert native.status() is not None
    assert not probe.flushes_subnormals()
    assert np.float32(1e-38) * np.float32(0.5) > 0
