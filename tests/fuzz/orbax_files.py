"""Folders of Orbax, each as an archive: files that are damaged, gone, or not what they were."""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adamx import AdamConfig
from adamx.checkpoint import load
from tests.fuzz import folders
from tests.fuzz.folders import mangle, pack, pack_folder, places, unpack
from tests.fuzz.mangling import pick

__all__ = ["EDITS", "as_plain", "as_third", "enlarged"]

Edit = Callable[[bytes, np.random.RandomState], bytes]

_BLOCK = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # of zstd: 128 KiB of zeros


def as_plain(content: bytes) -> bytes:
    """The same with a folder for each array."""
    return _saved(content, {}, use_ocdbt=False)


def as_third(content: bytes) -> bytes:
    """The same with zarr's version 3."""
    return _saved(content, {}, use_ocdbt=False, use_zarr3=True)


def enlarged(content: bytes, size: int) -> bytes:
    """With one variable more, of that size with its weight and moments."""
    return _saved(content, {"large": np.random.default_rng(0).random(size // 12, np.float32)})


def _saved(content: bytes, more: dict[str, np.ndarray], **options: bool) -> bytes:
    import orbax.checkpoint as ocp

    with tempfile.TemporaryDirectory() as name:
        old, new = Path(name, "old"), Path(name, "new")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(old)
        found = load(old, config=AdamConfig())
        adam = {f: {**getattr(found, f), **more} for f in ("mu", "nu")}
        adam["count"] = np.asarray(found.count)
        tree = {"params": {**found.params, **more}, "opt_state": (adam,)}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            checkpointer.save(new, args=ocp.args.PyTreeSave(tree))
        (new / "commit_success.txt").unlink(missing_ok=True)
        return pack_folder(new)


def strange_tree(content: bytes, rng: np.random.RandomState) -> bytes:
    """A key, a type or a shape of `_METADATA` changed."""
    names = ["mu", "count", "", ".", "..", "a/b", "/../../x", "\0", "x" * 5_000, 7, None, []]
    shapes = [[2**62] * 9, [-1], "x", 7, [1.5], [None]]
    types = ["jax.Array", "np.ndarray", "scalar", "string", "None", "", 7, None]

    def change(described: Any) -> None:
        entry = pick(rng, described["tree_metadata"].values())
        pick(rng, entry["key_metadata"])["key"] = pick(rng, names)
        if rng.rand() < 0.5:
            entry["value_metadata"]["write_shape"] = pick(rng, shapes)
        if rng.rand() < 0.5:
            entry["value_metadata"]["value_type"] = pick(rng, types)

    return _with_json(content, rng, "_METADATA", change)


def strange_settings(content: bytes, rng: np.random.RandomState) -> bytes:
    keys = ["use_ocdbt", "use_zarr3", "store_array_data_equal_to_fill_value", "tree_metadata"]

    def change(described: Any) -> None:
        described[pick(rng, keys)] = pick(rng, [True, False, None, 7, [], {}])

    return _with_json(content, rng, "_METADATA", change)


def strange_header(content: bytes, rng: np.random.RandomState) -> bytes:
    """A header of zarr that claims other arrays; where the arrays are not in one database."""
    values = [[2**40, 2**40], [0], [], [1], "<f8", "|O", "float64", None, 7, {}, [{}], "zstd", -1]

    def change(described: Any) -> None:
        key = pick(rng, described)
        if isinstance(described[key], dict) and described[key] and rng.rand() < 0.5:
            described[key][pick(rng, described[key])] = pick(rng, values)
        elif key == "shape" and "chunks" in described:
            described["shape"] = described["chunks"] = pick(rng, values)
        else:
            described[key] = pick(rng, values)

    return _with_json(content, rng, pick(rng, [".zarray", "zarr.json"]), change)


def bomb(content: bytes, rng: np.random.RandomState) -> bytes:
    """In place of a file, data of zstd that unpack to 1 GiB."""
    files = unpack(content)
    chunks = [name for name in files if name[-1:].isdecimal()] or list(files)
    data = b"\x28\xb5\x2f\xfd\x00\x58" + _BLOCK * (1 << 13) + b"\x01\0\0"
    return pack({**files, pick(rng, chunks): data})


EDITS: tuple[Edit, ...] = (
    *folders.EDITS,
    strange_tree,
    strange_settings,
    strange_header,
    bomb,
)


def _with_json(
    content: bytes, rng: np.random.RandomState, ending: str, change: Callable[[Any], None]
) -> bytes:
    files = unpack(content)
    names = [name for name in files if name.rpartition("/")[2] == ending]
    if not names:
        return mangle(content, places(content), rng)[0]
    name = pick(rng, names)
    described = json.loads(files[name])
    change(described)
    return pack({**files, name: json.dumps(described).encode()})
