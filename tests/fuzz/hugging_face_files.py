"""Folders of Hugging Face, each as an archive: damaged weights, indices, counts and files."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.folders import EDITS as FOLDER_EDITS
from tests.fuzz.folders import Files, pack, unpack
from tests.fuzz.mangling import pick

__all__ = ["EDITS", "as_shards", "enlarged"]

Edit = Callable[[bytes, np.random.RandomState], bytes]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OF_FOLDERS = ("removed_file", "emptied_file", "swapped_files")


def as_shards(content: bytes) -> bytes:
    """The same with weights in two files and an index."""
    files = unpack(content)
    header, values = _split(files.pop(_WEIGHTS))
    names = [name for name in header if name != "__metadata__"]
    weight_map = {}
    for number, own in enumerate((names[::2], names[1::2]), 1):
        entries, data = {}, b""
        for name in own:
            begin, end = header[name]["data_offsets"]
            place = [len(data), len(data) + end - begin]
            entries[name] = {**header[name], "data_offsets": place}
            data += values[begin:end]
        shard = f"model-{number:05}-of-00002.safetensors"
        files[shard] = _join(entries, data)
        weight_map |= dict.fromkeys(own, shard)
    files[_INDEX] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return pack(files)


def enlarged(content: bytes, size: int) -> bytes:
    """With one weight more, of that size."""
    files = unpack(content)
    header, values = _split(files[_WEIGHTS])
    place = [len(values), len(values) + size // 4 * 4]
    header["large"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": place}
    more = np.random.default_rng(0).random(size // 4, np.float32).tobytes()
    return pack({**files, _WEIGHTS: _join(header, values + more)})


def strange_entry(content: bytes, rng: np.random.RandomState) -> bytes:
    """An array of the header with another dtype, shape or place."""
    strange = {
        "dtype": ["F64", "BF16", "F8_E4M3", "F4", "", "O", None, 7, [], "x" * 60_000],
        "shape": [[2**62] * 9, [-1], [0], [], "x", 7, [1.5], [None], [1] * 99, [True]],
        "data_offsets": [[0, 2**62], [-8, 8], [8, 0], [], [0], [0, 4, 8], "x", None, [0.0, 4.0]],
    }

    def change(header: Any) -> None:
        entry = header[pick(rng, [name for name in header if name != "__metadata__"])]
        key = pick(rng, strange)
        if rng.rand() < 0.1:
            del entry[key]
        else:
            entry[key] = pick(rng, strange[key])

    return _with_header(content, rng, change)


def strange_name(content: bytes, rng: np.random.RandomState) -> bytes:
    """An array with another name, or what is no array under a name."""

    def change(header: Any) -> None:
        old = pick(rng, header)
        new = pick(rng, ["", "\0", "\x1b[31m", "x" * 60_000, "../x", "__metadata__", "lm_head"])
        header[new] = header.pop(old) if rng.rand() < 0.7 else pick(rng, [7, None, [], {}, "x"])

    return _with_header(content, rng, change)


def repeated_name(content: bytes, rng: np.random.RandomState) -> bytes:
    """The header has a name twice, which a dictionary would hide."""
    files = unpack(content)
    name = _pick_weights(files, rng)
    header, values = _split(files[name])
    text = json.dumps(header)
    twice = f"{text[:-1]}, {text[1:]}".encode()
    files[name] = len(twice).to_bytes(8, "little") + twice + values
    return pack(files)


def lying_header_size(content: bytes, rng: np.random.RandomState) -> bytes:
    files = unpack(content)
    name = _pick_weights(files, rng)
    size = pick(rng, [0, 1, 7, 2**20, 2**40, 2**63, 2**64 - 1])
    files[name] = size.to_bytes(8, "little") + files[name][8:]
    return pack(files)


def deep_header(content: bytes, rng: np.random.RandomState) -> bytes:
    """A header of brackets within brackets, or of very many small values."""
    files = unpack(content)
    text = pick(rng, [b'{"a":' * 200_000, b'{"a":[' + b"[]," * 700_000 + b"[]]}", b"[" * 900_000])
    files[_pick_weights(files, rng)] = len(text).to_bytes(8, "little") + text
    return pack(files)


def strange_json(content: bytes, rng: np.random.RandomState) -> bytes:
    """One of the JSON files with other values."""
    files = unpack(content)
    names = [name for name in files if name.endswith(".json")]
    if not names:
        return strange_entry(content, rng)
    name = pick(rng, names)
    told = json.loads(files[name])
    keys = [key for key in ("global_step", "weight_map", "architectures") if key in told]
    values = [None, 7, -1, 1e300, "", "x" * 60_000, [], {}, ["GPT2LMHeadModel"] * 2, {"a": "../b"}]
    told[pick(rng, keys or list(told))] = pick(rng, values)
    files[name] = json.dumps(told).encode()
    return pack(files)


EDITS: tuple[Edit, ...] = (
    *(edit for edit in FOLDER_EDITS if edit.__name__ in _OF_FOLDERS),
    strange_entry,
    strange_name,
    repeated_name,
    lying_header_size,
    deep_header,
    strange_json,
)


def _pick_weights(files: Files, rng: np.random.RandomState) -> str:
    return pick(rng, [name for name in files if name.endswith(".safetensors")])


def _with_header(
    content: bytes, rng: np.random.RandomState, change: Callable[[Any], None]
) -> bytes:
    files = unpack(content)
    name = _pick_weights(files, rng)
    header, values = _split(files[name])
    change(header)
    return pack({**files, name: _join(header, values)})


def _split(data: bytes) -> tuple[Any, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _join(header: Any, values: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values
