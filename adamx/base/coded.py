"""Moments in 8 bits as float32 arrays of NumPy, which remember their codes.

So what goes through such arrays and back, whatever they are called on the way, keeps every bit.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from adamx.base.blockwise import EightBitMoment, decode, group_size

__all__ = ["Coded", "CodedArray", "CodedLeaf", "decode_coded", "find_codes"]

_BLOCK = 1 << 17  # elements decoded at once, whatever the shape: compiled once for a group size


class Coded(NamedTuple):
    """Both moments of a leaf in 8 bits."""

    mu: EightBitMoment
    nu: EightBitMoment

    @property
    def forms(self) -> list[tuple[tuple[int, ...], np.dtype]]:
        """The shapes and dtypes of codes and scales."""
        return [(x.shape, np.dtype(x.dtype)) for moment in self for x in moment]


class CodedArray(np.ndarray):
    """A moment in float32 with the codes from which `decode_coded` made it.

    A copy and a view have none, and what is computed is a plain array.
    """

    coded: Coded | None = None

    def __array_wrap__(self, array: Any, *_: Any) -> Any:
        """What is computed is an array or a scalar of NumPy."""
        return np.asarray(array)[()]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as an array of NumPy, which needs no adamx."""
        return self.view(np.ndarray).__reduce_ex__(protocol)


class CodedLeaf:
    """One moment of a leaf in 8 bits, in the place of the float32 array that it stands for.

    Attributes:
      coded: both moments of the leaf, on any device.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, coded: Coded, index: int, arrays: "_Decoded") -> None:
        self.coded, self._index, self._arrays = coded, index, arrays

    @classmethod
    def of(cls, coded: Coded) -> "tuple[CodedLeaf, CodedLeaf]":
        """The leaves of both moments, which are decoded together."""
        arrays = _Decoded(coded)
        return cls(coded, 0, arrays), cls(coded, 1, arrays)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""
        return self.coded.nu.codes.shape

    def read(self) -> CodedArray:
        """The numbers."""
        return self._arrays.both[self._index]


class _Decoded:
    def __init__(self, coded: Coded) -> None:
        self._coded = coded

    @functools.cached_property
    def both(self) -> tuple[CodedArray, CodedArray]:
        return decode_coded(Coded(*(EightBitMoment(*map(np.array, x)) for x in self._coded)))


def decode_coded(coded: Coded) -> tuple[CodedArray, CodedArray]:
    """The moments m and v for which arrays of NumPy stand; see `blockwise.decode`."""
    shape, group = coded.nu.codes.shape, group_size(coded.nu)
    codes = [_split(x.codes, group) for x in coded]
    scales = [x.scales.reshape(-1, 1) for x in coded]
    decoded = [np.empty(x.shape, np.float32) for x in codes]
    step = _BLOCK // group
    for start in range(0, len(codes[0]), step):
        part = slice(start, start + step)
        blocks = [
            EightBitMoment(_fill(c[part], step), _fill(s[part], step))
            for c, s in zip(codes, scales, strict=True)
        ]
        for whole, block in zip(decoded, _decode_block(*blocks), strict=True):
            whole[part] = np.asarray(block)[: len(codes[0]) - start]
    m, v = (_join(x, shape).view(CodedArray) for x in decoded)
    m.coded = v.coded = coded
    return m, v


def find_codes(m: Any, v: Any) -> Coded | None:
    """The codes of both moments of a leaf, if there are any that stand for exactly these numbers.

    An array may have been changed since it was decoded, or be the partner of another one.
    """
    coded = getattr(m, "coded", None)
    if coded is None or coded is not getattr(v, "coded", None):
        return None
    pairs = zip((m, v), decode_coded(coded), strict=True)
    return coded if all(_is_same(*pair) for pair in pairs) else None


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all bits are the same, also those of a NaN."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return np.array_equal(np.ascontiguousarray(a).view(np.uint32), b.view(np.uint32))


_decode_block = jax.jit(decode)


def _split(codes: np.ndarray, group: int) -> np.ndarray:
    """[..., n] as [groups, group], with zeros at the end of each row."""
    short = -codes.shape[-1] % group
    if short:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    return codes.reshape(-1, group)


def _join(x: np.ndarray, shape: Iterable[int]) -> np.ndarray:
    """The inverse of `_split`."""
    *outer, size = shape
    return np.ascontiguousarray(x.reshape(*outer, -1)[..., :size])


def _fill(x: np.ndarray, size: int) -> np.ndarray:
    """The rows, with zeros up to `size` of them."""
    return (
        x if len(x) == size else np.concatenate([x, np.zeros((size - len(x), x.shape[1]), x.dtype)])
    )
