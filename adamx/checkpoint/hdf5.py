"""HDF5 files that nobody vouches for: no link is followed out of them, no claimed size believed."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import jax.numpy as jnp
import numpy as np

from adamx.checkpoint.files import CheckpointError, Progress, plain_text, require
from adamx.checkpoint.matching import precision_problems

__all__ = ["SIGNATURE", "Reader", "in_natural_order"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_BFLOAT16 = np.dtype(jnp.bfloat16)


class Reader:
    """Reads groups, attributes and whole arrays of one HDF5 file.

    Only hard links are followed. Arrays must be stored as Keras stores them, in one piece and
    uncompressed; so no array can be larger than the file, and all together may not be.
    """

    def __init__(
        self, file: Any, size: int, progress: Progress | None = None, values: bool = True
    ) -> None:
        self._h5py = require("h5py", "reading HDF5")
        self._file = file
        self._left = self._size = size
        self._progress = progress
        self._values = values

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, source: Path | BinaryIO, progress: Progress | None = None, values: bool = True
    ) -> Iterator[Self]:
        """Open a path, or a binary stream that can seek.

        Without `values`, arrays of more than one entry are zeros that take no memory.
        """
        h5py = require("h5py", "reading HDF5")
        is_path = isinstance(source, Path)
        size = source.stat().st_size if is_path else source.seek(0, os.SEEK_END)
        with h5py.File(source, "r") as file:
            yield cls(file, size, progress, values)

    def group(self, path: str) -> Any:
        """The group at `path`, or None."""
        node = self.member(path)
        if node is not None and not isinstance(node, self._h5py.Group):
            raise CheckpointError(f"{path}: expected a group, found a {type(node).__name__}")
        return node

    def member(self, path: str, within: Any = None) -> Any:
        """The group or dataset at `path`, or None."""
        node = self._file if within is None else within
        for part in filter(None, path.split("/")):
            node = self._child(node, part) if isinstance(node, self._h5py.Group) else None
        return node

    def datasets(self, group: Any) -> dict[str, Any]:
        """The datasets in and below a group by path, in natural order: 2 before 10."""
        found: dict[str, Any] = {}
        self._walk(group, "", set(), found)
        return found

    def array(self, dataset: Any) -> np.ndarray:
        """The whole array, in the machine's byte order."""
        if not isinstance(dataset, self._h5py.Dataset):
            raise CheckpointError(f"{dataset.name}: expected an array, found a group")
        shape, dtype, name = dataset.shape, dataset.dtype, dataset.name
        if shape is None:
            raise CheckpointError(f"{name}: expected an array, found a dataset without one")
        if plain_text(dataset.attrs["dtype"] if self._has(dataset, "dtype") else "") == "bfloat16":
            if dtype.itemsize != _BFLOAT16.itemsize:
                raise CheckpointError(
                    f"{name}: expected bfloat16 as its attribute says, found {dtype}"
                )
        elif dtype.kind not in "fiub":
            raise CheckpointError(f"{name}: expected numbers, found {dtype}")
        plan = dataset.id.get_create_plist()
        layout = plan.get_layout()
        plain = layout in (self._h5py.h5d.CONTIGUOUS, self._h5py.h5d.COMPACT)
        if not plain or plan.get_external_count() or plan.get_nfilters():
            raise CheckpointError(
                f"{name}: expected an array stored in one piece as Keras writes it, found it "
                "chunked, compressed or outside of the file; `h5repack -l CONTI -f NONE` undoes "
                "compression"
            )
        nbytes = math.prod(shape) * dtype.itemsize
        offset = dataset.id.get_offset() if layout == self._h5py.h5d.CONTIGUOUS else 0
        if nbytes and (offset is None or offset + nbytes > self._size):
            raise CheckpointError(
                f"{name}: expected {nbytes} bytes for shape {shape}, but they are not in the file "
                f"of {self._size} bytes"
            )
        self._left -= nbytes
        if self._left < 0:
            raise CheckpointError(f"{name}: the arrays are larger than the file: they overlap")
        bfloat16 = dtype.kind not in "fiub"
        if not self._values and math.prod(shape) > 1:
            return np.broadcast_to(np.zeros((), _BFLOAT16 if bfloat16 else dtype), shape)
        array = np.empty(shape, dtype)
        if nbytes:
            dataset.read_direct(array)
        if self._progress:
            self._progress(nbytes)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return array.view(_BFLOAT16) if bfloat16 else array

    def text(self, owner: Any, name: str) -> str | None:
        """The attribute of that name as text, or None."""
        value = self._attribute(owner, name)
        if value is None or isinstance(value, str | bytes | np.bytes_):
            return None if value is None else plain_text(value)
        raise CheckpointError(f"{owner.name}: attribute {name}: expected text, found {value!r:.80}")

    def texts(self, owner: Any, name: str) -> list[str] | None:
        """The attribute of that name as a list of texts, put together where Keras split it."""
        value = self._attribute(owner, name)
        if value is None:
            parts: list[str] = []
            while (value := self._attribute(owner, f"{name}{len(parts)}")) is not None:
                parts.append(value)
            if not parts:
                return None
            value = [text for part in parts for text in np.atleast_1d(part)]
        if isinstance(value, str | bytes):
            raise CheckpointError(f"{owner.name}: attribute {name}: expected a list of texts")
        texts = []
        for text in np.ravel(value) if isinstance(value, np.ndarray) else value:
            if not isinstance(text, str | bytes):
                if np.size(value) and isinstance(text, float | np.floating):
                    continue
                raise CheckpointError(f"{owner.name}: attribute {name}: found {text!r:.80}")
            texts.append(plain_text(text))
        return texts

    def _attribute(self, owner: Any, name: str) -> Any:
        if not self._has(owner, name):
            return None
        opened = self._h5py.h5a.open(owner.id, name.encode())
        claimed = opened.get_type().get_size() * opened.get_space().get_simple_extent_npoints()
        if claimed > self._size:
            raise CheckpointError(
                f"{owner.name}: attribute {name}: claims {claimed} bytes, in a file of {self._size}"
            )
        return owner.attrs[name]

    def _has(self, owner: Any, name: str) -> bool:
        return bool(self._h5py.h5a.exists(owner.id, name.encode()))

    def _child(self, group: Any, name: str) -> Any:
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, self._h5py.HardLink):
            raise CheckpointError(
                f"{group.name}/{name}: expected an object in the file, found a link to elsewhere"
            )
        return group[name]

    def copy_with(
        self, target: Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str], whole: str
    ) -> None:
        """Write a copy of the file in which some arrays are others.

        Args:
          target: the new file.
          arrays: by path.
          texts: attributes of the root to replace.
          whole: a group that has those of `arrays` alone.
        """
        with self._h5py.File(target, "w") as new:
            self._copy(self._file, new, "", arrays, whole)
            for path in arrays:
                if path not in new:
                    new[path] = arrays[path]
                    if arrays[path].dtype == _BFLOAT16:
                        new[path].attrs["dtype"] = "bfloat16"
            for name, text in texts.items():
                new.attrs[name] = np.bytes_(text.encode("utf-8"))

    def _copy(
        self, old: Any, new: Any, prefix: str, arrays: Mapping[str, np.ndarray], whole: str
    ) -> None:
        for name in old.attrs:
            if self._attribute(old, name) is not None:
                new.attrs[name] = old.attrs[name]
        for name in old:
            path, node = f"{prefix}{name}", self._child(old, name)
            if isinstance(node, self._h5py.Group):
                self._copy(node, new.create_group(name), f"{path}/", arrays, whole)
            elif path in arrays and node.shape == arrays[path].shape:
                created = new.create_dataset(name, data=as_stored(path, arrays[path], node.dtype))
                for key in node.attrs:
                    created.attrs[key] = node.attrs[key]
                if self._progress:
                    self._progress(arrays[path].nbytes)
            elif path not in arrays and prefix != f"{whole}/":
                old.copy(name, new)

    def _walk(self, group: Any, prefix: str, above: set[Any], found: dict[str, Any]) -> None:
        here = self._h5py.h5o.get_info(group.id).addr
        if here in above or len(above) > _DEEPEST:
            raise CheckpointError(f"{group.name}: groups within one another without end")
        for name in sorted(group, key=in_natural_order):
            node = self._child(group, name)
            if isinstance(node, self._h5py.Dataset):
                found[prefix + name] = node
                if len(found) * _LEAST_PER_DATASET > self._size:
                    raise CheckpointError("more datasets than a file of this size can hold")
            elif isinstance(node, self._h5py.Group):
                self._walk(node, f"{prefix}{name}/", above | {here}, found)


_DEEPEST = 64
_LEAST_PER_DATASET = 40  # bytes: links alone take that


def in_natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d{1,18})|(\D+)", name)]


def as_stored(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` in the dtype of the dataset that it replaces."""
    if array.dtype == _BFLOAT16 and dtype.kind == "V":
        return np.ascontiguousarray(array).view(dtype)
    if problems := precision_problems(name, array, dtype):
        raise CheckpointError(problems[0])
    return array.astype(dtype, copy=False)
