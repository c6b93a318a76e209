"""Untrusted safetensors files, read without their package.

The package checks a file as strictly, but takes memory for a header before anything bounds it, and
its NumPy arrays cannot be bfloat16 or float8.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account, charge_json
from adamx.checkpoint.untrusted.torch_archive import Region
from adamx.checkpoint.untrusted.torch_tensors import Storage, Tensor, find_dtype

__all__ = ["DTYPES", "HEADER_START", "Held", "read_header", "read_safetensors"]

HEADER_START = 8  # bytes before the header, which say how long it is
_PER_ARRAY = 4_000  # bytes of memory, beside the values
_METADATA = "__metadata__"
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


class Held(NamedTuple):
    """What is in a file.

    Attributes:
      arrays: by name, in the file's order: read-only maps of the file, which `read_tensors` reads.
      metadata: texts by name.
    """

    arrays: dict[str, Tensor]
    metadata: Mapping[str, str]


def read_header(path: Path, account: Account, start: int = 0) -> bytes:
    """The header, charged to the account: JSON that describes the arrays.

    Args:
      path: the file.
      account: what the header is charged to.
      start: where safetensors begin in it.

    Raises:
      ValueError: it is not in the file.
      CheckpointError: it takes too much memory.
    """
    with path.open("rb") as file:
        file.seek(start)
        length = int.from_bytes(file.read(HEADER_START), "little")
        if length > path.stat().st_size - start - HEADER_START:
            raise ValueError(f"its header claims {length} bytes, more than the file has")
        header = file.read(length)
    # As many as there may be; an entry is longer than this in the file, too.
    account.allow(_PER_ARRAY * header.count(b'"data_offsets"'))
    charge_json(header, account)
    return header


def read_safetensors(path: Path, account: Account, start: int = 0) -> Held:
    """The arrays in a safetensors file, or in what follows `start` in a file.

    Raises:
      CheckpointError, ValueError: it is damaged, or holds numbers that NumPy cannot.
    """
    header = read_header(path, account, start)
    size = path.stat().st_size
    entries = json.loads(header.decode(), object_pairs_hook=_refuse_twice)
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError(f"its {_METADATA} is not an object of strings")
    region, start = Region(path, False), start + HEADER_START + len(header)
    places = []
    arrays: dict[str, Tensor] = {}
    for name, entry in entries.items():
        account.spend(_PER_ARRAY)
        dtype, shape, (begin, end) = _read_entry(name, entry)
        if end > size - start:
            raise CheckpointError("its values are not in the file", where=f"{name:.200}")
        places.append((begin, end))
        arrays[name] = _map_tensor(region, name, dtype, shape, start + begin, end - begin)
    places.sort()
    ends = [0, *(end for _, end in places)]
    if ends[-1] != size - start or any(
        begin != end for (begin, _), end in zip(places, ends, strict=False)
    ):
        raise ValueError("its arrays do not fill the file, each byte once")
    return Held(arrays, metadata)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _read_entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], Sequence[int]]:
    """The dtype, the shape and the place of an array."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{name:.200}: expected a dtype, a shape and offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{name:.200}: its shape or its data_offsets are not a list of sizes")
    told = entry["dtype"]
    dtype = find_dtype(DTYPES.get(told)) if isinstance(told, str) else None
    if dtype is None:
        raise CheckpointError(
            where=f"{name:.200}",
            expected="numbers that NumPy or ml_dtypes can hold",
            found=f"{told!r:.40}",
        )
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name:.200}: its shape does not match its number of bytes")
    return dtype, tuple(shape), offsets


def _map_tensor(
    region: Region, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], start: int, nbytes: int
) -> Tensor:
    source = region.locate(name, start, nbytes, 0)
    memory = region.map(source, nbytes)
    tensor = memory.view(dtype).reshape(shape).view(Tensor)
    tensor.storage = Storage("UntypedStorage", name, nbytes, memory, source)
    return tensor
