"""adamx's own files: headers that lie, with or without the checksum made right."""

import copy
import hashlib
import json
import math
import re
from typing import Any

import numpy as np

from tests.fuzz.configurations import strange_json
from tests.fuzz.mangling import mangled, pick

__all__ = ["CODE_EDITS", "EDITS", "damaged_within", "header_end", "joined", "parts", "places"]

_BLANK = b"0" * 64


def header_end(content: bytes) -> int:
    """Where the arrays begin."""
    return 8 + int.from_bytes(content[:8], "little")


def places(content: bytes) -> np.ndarray:
    """The header is all structure, and most of all its length."""
    return np.concatenate([np.zeros(100, int), np.arange(header_end(content))])


def with_checksum(content: bytes) -> bytes:
    """With the checksum made right, where there is a place for it."""
    match = re.search(rb'"sha256":"(.{64})"', content[: 1 << 20], re.DOTALL)
    if match is None:
        return content
    before, after = content[: match.start(1)], content[match.end(1) :]
    return before + hashlib.sha256(before + _BLANK + after).hexdigest().encode() + after


def damaged_within(content: bytes, rng: np.random.RandomState) -> tuple[bytes, str]:
    """Bytes changed, and the checksum made right."""
    result, told = mangled(content, places(content), rng)
    return with_checksum(result), f"{told}, checksum right"


def strange_checkpoint(content: bytes, rng: np.random.RandomState) -> bytes:
    """One value of what is no array."""
    header, data = parts(content)
    metadata = header["__metadata__"]
    metadata["checkpoint"] = strange_json(metadata["checkpoint"], rng).replace("\ud800", "?")
    return joined(header, data)


def strange_fields(content: bytes, rng: np.random.RandomState) -> bytes:
    header, data = parts(content)
    described = json.loads(header["__metadata__"]["checkpoint"])
    key = pick(rng, described)
    values: list[Any] = [-1, 0.5, None, "x", [], {}, 10**30, ["a"] * 9, [[1]], True, {"b1": 2}]
    described[key] = pick(rng, values)
    header["__metadata__"]["checkpoint"] = json.dumps(described)
    return joined(header, data)


def repeated_arrays(content: bytes, rng: np.random.RandomState) -> bytes:
    """One array, to be read a hundred thousand times."""
    header, data = parts(content)
    described = json.loads(header["__metadata__"]["checkpoint"])
    arrays = described["arrays"]
    described["arrays"] = [pick(rng, arrays)] * 100_000
    header["__metadata__"]["checkpoint"] = json.dumps(described)
    return joined(header, data)


def swapped_arrays(content: bytes, rng: np.random.RandomState) -> bytes:
    header, data = parts(content)
    one, other = _any_array(header, rng), _any_array(header, rng)
    header[one], header[other] = header[other], header[one]
    return joined(header, data)


def strange_array(content: bytes, rng: np.random.RandomState) -> bytes:
    """A shape, a dtype or a place that cannot be."""
    header, data = parts(content)
    entry = copy.deepcopy(header[_any_array(header, rng)])
    start, end = entry["data_offsets"]
    changes: list[tuple[str, Any]] = [
        ("shape", [1 << 40, 1 << 20]),
        ("shape", [1 << 32, 1 << 32, 0]),
        ("shape", entry["shape"][::-1]),
        ("shape", [1] * 100 + entry["shape"]),
        ("shape", [-1]),
        ("dtype", "F64"),
        ("dtype", "BF16"),
        ("dtype", "F8_E4M3"),
        ("dtype", "BOOL"),
        ("dtype", "I32"),
        ("data_offsets", [end, start]),
        ("data_offsets", [start, end + (1 << 44)]),
        ("data_offsets", [start + (1 << 63), end + (1 << 63)]),
        ("data_offsets", [0, 1 << 64]),
        ("data_offsets", [start, start]),
    ]
    key, value = pick(rng, changes)
    header[_any_array(header, rng)][key] = value
    return joined(header, data)


def removed_array(content: bytes, rng: np.random.RandomState) -> bytes:
    header, data = parts(content)
    del header[_any_array(header, rng)]
    return joined(header, data)


def renamed_array(content: bytes, rng: np.random.RandomState) -> bytes:
    header, data = parts(content)
    name = _any_array(header, rng)
    names = ["", "mu/", "/", "mu", "x/y", "\x1b[31m", "mu/" + "x" * 60_000, "sha256"]
    header[pick(rng, names)] = header.pop(name)
    return joined(header, data)


def lying_length(content: bytes, rng: np.random.RandomState) -> bytes:
    values = [0, 1, len(content), len(content) - 8, 100_000_000, 1 << 31, 1 << 40, (1 << 64) - 1]
    length = pick(rng, values).to_bytes(8, "little")
    return with_checksum(length + content[8:])


def strange_metadata(content: bytes, rng: np.random.RandomState) -> bytes:
    header, data = parts(content)
    changes: list[Any] = [
        None,
        {},
        {"format": "pt"},
        {**header["__metadata__"], "sha256": "x" * 64},
        {**header["__metadata__"], "sha256": 3},
        {**header["__metadata__"], "more": '"sha256":"' + "0" * 64 + '"'},
        {**header["__metadata__"], "format": "adamx2"},
        {**header["__metadata__"], "checkpoint": "["},
        {**header["__metadata__"], **{f"{i:x}": "" for i in range(20_000)}},
    ]
    header["__metadata__"] = pick(rng, changes)
    return joined(header, data)


def strange_header(content: bytes, rng: np.random.RandomState) -> bytes:
    header, data = parts(content)
    text = strange_json(json.dumps(header), rng).encode("utf-8", "surrogatepass")
    return with_checksum(len(text).to_bytes(8, "little") + text + data)


def strange_group(content: bytes, rng: np.random.RandomState) -> bytes:
    """Of a variable with moments in 8 bits; or one of a variable without."""
    header, data = parts(content)
    described = json.loads(header["__metadata__"]["checkpoint"])
    groups = described["eight_bit"]["groups"]
    name = pick(rng, [*groups, "", "other"])
    groups[name] = pick(rng, [16, 32, 1024, 2, 0, -8, 8.0, "8", None, True, [8], 1 << 70])
    header["__metadata__"]["checkpoint"] = json.dumps(described)
    return joined(header, data)


def strange_version(content: bytes, rng: np.random.RandomState) -> bytes:
    """Or none; or nothing of moments in 8 bits, though the file has them."""
    header, data = parts(content)
    described = json.loads(header["__metadata__"]["checkpoint"])
    changes: list[Any] = [0, 1, 3, "2", None, [2], 1 << 70]
    described["eight_bit"] = pick(
        rng,
        [
            *[described["eight_bit"] | {"version": version} for version in changes],
            *[{}, [], 2, "8bit", None, {"version": 2}, {"version": 2, "groups": []}],
        ],
    )
    header["__metadata__"]["checkpoint"] = json.dumps(described)
    return joined(header, data)


def reshaped_codes(content: bytes, rng: np.random.RandomState) -> bytes:
    """As many bytes in another shape, or of another dtype."""
    header, data = parts(content)
    entry = header[pick(rng, _list_codes(header))]
    shape = entry["shape"]
    if rng.rand() < 0.5:
        shapes = [shape[::-1], [math.prod(shape)], [1, *shape], [*shape, 1], [1] * 40 + shape, []]
        entry["shape"] = pick(rng, shapes)
    else:
        is_byte = entry["dtype"] in ("I8", "U8")
        dtypes = ("I8", "U8", "BOOL", "F8_E5M2") if is_byte else ("F16", "BF16", "U16", "I16")
        entry["dtype"] = pick(rng, dtypes)
    return joined(header, data)


def renamed_codes(content: bytes, rng: np.random.RandomState) -> bytes:
    """An array that is missing and one too many, or two that changed places; all are listed."""
    header, data = parts(content)
    described = json.loads(header["__metadata__"]["checkpoint"])
    names = _list_codes(header)
    old, other = pick(rng, names), pick(rng, names)
    new = pick(rng, [other, other, f"extra/{old}", old.partition("/")[2], f"{old}/x", "mu_codes"])
    header[old], header[new] = header.get(new), header.pop(old)
    header = {name: entry for name, entry in header.items() if entry is not None}
    described["arrays"] = [name for name in header if name != "__metadata__"]
    header["__metadata__"]["checkpoint"] = json.dumps(described)
    return joined(header, data)


def _list_codes(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name[2:].startswith(("_codes/", "_scales/"))]


EDITS = (
    strange_checkpoint,
    strange_fields,
    repeated_arrays,
    swapped_arrays,
    strange_array,
    removed_array,
    renamed_array,
    lying_length,
    strange_metadata,
    strange_header,
)
CODE_EDITS = (strange_group, strange_version, reshaped_codes, renamed_codes)


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, and the arrays' bytes."""
    end = header_end(content)
    return json.loads(content[8:end]), content[end:]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    """A file of them, whose checksum is right."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return with_checksum(len(text).to_bytes(8, "little") + text + data)


def _any_array(header: dict[str, Any], rng: np.random.RandomState) -> str:
    return pick(rng, [name for name in header if name != "__metadata__"])
