"""HDF5 files that say what is not so."""

import re
from typing import Any

import h5py
import numpy as np

from tests.fuzz.configurations import strange_json
from tests.fuzz.hdf5_files import (
    any_array,
    any_dataset,
    any_names,
    any_path,
    datasets,
    in_new_format,
    replace,
    with_edit,
)
from tests.fuzz.hdf5_traps import TRAPS, repeated_text
from tests.fuzz.mangling import mangled, pick

__all__ = ["EDITS", "MODEL_EDITS"]


def wrong_shape(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = any_array(file, rng)
    shapes = [array.T, array[None], array.ravel()[:-1], array.ravel(), np.zeros((0, *array.shape))]
    replace(file, path, pick(rng, shapes))


def wrong_dtype(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = any_array(file, rng)
    dtypes = ["<f2", ">f4", "<f8", "<i4", ">i8", "<u1", "S8", "?", "<c8", "V4", "i4,f4", "3<f4"]
    dtype = np.dtype(pick(rng, dtypes))
    replace(file, path, np.zeros(array.shape, dtype))


def wrong_bfloat16(file: h5py.File, rng: np.random.RandomState) -> None:
    path, _ = any_array(file, rng)
    values = [b"bfloat16", "bfloat16", np.arange(3), np.arange(4096) + 0.5, h5py.Empty("S8")]
    file[path].attrs["dtype"] = pick(rng, values)


def odd_number(file: h5py.File, rng: np.random.RandomState) -> None:
    """A number of 3 bytes."""
    path, array = any_array(file, rng)
    del file[path]
    if rng.rand() < 0.5:
        dtype = h5py.h5t.IEEE_F32LE.copy()
        dtype.set_fields(23, 15, 8, 0, 15)
        dtype.set_precision(24)
    else:
        dtype = h5py.h5t.STD_I32LE.copy()
    dtype.set_size(3)
    space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, path.encode(), dtype, space)


def wrong_numbers(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = any_array(file, rng)
    values = [np.nan, -1.0, np.inf, 1e30, 0.5, 2.0**31, 2.0**53]
    with np.errstate(all="ignore"):
        file[path][...] = np.full(array.shape, pick(rng, values))


def wrong_steps(file: h5py.File, rng: np.random.RandomState) -> None:
    paths = [path for path in datasets(file) if re.search(r"iter|vars/0$", path)]
    values = [-1, 2**31, 2**62, -(2**63), np.nan, -0.5, np.inf, np.array([1, 2]), np.array([30])]
    replace(file, pick(rng, paths), np.asarray(pick(rng, values)))


def removed(file: h5py.File, rng: np.random.RandomState) -> None:
    del file[any_path(file, rng)]


def moved(file: h5py.File, rng: np.random.RandomState) -> None:
    one, other = any_dataset(file, rng), any_dataset(file, rng)
    if one != other:
        file.move(one, "put_by")
        file.move(other, one)
        file.move("put_by", other)


def renamed(file: h5py.File, rng: np.random.RandomState) -> None:
    names = ["99", "007", "-1", "x" * 60_000, "\x1b[31m", b"\xff\xfe", "vars", "१", "0 "]
    path = any_dataset(file, rng)
    file[path].parent.move(path.rpartition("/")[2], pick(rng, names))


def swapped_names(file: h5py.File, rng: np.random.RandomState) -> None:
    owner, name, names = any_names(file, rng)
    rng.shuffle(names)
    owner.attrs[name] = names


def strange_names(file: h5py.File, rng: np.random.RandomState) -> None:
    owner, name, names = any_names(file, rng)
    values: list[Any] = [
        names[:1] * len(names),
        names[:-1],
        [*names, "missing"],
        [f"../{n}" for n in names],
        ["", *names[1:]],
        ["/", *names[1:]],
        ["."] * 2,
        names[0],
        np.arange(17),
        np.zeros((3, 0)),
        np.asarray(names, "S").reshape(1, -1),
        np.array([b"\xff\xfe"] * len(names)),
        ["\x1b[31m" + "x" * 5000 + n for n in names],
        h5py.Empty("S10"),
        np.zeros(3, "i4,S4"),
        np.nan,
    ]
    owner.attrs[name] = pick(rng, values)


def many_names(file: h5py.File, rng: np.random.RandomState) -> None:
    """Short names, each of which takes more memory than its byte."""
    owner, name, _ = any_names(file, rng)
    if rng.rand() < 0.5:
        owner.attrs[name] = np.full(60_000, b"a", "S1")
        return
    owner.attrs.pop(name, None)
    for index in range(200):
        owner.attrs[f"{name}{index}"] = np.full(60_000, b"a", "S1")


def strange_config(file: h5py.File, rng: np.random.RandomState) -> None:
    name = pick(rng, ["training_config", "model_config", "keras_version"])
    old = file.attrs.get(name, "{}")
    text = strange_json(old if isinstance(old, str) else old.decode(), rng)
    file.attrs[name] = text if len(text) < 60_000 or rng.rand() < 0.5 else text.encode()


def strange_version(file: h5py.File, rng: np.random.RandomState) -> None:
    values: list[Any] = ["9" * 5000 + ".0", "", "x", "-1.0", np.arange(3), "3.0", "2.0", "2.0.0-tf"]
    file.attrs["keras_version"] = pick(rng, values)


def text_as_array(file: h5py.File, rng: np.random.RandomState) -> None:
    name = pick(rng, ["training_config", "keras_version", "model_config"])
    values: list[Any] = [["{}"] * 9, np.float32(3), h5py.Empty("f4"), np.zeros(5000), b"\xff\xfe"]
    file.attrs[name] = pick(rng, values)


def new_format(content: bytes, rng: np.random.RandomState) -> bytes:
    """The structures of later HDF5, damaged."""
    result = in_new_format(content)
    return mangled(result, np.arange(0, len(result), 16), rng)[0]


_FILE_EDITS = (
    wrong_shape,
    wrong_dtype,
    wrong_bfloat16,
    odd_number,
    wrong_numbers,
    wrong_steps,
    removed,
    moved,
    renamed,
    swapped_names,
    strange_names,
    many_names,
)
EDITS = (*map(with_edit, (*_FILE_EDITS, *TRAPS)), repeated_text, new_format)
# Of what only files of whole models have.
MODEL_EDITS = tuple(
    map(with_edit, (strange_config, strange_config, strange_version, text_as_array))
)
