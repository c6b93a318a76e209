"""Untrusted HDF5 files: no link is followed out of them, no stated size is trusted."""

import contextlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.hdf5_file import SIGNATURE, File, Group
from adamx.checkpoint.untrusted.hdf5_messages import BFLOAT16, Dataset

__all__ = ["SIGNATURE", "Reader", "natural_order_key"]


class Reader:
    """Reads groups, attributes and whole arrays of one HDF5 file.

    Only hard links are followed. Arrays must be stored as Keras stores them, in one piece and
    uncompressed; so no array can be larger than the file, and all together may not be.
    """

    def __init__(
        self,
        stream: io.BufferedReader,
        progress: Progress | None = None,
        values: bool = True,
        account: Account | None = None,
    ) -> None:
        self.stream = stream
        self._file = File(stream, account)
        self.account = self._file.account
        self.root = self._file.root
        self._left = self._size = self._file.size
        self.progress = progress
        self._values = values

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        source: Path | io.BufferedReader,
        progress: Progress | None = None,
        values: bool = True,
        account: Account | None = None,
    ) -> Iterator[Self]:
        """Open a path, or a binary stream that can seek.

        Without `values`, arrays of more than one entry are zeros that take no memory. Where the
        stream is a part of a file, `account` is that file's.
        """
        if isinstance(source, Path):
            with source.open("rb") as stream:
                yield cls(stream, progress, values, account)
        else:
            yield cls(source, progress, values, account)

    def group(self, path: str) -> Group | None:
        """The group at `path`, or None."""
        node = self.member(path)
        if isinstance(node, Dataset):
            raise CheckpointError(f"{path}: expected a group, found an array")
        return node

    def member(self, path: str, within: Group | None = None) -> Group | Dataset | None:
        """The group or dataset at `path`, or None."""
        node: Group | Dataset | None = self.root if within is None else within
        for part in filter(None, path.split("/")):
            node = self._file.child(node, part) if isinstance(node, Group) else None
        return node

    def present(self, path: str, within: Group | None = None) -> Group | Dataset:
        """The group or dataset that the file says it has at `path`."""
        node = self.member(path, within)
        if node is None:
            raise CheckpointError(f"{path}: the file refers to it, but it is not there")
        return node

    def datasets(self, group: Group) -> dict[str, Dataset]:
        """The datasets in and below a group by path, in natural order: 2 before 10."""
        found: dict[str, Group | Dataset] = {}
        self._walk(group, "", set(), found)
        return {path: node for path, node in found.items() if isinstance(node, Dataset)}

    def array(self, dataset: Group | Dataset) -> np.ndarray:
        """The whole array, in the machine's byte order."""
        name = dataset.name
        if isinstance(dataset, Group):
            raise CheckpointError(f"{name}: expected an array, found a group")
        if dataset.fault:
            raise CheckpointError(f"{name}: {dataset.fault}")
        dtype, is_bfloat16 = dataset.dtype, self.text(dataset, "dtype") == "bfloat16"
        if is_bfloat16 and dtype not in (np.dtype("V2"), BFLOAT16):
            raise CheckpointError(f"{name}: expected bfloat16 as its attribute says, found {dtype}")
        if not is_bfloat16 and dtype == np.dtype("V2"):
            raise CheckpointError(f"{name}: expected numbers, found bytes without a numeric type")
        start = dataset.data if isinstance(dataset.data, int) else 0
        if dataset.nbytes and start + dataset.nbytes > self._size:
            raise CheckpointError(
                f"{name}: expected {dataset.nbytes} bytes for shape {dataset.shape}, but they are "
                f"not in the file of {self._size} bytes"
            )
        self._left -= dataset.nbytes
        if self._left < 0:
            raise CheckpointError(f"{name}: the arrays are larger than the file: they overlap")
        if not self._values and math.prod(dataset.shape) > 1:
            kind = BFLOAT16 if is_bfloat16 else dtype.newbyteorder("=")
            return np.broadcast_to(np.zeros((), kind), dataset.shape)
        array = self._file.read(dataset)
        if self.progress:
            self.progress(array.nbytes)
        if is_bfloat16:
            return array.view(BFLOAT16)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))

    def text(self, owner: Group | Dataset, name: str) -> str | None:
        """The attribute of that name as text, or None."""
        found = self._file.texts(owner, name)
        if found is None:
            return None
        shape, texts = found
        if shape != ():
            raise CheckpointError(
                f"{owner.name}: attribute {name}: expected one string, found {len(texts)}"
            )
        return texts[0]

    def texts(self, owner: Group | Dataset, name: str) -> list[str] | None:
        """The attribute of that name as a list of texts, put together where Keras split it."""
        found = self._file.texts(owner, name)
        if found is not None and found[0] == ():
            raise CheckpointError(f"{owner.name}: attribute {name}: expected a list of strings")
        if found is not None:
            return found[1]
        parts: list[list[str]] = []
        while (part := self._file.texts(owner, f"{name}{len(parts)}")) is not None:
            parts.append(part[1])
        return [text for part in parts for text in part] if parts else None

    def _walk(
        self, group: Group, prefix: str, above: set[int], found: dict[str, Group | Dataset]
    ) -> None:
        if group.address in above or len(above) > _DEEPEST:
            raise CheckpointError(f"{group.name}: groups are nested too deeply, or in a cycle")
        for name in sorted(group.links, key=natural_order_key):
            node = self._file.child(group, name)
            assert node is not None
            found[prefix + name] = node
            self.account.spend(_PATH + len(prefix) + len(name))
            if len(found) * _LEAST_PER_OBJECT > self._size:
                raise CheckpointError("more links than a file of this size has objects")
            if isinstance(node, Group):
                self._walk(node, f"{prefix}{name}/", above | {group.address}, found)


_DEEPEST = 64
_LEAST_PER_OBJECT = 150  # bytes: its header, and a link to it
_PATH = 150  # bytes of memory that a path takes beside its letters


def natural_order_key(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d{1,18})|(\D+)", name)]
