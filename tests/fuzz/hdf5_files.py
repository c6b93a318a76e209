"""HDF5 files: where their structures are, what is in them, and larger ones."""

import io
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from tests.fuzz.mangling import pick

__all__ = [
    "any_array",
    "any_dataset",
    "any_names",
    "any_path",
    "datasets",
    "enlarged",
    "groups",
    "in_new_format",
    "places",
    "replace",
    "with_edit",
]

Edit = Callable[[h5py.File, np.random.RandomState], None]

_SIGNATURES = rb"TREE|HEAP|SNOD|GCOL|OHDR|OCHK|FRHP|FHDB|FHIB|FSHD|FSSE|BTHD|BTLF|BTIN"


def places(content: bytes) -> np.ndarray:
    """Where structures begin."""
    found = [match.start() for match in re.finditer(_SIGNATURES, content)]
    found += [match.start() - 40 for match in re.finditer(rb"weight_names|layer_names", content)]
    found += [match.start() - 40 for match in re.finditer(rb"(training|model)_config", content)]
    with h5py.File(io.BytesIO(content)) as file:
        for path in [*groups(file), *datasets(file)]:
            address = h5py.h5o.get_info(file[path].id).addr
            found += [address, address + 96, address + 192]
    found += [*range(0, 2048, 96), *range(len(content) - 4096, len(content), 96)]
    return np.clip(found, 0, len(content) - 1)


def enlarged(content: bytes, size: int) -> bytes:
    """The same variables, each with so many more columns that the file gets that size."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        arrays = {path: np.asarray(file[path]) for path in datasets(file)}
        times = 1 + size // sum(array.nbytes for array in arrays.values())
        for path, array in arrays.items():
            if array.size > 1:
                replace(file, path, np.tile(array, times))
    return stream.getvalue()


def in_new_format(content: bytes) -> bytes:
    """With the structures that HDF5 has had since 1.8, which Keras does not write."""
    stream = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as old, h5py.File(stream, "w", libver="latest") as new:
        new.attrs.update(old.attrs)
        for name in old:
            old.copy(name, new)
    return stream.getvalue()


def with_edit(edit: Edit) -> Callable[[bytes, np.random.RandomState], bytes]:
    """A function of the file's content."""

    def edited(content: bytes, rng: np.random.RandomState) -> bytes:
        stream = io.BytesIO(content)
        with h5py.File(stream, "r+") as file:
            edit(file, rng)
        return stream.getvalue()

    edited.__name__ = edit.__name__
    return edited


def _walk(file: h5py.File) -> Iterator[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    file.visititems(lambda path, node: found.append((path, node)))
    return iter(found)


def groups(file: h5py.File) -> list[str]:
    """Paths of all groups but the root."""
    return [path for path, node in _walk(file) if isinstance(node, h5py.Group)]


def datasets(file: h5py.File) -> list[str]:
    """Paths of all datasets."""
    return [path for path, node in _walk(file) if isinstance(node, h5py.Dataset)]


def any_path(file: h5py.File, rng: np.random.RandomState) -> str:
    return pick(rng, [*groups(file), *datasets(file)])


def any_dataset(file: h5py.File, rng: np.random.RandomState) -> str:
    return pick(rng, datasets(file))


def any_array(file: h5py.File, rng: np.random.RandomState) -> tuple[str, np.ndarray]:
    path = any_dataset(file, rng)
    return path, np.asarray(file[path])


def any_names(file: h5py.File, rng: np.random.RandomState) -> tuple[Any, str, list[str]]:
    """A group, its attribute that tells names, and the names."""
    nodes = [file[path] for path in groups(file)]
    pairs = itertools.product(nodes, ("weight_names", "layer_names", "name"))
    found = [(group, name) for group, name in pairs if np.size(group.attrs.get(name, ()))]
    group, name = pick(rng, found or [(nodes[-1], "name")])
    names = [
        n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(group.attrs.get(name, "x"))
    ]
    return group, name, names


def replace(file: h5py.File, path: str, array: np.ndarray) -> None:
    del file[path]
    file[path] = array
