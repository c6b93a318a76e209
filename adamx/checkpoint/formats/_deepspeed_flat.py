"""Flat vectors that are split over ranks, with all parameters of a group one after another."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._torch_tensors import describe
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.torch_archive import read_tensors
from adamx.checkpoint.untrusted.torch_tensors import Tensor, make_tensor

__all__ = ["Piece", "Shapes", "assemble", "check_pieces", "scatter", "split_each", "split_evenly"]

Shapes = Mapping[str, tuple[int, ...]]


class Piece(NamedTuple):
    """Elements of a parameter in the vector of a rank."""

    rank: int
    start: int
    length: int


def split_each(shapes: Shapes, ranks: int) -> dict[str, list[Piece]]:
    """As ZeRO-3 does: each parameter is split over all ranks, and the last parts are padded."""
    pieces: dict[str, list[Piece]] = {}
    start = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        part = -(-count // ranks)
        sizes = [min(part, max(0, count - rank * part)) for rank in range(ranks)]
        pieces[name] = [Piece(rank, start, size) for rank, size in enumerate(sizes) if size]
        start += part
    return pieces


def split_evenly(shapes: Shapes, ranks: int, size: int) -> dict[str, list[Piece]]:
    """As ZeRO-1 and 2 did before files recorded it: one vector, with `size` elements a rank."""
    pieces: dict[str, list[Piece]] = {}
    at = 0
    for name, shape in shapes.items():
        pieces[name], end = [], at + math.prod(shape)
        while at < end:
            if not size or at // size >= ranks:
                raise CheckpointError(
                    where=name,
                    expected="its values",
                    found=f"only {ranks} parts of {size} elements",
                )
            count = min(end, (at // size + 1) * size) - at
            pieces[name].append(Piece(at // size, at % size, count))
            at += count
    left = ranks * size - at
    if left >= max(2 * ranks, 1):
        raise CheckpointError(
            expected=f"parameters of {(size - 2) * ranks + 1} to {size * ranks} elements",
            found=f"shapes of {at} elements",
        )
    return pieces


def check_pieces(shapes: Shapes, pieces: Mapping[str, Sequence[Piece]], size: int) -> None:
    """Raise unless each parameter is complete, and continues where the vector of a rank ends."""
    for name, shape in shapes.items():
        own = pieces.get(name, [])
        count = sum(piece.length for piece in own)
        if count != math.prod(shape):
            raise CheckpointError(
                where=name,
                expected=f"{math.prod(shape)} elements, as its shape {shape} says",
                found=f"{count} in {len(own)} ranks",
            )
        for one, other in itertools.pairwise(own):
            is_end = one.start + one.length == size
            if not is_end or other.start or other.rank != one.rank + 1:
                raise CheckpointError(
                    where=name,
                    expected=f"parts that follow one another in vectors of {size} elements",
                    found=f"{one.length} elements at {one.start} of rank {one.rank}, then "
                    f"{other.length} at {other.start} of rank {other.rank}",
                )


def assemble(
    where: str,
    vectors: Sequence[Any],
    shapes: Shapes,
    pieces: Mapping[str, Sequence[Piece]],
    account: Account,
    progress: Progress | None,
    *,
    values: bool,
    is_padded_with_zeros: bool,
) -> dict[str, np.ndarray]:
    """The parameters' arrays.

    Args:
      where: what the vectors are, for errors.
      vectors: of each rank.
      shapes: of the parameters.
      pieces: where their elements are.
      account: what the values are charged to.
      progress: called with the number of bytes just read.
      values: whether they are read; without, arrays of zeros take no memory.
      is_padded_with_zeros: whether elements of no parameter have to be 0.
    """
    for rank, vector in enumerate(vectors):
        if not isinstance(vector, Tensor) or vector.ndim != 1 or vector.dtype != vectors[0].dtype:
            found = describe(vector)
            if isinstance(vector, Tensor):
                found = f"shape {vector.shape} and dtype {vector.dtype}"
            raise CheckpointError(
                where=f"rank {rank}: {where}", expected="a vector like that of rank 0", found=found
            )
    dtype = vectors[0].dtype
    if not values:
        return {name: np.broadcast_to(np.zeros((), dtype), own) for name, own in shapes.items()}
    account.spend(sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize)
    arrays = {name: np.empty(math.prod(shape), dtype) for name, shape in shapes.items()}
    filled = dict.fromkeys(shapes, 0)
    for rank, vector in enumerate(vectors):
        with account.lend():  # its memory is freed after this
            [read] = read_tensors([vector], account, progress)
        own = [(piece, name) for name in shapes for piece in pieces[name] if piece.rank == rank]
        at = 0
        for piece, name in sorted(own):
            end = piece.start + piece.length
            if piece.start < at or end > read.size:
                raise CheckpointError(
                    where=f"rank {rank}: {where}: {name}",
                    expected=f"{piece.length} elements within {read.size}, used by it alone",
                    found=f"those from {piece.start} to {end}",
                )
            if is_padded_with_zeros and read[at : piece.start].any():
                raise _refuse_padding(rank, where)
            start = filled[name]
            arrays[name][start : start + piece.length] = read[piece.start : end]
            filled[name], at = start + piece.length, end
        if is_padded_with_zeros and read[at:].any():
            raise _refuse_padding(rank, where)
    return {name: arrays[name].reshape(shape) for name, shape in shapes.items()}


def scatter(
    arrays: Mapping[str, np.ndarray],
    pieces: Mapping[str, Sequence[Piece]],
    vectors: Sequence[np.ndarray],
) -> list[Tensor]:
    """The vectors of the ranks, with the parameters' elements in them: as `assemble` takes them."""
    made = [np.zeros_like(vector, subok=False) for vector in vectors]
    for name, array in arrays.items():
        at, flat = 0, array.reshape(-1)
        for piece in pieces[name]:
            end = at + piece.length
            made[piece.rank][piece.start : piece.start + piece.length] = flat[at:end]
            at = end
    return [make_tensor(vector) for vector in made]


def _refuse_padding(rank: int, where: str) -> CheckpointError:
    return CheckpointError(
        where=f"rank {rank}: {where}",
        expected="zeros as padding between parameters",
        found="other numbers: the shapes or slices do not belong to these values",
    )
