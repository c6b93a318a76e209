"""The header of an untrusted zarr array, of version 2 or 3, and the memory that its chunks take."""

import math
import zlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account, parse_json
from adamx.checkpoint.untrusted.zstd_frames import bound_zstd

__all__ = ["Header", "check_chunk", "read_header"]

_MOST_AXES = 32
_LONGEST = 1 << 16  # bytes of a header
# How much more than its chunk compressed data may claim: blocks of zstd say no more than that they
# hold at most 128 KiB, and an encoder may end them earlier.
_FACTOR, _SLACK = 16, 1 << 20
_COMPRESSORS = ("gzip", "zlib", "zstd")
_NEUTRAL = {"bytes", "crc32c", "transpose"}  # codecs that change no size by much


class Header(NamedTuple):
    """What an array claims to be.

    Attributes:
      shape: of the array.
      dtype: of its numbers.
      chunk: the shape of a chunk that is stored under a key of its own.
      inner: that of the chunks within it, or None if it is not divided.
      compressor: of the innermost chunks, or None.
      index_end: bytes that follow the index of the inner chunks.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    inner: tuple[int, ...] | None
    compressor: str | None
    index_end: int

    @property
    def nbytes(self) -> int:
        """The bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunks(self) -> int:
        """How many keys there are if all chunks are stored."""
        return math.prod(-(-n // m) for n, m in zip(self.shape, self.chunk, strict=True))


def read_header(text: bytes, account: Account) -> Header:
    """Read `.zarray` or `zarr.json`."""
    if len(text) > _LONGEST:
        raise ValueError(f"a header of {len(text)} bytes")
    described = parse_json(text, account)
    version = described["zarr_format"]
    header = {2: _read_second, 3: _read_third}[version](described)
    for shape in (header.chunk, header.inner or header.chunk):
        if len(shape) != len(header.shape) or not all(shape):
            raise ValueError(f"chunks of shape {shape}")
    if any(m > max(n, 1) for n, m in zip(header.shape, header.chunk, strict=True)):
        raise CheckpointError(
            expected=f"chunks within shape {header.shape}", found=f"shape {header.chunk}"
        )
    return header


def _read_second(described: dict[str, Any]) -> Header:
    compressor = described["compressor"]
    if described.get("filters"):
        raise CheckpointError(expected="no filters", found=f"{described['filters']!r:.80}")
    return Header(
        _read_shape(described["shape"]),
        _read_dtype(described["dtype"]),
        _read_shape(described["chunks"]),
        None,
        None if compressor is None else _check_compressor(compressor["id"]),
        0,
    )


def _read_third(described: dict[str, Any]) -> Header:
    grid = described["chunk_grid"]
    if grid["name"] != "regular" or described["node_type"] != "array":
        raise CheckpointError(expected="an array in a regular grid", found=f"{grid!r:.80}")
    codecs = described["codecs"]
    inner, end = None, 0
    if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
        divided = codecs[0]["configuration"]
        inner, codecs = _read_shape(divided["chunk_shape"]), divided["codecs"]
        names = [codec["name"] for codec in divided["index_codecs"]]
        if names not in (["bytes"], ["bytes", "crc32c"]) or (
            divided.get("index_location", "end") != "end"
        ):
            raise CheckpointError(expected="the index at the end", found=f"{names!r:.80}")
        end = 4 * (len(names) - 1)
    names = [codec["name"] for codec in codecs if codec["name"] not in _NEUTRAL]
    if len(names) > 1:
        raise CheckpointError(expected="one compression", found=f"{names!r:.80}")
    return Header(
        _read_shape(described["shape"]),
        _read_dtype(described["data_type"]),
        _read_shape(grid["configuration"]["chunk_shape"]),
        inner,
        _check_compressor(names[0]) if names else None,
        end,
    )


def check_chunk(header: Header, data: bytes) -> None:
    """Raise if a stored chunk would unpack to much more than the header says."""
    if header.inner is None:
        parts, shape = [data], header.chunk
    else:
        parts, shape = _divide(header, data), header.inner
    most = _FACTOR * math.prod(shape) * header.dtype.itemsize + _SLACK
    for part in parts:
        if header.compressor == "zstd":
            size = bound_zstd(part)
        elif header.compressor is None:
            size = len(part)
        else:
            size = _measure_deflated(part, most)
        if size > most:
            raise CheckpointError(
                expected=f"a chunk of at most {most} bytes", found=f"one that unpacks to {size}"
            )


def _divide(header: Header, data: bytes) -> list[bytes]:
    """The inner chunks of a stored one; the index after them has their positions."""
    assert header.inner is not None
    count = math.prod(-(-n // m) for n, m in zip(header.chunk, header.inner, strict=True))
    start = len(data) - header.index_end - 16 * count
    if start < 0:
        raise ValueError(f"an index of {count} inner chunks in {len(data)} bytes")
    index = np.frombuffer(data, "<u8", 2 * count, start).reshape(count, 2)
    places = [(int(at), int(size)) for at, size in index if int(at) != 2**64 - 1]
    if any(at + size > start for at, size in places):
        raise ValueError("an inner chunk is outside of its chunk")
    return [data[at : at + size] for at, size in places]


def _measure_deflated(data: bytes, most: int) -> int:
    """The size that data unpack to, as far as `most`."""
    stream, size = zlib.decompressobj(wbits=47), 0
    while data and size <= most and not stream.eof:
        size += len(stream.decompress(data, 1 << 16))
        data = stream.unconsumed_tail
    return size


def _read_shape(value: Any) -> tuple[int, ...]:
    is_right = isinstance(value, list) and len(value) <= _MOST_AXES
    if not is_right or not all(type(n) is int and 0 <= n < 2**62 for n in value):
        raise CheckpointError(expected="a shape", found=f"{value!r:.80}")
    return tuple(value)


def _read_dtype(name: Any) -> np.dtype:
    """The dtype of numbers with this name, NumPy's in version 2 and ml_dtypes'."""
    if isinstance(name, str) and name[:1] in "<>|" and name[1:2] in "biufc":
        return np.dtype(name).newbyteorder("=")
    found = getattr(jnp, "bool_" if name == "bool" else str(name), None)
    dtype = np.dtype(found) if hasattr(found, "dtype") else None
    if dtype is None or dtype.name != name:
        raise CheckpointError(expected="an array of numbers", found=f"dtype {name!r:.40}")
    return dtype


def _check_compressor(name: Any) -> str:
    if name not in _COMPRESSORS:
        raise CheckpointError(expected=f"one of {_COMPRESSORS}", found=f"{name!r:.40}")
    return name
