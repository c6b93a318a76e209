"""Values in the files of `torch.distributed.checkpoint`: tensors, whole or in parts, and others."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError, name_file
from adamx.checkpoint.formats._dcp_metadata import METADATA, Chunk, Entry, Segment
from adamx.checkpoint.formats._folders import list_names
from adamx.checkpoint.formats._torch_tensors import describe
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.safetensors_file import (
    HEADER_START,
    Held,
    read_safetensors,
)
from adamx.checkpoint.untrusted.torch_archive import read_archive, read_pickle, read_tensors
from adamx.checkpoint.untrusted.torch_tensors import Tensor, find_dtype
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE

__all__ = ["Store"]

_Shape = tuple[int, ...]


class Store:
    """Reads values out of a folder."""

    def __init__(self, folder: Path, account: Account, progress: Progress | None) -> None:
        self._folder, self._account, self._progress = folder, account, progress
        self._sizes: dict[str, int] = {}
        self._held: dict[tuple[str, int], Held] = {}

    def read_value(self, name: str, entry: Entry) -> Any:
        """A value that is no tensor."""
        (chunk,) = entry.chunks
        path, segment = self.find(name, chunk.segment), chunk.segment
        with path.open("rb") as file:
            file.seek(segment.start)
            if file.read(len(SIGNATURE)) != SIGNATURE:
                file.seek(segment.start)
                self._account.spend(segment.size)
                return read_pickle(file.read(segment.size), self._account)
        return self._read_archive(name, segment)

    def read_tensor(self, name: str, entry: Entry) -> np.ndarray:
        """A tensor: a map of the file, or an array assembled from its parts."""
        _check_cover(name, entry.shape, entry.chunks)
        dtype = find_dtype(entry.dtype.qualname) if entry.dtype else None
        if dtype is None:
            found = describe(entry.dtype)
            raise CheckpointError(where=name, expected="a dtype that NumPy supports", found=found)
        if len(entry.chunks) == 1:
            return self._read_part(name, entry.chunks[0], dtype)
        nbytes = math.prod(entry.shape) * dtype.itemsize
        self._account.spend(nbytes)
        whole = np.empty(entry.shape, dtype)
        for chunk in entry.chunks:
            region = zip(chunk.offset, chunk.shape, strict=True)
            place = tuple(slice(start, start + length) for start, length in region)
            with self._account.lend():
                part = self._read_part(name, chunk, dtype)
                [whole[place]] = read_tensors([part], self._account, self._progress)
        return whole

    def _read_part(self, name: str, chunk: Chunk, dtype: np.dtype[Any]) -> Tensor:
        if self._begins_safetensors(name, chunk.segment):
            part = self._read_safetensors(name, chunk.segment)
        else:
            part = self._read_archive(name, chunk.segment)
        if not isinstance(part, Tensor):
            raise CheckpointError(where=name, expected="a dense tensor", found=describe(part))
        if (part.shape, part.dtype) != (chunk.shape, dtype):
            raise CheckpointError(
                where=name,
                expected=f"a part of shape {chunk.shape} and dtype {dtype}, as {METADATA} says",
                found=f"{part.shape} and {part.dtype} in {chunk.segment.file}",
            )
        return part

    def _begins_safetensors(self, name: str, segment: Segment) -> bool:
        """Whether the segment is a safetensors section, which has all of the file's tensors."""
        with self.find(name, segment).open("rb") as file:
            file.seek(segment.start)
            start = file.read(HEADER_START + 1)
        return not start.startswith(SIGNATURE) and start.endswith(b"{")

    def _read_safetensors(self, name: str, segment: Segment) -> Tensor | None:
        path, key = self.find(name, segment), (segment.file, segment.start)
        if key not in self._held:
            with name_file(Path(segment.file), "safetensors"):
                self._held[key] = read_safetensors(path, self._account, segment.start)
        return self._held[key].arrays.get(name)

    def _read_archive(self, name: str, segment: Segment) -> Any:
        path = self.find(name, segment)
        try:
            return read_archive(path, segment.start, segment.size, account=self._account)
        except CheckpointError as error:
            raise error.within(f"{name}: {segment.file}") from error
        except ValueError as error:
            raise CheckpointError(
                f"truncated or damaged, or not stored as torch.save does: {error}",
                where=f"{name}: {segment.file}",
            ) from error

    def find(self, name: str, segment: Segment) -> Path:
        """The file of a segment, which has all of its bytes."""
        path = self._folder / segment.file
        if segment.file not in self._sizes:
            if not path.is_file():
                raise CheckpointError(
                    where=segment.file,
                    expected=f"the file with {name}, which {METADATA} names",
                    found=list_names(self._folder),
                    remedy="use a folder with the files of all ranks",
                )
            self._sizes[segment.file] = path.stat().st_size
        size = self._sizes[segment.file]
        if segment.start + segment.size > size:
            raise CheckpointError(
                where=segment.file,
                expected=f"{name} at bytes {segment.start} to {segment.start + segment.size}",
                found=f"{size} bytes: it is truncated, or belongs to another checkpoint",
            )
        return path


def _check_cover(name: str, shape: _Shape, chunks: Sequence[Chunk]) -> None:
    """Raise unless the parts have every element of the tensor exactly once."""
    for chunk in chunks:
        ends = map(sum, zip(chunk.offset, chunk.shape, strict=True))
        if any(end > length for end, length in zip(ends, shape, strict=True)):
            raise _refuse_parts(name, shape, f"one of {chunk.shape} at {chunk.offset}")
    count = sum(math.prod(chunk.shape) for chunk in chunks)
    if count != math.prod(shape):
        kind = "a gap" if count < math.prod(shape) else "an overlap"
        raise _refuse_parts(name, shape, f"{kind}: {len(chunks)} parts of {count} elements")
    for one, other in _find_overlaps(chunks):
        raise _refuse_parts(name, shape, f"an overlap of those at {one} and {other}")


def _find_overlaps(chunks: Sequence[Chunk]) -> Iterator[tuple[_Shape, _Shape]]:
    """Pairs of parts that have elements in common."""
    if len(chunks) < 2 or not chunks[0].offset:
        return
    starts = np.array([chunk.offset for chunk in chunks])
    ends = starts + np.array([chunk.shape for chunk in chunks])
    order = np.argsort(starts[:, 0], kind="stable")
    starts, ends = starts[order], ends[order]
    for at in range(len(chunks) - 1):
        # Those after it begin further on along the first axis: look at those that begin within.
        until = int(np.searchsorted(starts[:, 0], ends[at, 0]))
        rest = slice(at + 1, max(until, at + 1))
        common = ((starts[rest] < ends[at]) & (starts[at] < ends[rest])).all(axis=1)
        if common.any():
            other = at + 1 + int(np.argmax(common))
            yield tuple(starts[at].tolist()), tuple(starts[other].tolist())


def _refuse_parts(name: str, shape: _Shape, found: str) -> CheckpointError:
    return CheckpointError(
        where=name, expected=f"parts that make up a tensor of shape {shape}", found=found
    )
