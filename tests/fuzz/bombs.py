"""Files of which eight megabytes are structure: each byte of it would take many of memory."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.fuzz import adamx_files, archives, pickles
from tests.fuzz.cases import FORMATS

__all__ = ["BOMBS"]

_SIZE = 8 << 20
_DEFLATED = zipfile.ZIP_DEFLATED
_GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"


def _torch(payload: bytes) -> bytes:
    parts = archives.members((_GOLDEN / "torch_adam.pt").read_bytes())
    name = "torch_adam/data.pkl"
    return archives.packed({**parts, name: pickles.with_payload(parts[name], payload)})


def _keras(**changed: bytes) -> bytes:
    """An archive with members more, or others."""
    parts = archives.members((_GOLDEN / "keras3_model.keras").read_bytes())
    return archives.packed({**parts, **changed})


def _configured(text: str) -> bytes:
    return _keras(**{"config.json": text.encode()})


def _hdf5(name: str, edit: Callable[[h5py.File], None]) -> bytes:
    stream = io.BytesIO((_GOLDEN / name).read_bytes())
    with h5py.File(stream, "r+") as file:
        edit(file)
    return stream.getvalue()


def _trained_with(text: str) -> bytes:
    def edit(file: h5py.File) -> None:
        file.attrs["training_config"] = text

    return _hdf5("keras3_model.h5", edit)


def _adamx(**metadata: str) -> bytes:
    header, data = adamx_files.parts(FORMATS["adamx"].seeds[0])
    header["__metadata__"] |= metadata
    return adamx_files.joined(header, data)


def _many_links(file: h5py.File) -> None:
    group = file["layers/dense/vars"].create_group("vars")
    group["x"] = np.float32(0)
    for index in range(80_000):
        group[f"{index:x}"] = group["x"]


def _many_datasets(file: h5py.File) -> None:
    group = file["layers/dense/vars"].create_group("vars")
    for index in range(20_000):
        group[str(index)] = np.float32(0)


def _many_variables(file: h5py.File) -> None:
    for index in range(18, 20_000):
        file["optimizer/vars"][str(index)] = np.float32(0)


def _long_paths(file: h5py.File) -> None:
    group = file["layers"]
    for _ in range(60):
        group = group.create_group("n" * 1000)
    _many_datasets(group.create_group("layers/dense/vars").parent.parent.parent)


def _many_names(file: h5py.File) -> None:
    group = file["optimizer_weights"]
    del group.attrs["weight_names"]
    for index in range(130):
        group.attrs[f"weight_names{index}"] = np.full(60_000, b"a", "S1")


def _models_within_models() -> bytes:
    """Layers whose names each begin with those of fifty models."""
    config = archives.members(_keras())["config.json"].decode()
    model: dict[str, Any] = {"config": {"layers": [{"class_name": "a", "config": {}}] * 500}}
    for _ in range(50):
        within = {"layers": [{**model, "class_name": "Sequential"}], "name": "x" * 20_000}
        model = {"config": within}
    return _configured(json.dumps({**json.loads(config), **model}))


def _array(value: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def _many_arrays() -> dict[str, bytes]:
    one = _array(np.ones(0))
    return {f"{field}/{i:x}.npy": one for field in ("mu", "nu") for i in range(10_000)}


def _zeros(megabytes: int) -> bytes:
    return _array(np.zeros(megabytes << 20, np.uint8))


def _long_header() -> bytes:
    return b"\x93NUMPY\1\0\xff\xff" + b"[" * 0xFFFF


_ARRAYS = {
    "count.npy": _array(np.array(1)),
    **{f"{field}/a.npy": _array(np.ones(_SIZE // 8)) for field in ("mu", "nu")},
}
_NAMES = {"count.npy": b"", **{f"mu/{i:x}.npy": b"" for i in range(80_000)}}


def _colliding(count: int) -> bytes:
    """Complex numbers that all have the same hash, as keys of a dictionary."""
    keys = [
        pickles.calling("builtins", "complex", _float(2.0**52 - 1_000_003.0 * i), _float(i))
        for i in range(count)
    ]
    return b"}(" + b"N".join(keys) + b"Nu"


def _float(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def _copied(function: tuple[str, str], first: bytes) -> bytes:
    """A container that is copied again and again."""
    call = f"c{function[0]}\n{function[1]}\n".encode() + b"j\xff\xff\0\0\x85R0"
    return first + b"r\xff\xff\0\0" + call * 100_000


_PAIRS = b"](" + b"".join(pickles.integer(i) + b"N\x86" for i in range(1 << 16)) + b"e"
_ITEMS = b"}(" + b"".join(pickles.integer(i) + b"N" for i in range(1 << 16)) + b"u"

_MEMO = b"N" + b"".join(b"r" + struct.pack("<I", index) for index in range(_SIZE // 5))

BOMBS: dict[str, dict[str, Callable[[], bytes]]] = {
    ".pt": {
        "lists": lambda: _torch(b"](" + b"]" * _SIZE + b"e"),
        "dictionaries": lambda: _torch(b"](" + b"}" * _SIZE + b"e"),
        "marks": lambda: _torch(b"(" * _SIZE),
        "integers": lambda: _torch(b"](" + b"J\0\0\1\0" * (_SIZE // 5) + b"e"),
        "classes": lambda: _torch(b"(" + b"".join(b"ca\n%x\n" % i for i in range(1 << 20)) + b"t"),
        "objects": lambda: _torch(b"](" + b"ca\nb\n)\x81" * (_SIZE // 7) + b"e"),
        "a far place in the memo": lambda: _torch(b"Nr\xff\xff\xff\x01"),
        "memo": lambda: _torch(_MEMO),
        "text": lambda: _torch(pickles.text("é" * (_SIZE // 2))),
        "wide text": lambda: _torch(pickles.text("x" * _SIZE + "\U0001f600")),
        "texts": lambda: _torch(b"](" + pickles.text("é") * (_SIZE // 7) + b"e"),
        "members": lambda: archives.packed({f"{i:x}": b"" for i in range(80_000)}),
        "members with values": lambda: archives.packed(
            {f"x/data/{i:x}": b"" for i in range(80_000)}
        ),
        "keys of one hash": lambda: _torch(_colliding(100_000)),
        "keys of many parts": lambda: _torch(
            b"(" + b"K\1" * 60 + b"tr\xff\xff\0\0" + b"}j\xff\xff\0\0Ns0" * (_SIZE // 10)
        ),
        "ordered dictionaries": lambda: _torch(_copied(("collections", "OrderedDict"), _PAIRS)),
        "counters": lambda: _torch(_copied(("collections", "Counter"), _ITEMS)),
        "sets": lambda: _torch(
            _copied(
                ("builtins", "set"), b"](" + b"".join(map(pickles.integer, range(1 << 16))) + b"e"
            )
        ),
    },
    ".keras": {
        "members": lambda: _keras(**{f"{i:x}": b"" for i in range(80_000)}),
        "lists": lambda: _configured("[" + "[]," * (_SIZE // 3) + "[]]"),
        "numbers": lambda: _configured("[" + "1.5," * (_SIZE // 4) + "1]"),
        "texts": lambda: _configured("[" + '"ab",' * (_SIZE // 5) + "1]"),
        "text": lambda: _configured('{"a":"' + "x" * _SIZE + '"}'),
        "wide text": lambda: _configured('{"a":"' + "x" * _SIZE + '\U0001f600"}'),
        "models": _models_within_models,
    },
    ".h5": {
        "lists": lambda: _trained_with("[" + "[]," * (_SIZE // 3) + "[]]"),
        "text": lambda: _trained_with("x" * _SIZE),
        "wide text": lambda: _trained_with("x" * _SIZE + "\U0001f600"),
        "names": lambda: _hdf5("keras3_model.h5", _many_names),
    },
    ".weights.h5": {
        "links": lambda: _hdf5("keras3.weights.h5", _many_links),
        "datasets": lambda: _hdf5("keras3.weights.h5", _many_datasets),
        "variables": lambda: _hdf5("keras3.weights.h5", _many_variables),
        "paths": lambda: _hdf5("keras3.weights.h5", _long_paths),
    },
    ".npz": {
        "members": lambda: archives.packed(_NAMES),
        "arrays": lambda: archives.packed({**_ARRAYS, **_many_arrays()}),
        "zeros": lambda: archives.packed({**_ARRAYS, "mu/b.npy": _zeros(64)}, _DEFLATED),
        "header": lambda: archives.packed({**_ARRAYS, "mu/b.npy": _long_header()}),
    },
    ".safetensors": {
        "metadata": lambda: _adamx(**{f"{i:x}": "" for i in range(800_000)}),
        "lists": lambda: _adamx(checkpoint="[" + "[]," * (_SIZE // 3) + "[]]"),
        "text": lambda: _adamx(checkpoint='"' + "x" * _SIZE + '"'),
    },
}
