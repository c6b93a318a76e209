"""The reader of HDF5 gives what libhdf5 gives, of all that Keras writes."""

import io

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.checkpoint import CheckpointError
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.checkpoint.untrusted.hdf5_messages import Dataset
from tests.checkpoint.checkpoint_runs import CHECKPOINTS

DTYPES = ("<f2", ">f4", "<f4", "<f8", ">f8", "i1", "u1", "<i2", ">i4", "<i8", ">u8", "?")
SHAPES = ((), (3,), (2, 3), (0,), (4, 0, 2), (1,) * 20)


def opened(content):
    """The file as libhdf5 and as adamx read it."""
    return h5py.File(io.BytesIO(content)), Reader.open(io.BytesIO(content))


def written(edit, **options):
    stream = io.BytesIO()
    with h5py.File(stream, "w", **options) as file:
        edit(file)
    return stream.getvalue()


def assert_same(content):
    """Every array, and every attribute that is text."""
    file, reader = opened(content)
    with file, reader as reader:
        paths = []
        file.visit(paths.append)
        for path in ["/", *paths]:
            expected, found = file[path], reader.present(path)
            assert isinstance(expected, h5py.Dataset) == isinstance(found, Dataset)
            for name, value in expected.attrs.items():
                if isinstance(value, str | bytes):
                    assert reader.text(found, name) == h5py_text(value)
                elif value.dtype.kind in "OS":
                    assert reader.texts(found, name) == [h5py_text(x) for x in value.ravel()]
            if isinstance(found, Dataset):
                array = reader.array(found)
                assert array.dtype == expected.dtype.newbyteorder("=")
                np.testing.assert_array_equal(array, expected[()])


def h5py_text(value):
    return value if isinstance(value, str) else value.decode()


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*.h5")), ids=lambda path: path.name)
def test_files_of_keras(path):
    assert_same(path.read_bytes())


def test_dtypes_and_shapes():
    def edit(file):
        for dtype in DTYPES:
            for shape in SHAPES:
                values = np.arange(np.prod(shape)).reshape(shape)
                file[f"{dtype} {shape}"] = values.astype(dtype)

    assert_same(written(edit))


def test_array_in_its_header():
    def edit(file):
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((7,))
        made = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32BE, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(7, dtype=np.float32))

    assert_same(written(edit))


def test_attributes():
    def edit(file):
        file.attrs["é"] = "ü" * 10
        file.attrs["fixed"] = np.array([b"ab", b"c"])
        file.attrs["variable"] = ["é", "b" * 70_000, ""]
        file.attrs["table"] = np.array([["a", "b"], ["c", "d"]], dtype=object)
        file.attrs["bytes"] = np.bytes_(b"xyz")
        file.attrs["long"] = b"q" * 200_000
        for index in range(100):
            file.attrs[str(index)] = "x" * index

    assert_same(written(edit))


@pytest.mark.slow
def test_groups_with_thousands_of_links_some_of_them_deleted():
    def edit(file):
        for index in range(3_000):
            file[f"many/{index}"] = np.float32(index)
        for index in range(50):
            file[f"{'y' * 50 * index}/x"] = index
        for index in range(0, 3_000, 7):
            del file[f"many/{index}"]

    assert_same(written(edit))


def test_user_block():
    def edit(file):
        file["a/b"] = np.arange(3)

    assert_same(written(edit, userblock_size=512))


def test_bfloat16():
    values = np.asarray(jnp.arange(5.0, dtype=jnp.bfloat16))

    def edit(file):
        file["x"] = values
        file["x"].attrs["dtype"] = "bfloat16"
        file["y"] = values

    _, reader = opened(written(edit))
    with reader as reader:
        found = reader.array(reader.present("x"))
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, values)
        with pytest.raises(CheckpointError, match="expected numbers"):
            reader.array(reader.present("y"))


@pytest.mark.parametrize("value", ["text", np.zeros(3, np.complex64), h5py.Empty("f4")])
def test_what_is_no_number(value):
    def edit(file):
        file["x"] = value

    _, reader = opened(written(edit))
    with reader as reader, pytest.raises(CheckpointError, match="/x: expected numbers, found"):
        reader.array(reader.present("x"))
