"""adamx's own reader of safetensors: every bit, or one error."""

import json

import ml_dtypes
import numpy as np
import pytest

from adamx.checkpoint import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.safetensors_file import read_safetensors
from adamx.checkpoint.untrusted.torch_archive import read_tensors
from tests.checkpoint_folders.safetensors_writer import KINDS, write_header, write_safetensors


def read(path):
    return read_safetensors(path, Account(path.stat().st_size)).arrays


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def make(dtype, shape):
    random = np.random.default_rng(0)
    return np.asarray(random.normal(size=shape) * 3).astype(dtype_of(dtype))


@pytest.mark.parametrize("dtype", KINDS)
def test_every_kind_of_number(dtype, tmp_path):
    """After an array of one byte, so that nothing is aligned."""
    arrays = {"a": make("uint8", (1,)), "b": make(dtype, (3, 2)), "c": make(dtype, ())}
    arrays["d"] = make(dtype, (0, 5))
    found = read(write_safetensors(tmp_path / "x.safetensors", arrays))
    assert list(found) == list(arrays)
    for mapped, copy in zip(found.items(), read_tensors(list(found.values())), strict=True):
        name, tensor = mapped
        for array in (tensor, copy):
            assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
            assert array.tobytes() == arrays[name].tobytes()
        assert not tensor.flags.writeable


def test_the_package_writes_the_same(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    arrays = {"b": make("float32", (3, 2)), "a": make("int64", (4,)), "c": make("float16", ())}
    package.save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    found = read(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


HEADERS = {
    "a shape of other bytes": ({"a": entry(shape=[3])}, "does not match its number of bytes"),
    "bytes that are not there": ({"a": entry(shape=[4], data_offsets=[0, 16])}, "not in the file"),
    "bytes of nothing": ({"a": entry(shape=[1], data_offsets=[0, 4])}, "each byte once"),
    "bytes of two": ({"a": entry(), "b": entry()}, "each byte once"),
    "a gap": ({"a": entry(shape=[1], data_offsets=[4, 8])}, "each byte once"),
    "a negative place": ({"a": entry(data_offsets=[-8, 0])}, "not a list of sizes"),
    "a size that is no number": ({"a": entry(shape=[2.0])}, "not a list of sizes"),
    "a size that is a truth": ({"a": entry(shape=[True, 2])}, "not a list of sizes"),
    "a huge shape": ({"a": entry(shape=[2**62, 2**62])}, "does not match its number of bytes"),
    "an unknown dtype": ({"a": entry(dtype="F4")}, "NumPy or ml_dtypes can hold, found 'F4'"),
    "a dtype that is none": ({"a": entry(dtype=[])}, "NumPy or ml_dtypes can hold"),
    "an entry that is none": ({"a": 7}, "expected a dtype, a shape and offsets"),
    "a list": ([], "not a JSON object"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(case, tmp_path):
    header, message = HEADERS[case]
    path = write_header(tmp_path / "x.safetensors", json.dumps(header), bytes(8))
    with pytest.raises((CheckpointError, ValueError), match=message):
        read(path)


def test_a_name_twice(tmp_path):
    one = json.dumps({"a": entry()})
    path = write_header(tmp_path / "x.safetensors", f"{one[:-1]}, {one[1:]}", bytes(8))
    with pytest.raises(ValueError, match="a name twice"):
        read(path)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="claims 1099511627776 bytes"):
        read(path)


def test_a_header_of_small_values_takes_too_much(tmp_path):
    path = write_header(tmp_path / "x.safetensors", '{"a":[' + "[]," * 700_000 + "[]]}")
    with pytest.raises(CheckpointError, match="more memory than twice"):
        read(path)
