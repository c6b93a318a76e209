"""HDF5 files that nobody vouches for: one error, and little memory."""

import io

import h5py
import numpy as np
import pytest

from adamx.checkpoint.untrusted.hdf5 import Reader
from tests.checkpoint.damaged_files import RNG, TOO_MUCH, golden, keras_h5
from tests.fuzz.hdf5_files import with_edit
from tests.fuzz.hdf5_traps import hard_link_web, repeated_text

MOMENTS = "optimizer_weights/Adam/m/in/kernel:0"


def with_moments(create):
    """A file of Keras with other moments."""

    def edit(file):
        del file[MOMENTS]
        create(file)

    return keras_h5(edit)


# HDF5: nothing outside of the file is read, and no claimed size believed.


def test_link_out_of_a_file(refused):
    def link(file):
        file[MOMENTS] = h5py.ExternalLink("/etc/passwd", "/")

    assert "which links to other files need" in refused("a.h5", with_moments(link))


def test_soft_link(refused):
    def link(file):
        file[MOMENTS] = h5py.SoftLink(f"/{MOMENTS}")

    assert "found a soft or broken link" in refused("a.h5", with_moments(link))


def test_terabytes_that_were_never_written(refused):
    def create(file):
        shape = h5py.h5s.create_simple((1 << 20, 1 << 20))
        h5py.h5d.create(file.id, MOMENTS.encode(), h5py.h5t.IEEE_F32LE, shape)

    message = refused("a.h5", with_moments(create))
    assert f"expected {1 << 42} bytes for shape (1048576, 1048576)" in message


def test_terabytes_of_a_fill_value(refused):
    def create(file):
        file.create_dataset(MOMENTS, (1 << 20, 1 << 20), "f4", chunks=(64, 64), fillvalue=1)

    assert "h5repack -l CONTI -f NONE" in refused("a.h5", with_moments(create))


def test_arrays_in_another_file(refused, tmp_path):
    def create(file):
        source = [(tmp_path / "elsewhere", 0, 512)]
        file.create_dataset(MOMENTS, (8, 16), "f4", external=source)

    assert "outside of the file" in refused("a.h5", with_moments(create))


def test_arrays_of_another_file(refused):
    def create(file):
        layout = h5py.VirtualLayout((8, 16), "f4")
        layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (8, 16))
        file.create_virtual_dataset(MOMENTS, layout)

    assert "outside of the file" in refused("a.h5", with_moments(create))


def test_deflated_zeros(refused):
    def create(file):
        file.create_dataset(MOMENTS, data=np.zeros((1 << 10, 1 << 10)), compression="gzip")

    assert "h5repack -l CONTI -f NONE" in refused("a.h5", with_moments(create))


def test_one_array_under_many_names(refused):
    def link(file):
        group = file["optimizer/vars"]
        for index in range(18, 2000):
            group[str(index)] = group["8"]

    message = refused("a.weights.h5", keras_h5(link, "keras3.weights.h5"))
    assert "more links than a file of this size has objects" in message


def test_groups_within_themselves(refused):
    def link(file):
        file["layers/dense/again"] = file["layers"]

    message = refused("a.weights.h5", keras_h5(link, "keras3.weights.h5"))
    assert "groups are nested too deeply, or in a cycle" in message


def test_a_trillion_paths(refused):
    content = with_edit(hard_link_web)(golden("keras3.weights.h5"), RNG(0))
    assert "more links than a file of this size has objects" in refused("a.weights.h5", content)


def test_thousands_of_names_that_are_one_long_text(refused):
    content = repeated_text(golden("tfkeras_model.h5"), RNG(0))
    assert TOO_MUCH in refused("a.h5", content)


def test_newer_form_of_hdf5(refused):
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver="latest") as file:
        file["model_weights/x"] = 1
    assert "h5repack --low=0" in refused("a.h5", stream.getvalue())


@pytest.mark.parametrize("name", ["tf11_model.h5", "keras3_model.keras", "keras3.weights.h5"])
def test_truncated(name, refused):
    content = golden(name)
    refused(name, content[: len(content) // 2])
    assert "an empty file" in refused(name, b"")


def test_thousands_of_small_arrays_in_hdf5():
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for index in range(2_000):
            file[f"layers/dense_{index}/vars/0"] = np.float32(index)
    with Reader.open(stream) as reader:
        arrays = [reader.array(dataset) for dataset in reader.datasets(reader.root).values()]
    np.testing.assert_array_equal(arrays, np.arange(2_000))
