"""HDF5 files that were made to take memory and time, or to lead to other files."""

import re
import struct

import h5py
import numpy as np

from tests.fuzz.hdf5_files import (
    any_array,
    any_dataset,
    any_names,
    any_path,
    datasets,
    groups,
    with_edit,
)
from tests.fuzz.mangling import pick

__all__ = ["TRAPS", "hard_link_web", "repeated_text"]

_TEBI = 1 << 20  # squared: the entries of an array that is said to have terabytes


def claimed_chunked(file: h5py.File, rng: np.random.RandomState) -> None:
    """Terabytes of which no chunk was written."""
    path = any_dataset(file, rng)
    del file[path]
    file.create_dataset(path, (_TEBI, _TEBI), "f4", chunks=(64, 64), fillvalue=1)


def claimed_contiguous(file: h5py.File, rng: np.random.RandomState) -> None:
    """Terabytes for which no place in the file was taken."""
    path = any_dataset(file, rng)
    del file[path]
    shapes = [(_TEBI, _TEBI), (1 << 60,), (1 << 40,), (2,) * 32, (1 << 33,)]
    shape = pick(rng, shapes)
    h5py.h5d.create(file.id, path.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape))


def compressed(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = any_array(file, rng)
    if array.size > 1:
        del file[path]
        file.create_dataset(path, data=array, compression="gzip", shuffle=True)


def chunked_bomb(file: h5py.File, rng: np.random.RandomState) -> None:
    """Zeros that deflate to next to nothing."""
    path = any_dataset(file, rng)
    del file[path]
    file.create_dataset(path, data=np.zeros(1 << 22, "f4"), compression="gzip", chunks=True)


def external_link(file: h5py.File, rng: np.random.RandomState) -> None:
    path = any_path(file, rng)
    del file[path]
    file[path] = h5py.ExternalLink(pick(rng, ["/etc/passwd", "/dev/zero", "even.h5"]), "/")


def soft_link(file: h5py.File, rng: np.random.RandomState) -> None:
    """To itself, to the root, or to another dataset."""
    path = any_path(file, rng)
    target = pick(rng, [f"/{path}", "/", f"/{any_dataset(file, rng)}"])
    del file[path]
    file[path] = h5py.SoftLink(target)


def hard_link_cycle(file: h5py.File, rng: np.random.RandomState) -> None:
    paths = groups(file)
    file[pick(rng, paths)]["again"] = file[pick(rng, ["/", *paths])]


def hard_link_web(file: h5py.File, rng: np.random.RandomState) -> None:
    """Groups with two ways to the next, 40 times: 2 ** 40 paths."""
    group = file[pick(rng, groups(file))]
    for _ in range(40):
        group = group.create_group("one way")
        group.parent["another"] = group


def overlapping(file: h5py.File, rng: np.random.RandomState) -> None:
    """Many names of one dataset."""
    path = max(datasets(file), key=lambda path: file[path].nbytes)
    group = file[path].parent
    for index in range(300):
        group[str(20 + index)] = file[path]
    owner, name, names = any_names(file, rng)
    if name == "weight_names":
        owner.attrs[name] = [*names, *(str(20 + index) for index in range(300))]


def deep(file: h5py.File, rng: np.random.RandomState) -> None:
    group = file[pick(rng, groups(file))]
    for _ in range(rng.randint(50, 500)):
        group = group.create_group("deeper")
    group["x"] = np.zeros(3)


def many_groups(file: h5py.File, rng: np.random.RandomState) -> None:
    group = file[pick(rng, groups(file))]
    for index in range(500):
        group.create_group(f"more{index}")


def many_datasets(file: h5py.File, rng: np.random.RandomState) -> None:
    group = file[pick(rng, groups(file))]
    for index in range(500):
        group[str(100 + index)] = np.float32(index)


def external_storage(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = any_array(file, rng)
    del file[path]
    shape = array.shape or (1,)
    external = [(pick(rng, ["/etc/passwd", "/dev/zero"]), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(path, shape, "f4", external=external)


def virtual(file: h5py.File, rng: np.random.RandomState) -> None:
    """A dataset whose values, and perhaps whose shape, are told by another file."""
    path, array = any_array(file, rng)
    del file[path]
    shape = array.shape or (1,)
    layout = h5py.VirtualLayout(shape, "f4", maxshape=(None, *shape[1:]))
    source = h5py.VirtualSource("odd.h5", "x", shape, maxshape=(None, *shape[1:]))
    everything = slice(0, h5py.h5s.UNLIMITED)
    layout[everything] = source[everything]
    file.create_virtual_dataset(path, layout)


def large_attribute(file: h5py.File, rng: np.random.RandomState) -> None:
    owner, name, _ = any_names(file, rng)
    values = [
        np.zeros(60_000, "S1"),
        np.array([b"x" * 60_000]),
        "x" * 1_000_000,
        "\U0001f600" * 9999,
    ]
    owner.attrs[name] = pick(rng, values)


def repeated_text(content: bytes, rng: np.random.RandomState) -> bytes:
    """Names by the thousand that all are one long text, which stands in the file once."""

    def edit(file: h5py.File, rng: np.random.RandomState) -> None:
        owner, name, _ = any_names(file, rng)
        owner.attrs[name] = ["x" * 30_000, *[""] * 3000]

    result = with_edit(edit)(content, rng)
    match = re.search(re.escape(struct.pack("<I", 30_000)) + rb".{8}.{4}", result, re.DOTALL)
    assert match is not None
    return result[: match.end()] + match[0] * 3000 + result[match.end() + 16 * 3000 :]


TRAPS = (
    claimed_chunked,
    claimed_contiguous,
    compressed,
    chunked_bomb,
    external_link,
    soft_link,
    hard_link_cycle,
    hard_link_web,
    overlapping,
    deep,
    many_groups,
    many_datasets,
    external_storage,
    virtual,
    large_attribute,
)
