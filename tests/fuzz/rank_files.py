"""Folders of `torch.distributed.checkpoint` and of DeepSpeed, with other structure in them."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adamx.checkpoint import load
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.stand_ins import Global, Size, StandIn
from adamx.checkpoint.untrusted.torch_archive import read_archive, read_pickle
from adamx.checkpoint.untrusted.torch_tensors import Tensor, make_tensor
from adamx.checkpoint.writing.torch_writer import write_archive
from tests.checkpoint_torch.rank_folders import (
    Split,
    make_tree,
    pickled,
    write_dcp,
    write_shards,
    write_universal,
    write_zero,
)
from tests.fuzz import folders, hugging_face_files, pickles
from tests.fuzz.folders import pack, pack_folder, unpack
from tests.fuzz.mangling import pick
from tests.golden import WILD

__all__ = [
    "DCP_EDITS",
    "DEEPSPEED_EDITS",
    "SHARD_EDITS",
    "as_shards",
    "as_third_stage",
    "as_universal",
    "enlarged_dcp",
    "enlarged_deepspeed",
    "enlarged_shards",
    "in_safetensors",
]

_STRANGE = [None, -1, 0, 1, 7, 2**40, 2**62, 1.5, "", "x", "../x", "/", "\0", "x" * 5_000, True]
_STRANGE += [(), (2**62,) * 9, Size((1,)), Size((2**40, 2**40)), [], {}, {"a": 1}, b"x"]
_STRANGE += [Global("torch", "float32"), Global("torch", "float64"), Global("os", "system")]


def _with_adam(
    content: bytes, write: Callable[[Path, dict[str, dict[str, np.ndarray]]], None], size: int = 0
) -> bytes:
    """Another folder of the same optimizer, with one variable more of a size."""
    with tempfile.TemporaryDirectory() as name:
        old, new = Path(name, "old"), Path(name, "new")
        for file, data in unpack(content).items():
            (old / file).parent.mkdir(parents=True, exist_ok=True)
            (old / file).write_bytes(data)
        found = load(old)
        fields = {"fp32": found.params, "exp_avg": found.mu, "exp_avg_sq": found.nu}
        adam = {n: {key: arrays[n] for key, arrays in fields.items()} for n in found.names}
        if size:
            rng = np.random.default_rng(0)
            adam["large"] = {key: rng.random(size // 12, np.float32) for key in fields}
        write(new, adam)
        return pack_folder(new)


def _in_halves(adam: dict[str, dict[str, np.ndarray]], name: str) -> dict[Any, Any]:
    """A tree in which one variable's tensors are in two parts."""
    tree: dict[Any, Any] = make_tree(adam)
    for path, value in tree.items():
        if name in path and value.ndim:
            start, half = (0,) * value.ndim, len(value) // 2
            second = (half, *start[1:])
            tree[path] = Split(value.shape, [(start, value[:half]), (second, value[half:])])
    return tree


def enlarged_dcp(content: bytes, size: int) -> bytes:
    """With a large variable in two parts."""
    return _with_adam(
        content, lambda folder, adam: write_dcp(folder, _in_halves(adam, "large"), ranks=2), size
    )


def in_safetensors(content: bytes) -> bytes:
    """With tensors behind the other values of a rank."""
    return _with_adam(
        content,
        lambda folder, adam: write_dcp(folder, make_tree(adam), ranks=2, in_safetensors=True),
    )


def as_shards(content: bytes) -> bytes:
    """Safetensors of two ranks, and no `.metadata`."""
    return _as_shards(content, 0)


def enlarged_shards(content: bytes, size: int) -> bytes:
    del content
    return _as_shards(pack_folder(WILD / "dcp" / "dcp"), size)


def _as_shards(content: bytes, size: int) -> bytes:
    def write(folder: Path, adam: dict[str, dict[str, np.ndarray]]) -> None:
        tree = _in_halves(adam, "large" if size else next(iter(adam)))
        tensors = {path: x for path, x in tree.items() if "param_groups" not in path}
        write_shards(folder, tensors, ranks=2)

    return _with_adam(content, write, size)


def strange_offsets(content: bytes, rng: np.random.RandomState) -> bytes:
    """Parts that begin elsewhere, or nowhere."""
    files = unpack(content)
    name = pick(rng, files)
    end = 8 + int.from_bytes(files[name][:8], "little")
    header = json.loads(files[name][8:end])
    told = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    strange = [None, [], {}, [2**62], [-1, 0], [0, 1], [1, 0], ["x"], [0] * 70, 2**70, "x" * 60_000]
    _set_strange(told, pick(rng, list(told)), pick(rng, strange), rng)
    header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(told)
    text = json.dumps(header).encode()
    return pack({**files, name: len(text).to_bytes(8, "little") + text + files[name][end:]})


def _set_strange(told: Any, name: str, value: Any, rng: np.random.RandomState) -> None:
    if rng.rand() < 0.2:
        told[name] = value
    else:
        told[name]["saved_offsets"] = value


def enlarged_deepspeed(content: bytes, size: int) -> bytes:
    """The vectors of stage 1, of two ranks."""
    return _with_adam(content, lambda folder, adam: write_zero(folder, adam, 2, 1), size)


def as_third_stage(content: bytes) -> bytes:
    return _with_adam(content, lambda folder, adam: write_zero(folder, adam, 3, 3))


def as_universal(content: bytes) -> bytes:
    return _with_adam(content, write_universal)


def strange_metadata(content: bytes, rng: np.random.RandomState) -> bytes:
    """A name, a size, a place or a class in `.metadata` is another."""
    files = unpack(content)
    told = read_pickle(files[".metadata"], Account(1 << 30))
    _change(told, rng)
    return pack({**files, ".metadata": pickled(told)})


def other_segments(content: bytes, rng: np.random.RandomState) -> bytes:
    """Several names are stored at one place."""
    files = unpack(content)
    told = read_pickle(files[".metadata"], Account(1 << 30))
    places = told.state["storage_data"]
    target = pick(rng, places.values())
    for index in places:
        if rng.rand() < 0.3:
            places[index] = target
    return pack({**files, ".metadata": pickled(told)})


def many_names(content: bytes, rng: np.random.RandomState) -> bytes:
    """Moments of many parameters that are all stored at one place."""
    files = unpack(content)
    told = read_pickle(files[".metadata"], Account(1 << 30))
    entries, places = told.state["state_dict_metadata"], told.state["storage_data"]
    index, place = pick(rng, list(places.items()))
    old = index.state["fqn"]
    for number in range(int(pick(rng, [10, 3_000]))):
        name = f"{old}.{number}"
        entries[name] = entries[old]
        key = StandIn(index.function, (), is_new=True)
        key.state = index.state | {"fqn": name}
        places[key] = place
        told.state["planner_data"][name] = (*told.state["planner_data"][old][:-1], name)
    return pack({**files, ".metadata": pickled(told)})


def harmful_metadata(content: bytes, rng: np.random.RandomState) -> bytes:
    files = unpack(content)
    files[".metadata"] = pick(rng, pickles.EDITS)(files[".metadata"], rng)
    return pack(files)


def strange_file(content: bytes, rng: np.random.RandomState) -> bytes:
    """Something in a file of a rank is another."""
    files = unpack(content)
    name = pick(rng, [name for name in files if name.endswith(".pt")])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.pt")
        path.write_bytes(files[name])
        saved = read_archive(path)
        for _ in range(rng.randint(1, 4)):
            _change(saved, rng)
        write_archive(Path(folder, "y.pt"), saved)
        return pack({**files, name: Path(folder, "y.pt").read_bytes()})


def _change(saved: Any, rng: np.random.RandomState) -> None:
    """Replace, remove or rename one value in what was saved."""
    holders = list(_list_holders(saved, 0))
    if not holders:  # a bare tensor
        return
    holder = pick(rng, holders)
    if isinstance(holder, list):
        holder[rng.randint(len(holder))] = pick(rng, _STRANGE)
        return
    key = pick(rng, list(holder))
    way = rng.randint(4)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(key, str):
        holder[pick(rng, ["x", "", "a.b", "state", "exp_avg", f"{key}.step"])] = holder.pop(key)
    elif way == 2 and isinstance(holder[key], Tensor):
        shapes = [np.zeros(3, np.float32), np.ones((2, 2)), np.array(-1), np.array(np.nan)]
        holder[key] = make_tensor(pick(rng, shapes))
    else:
        holder[key] = pick(rng, _STRANGE)


def _list_holders(node: Any, depth: int) -> Iterator[Any]:
    """All dictionaries and lists that are not empty."""
    if depth > 20:
        return
    if isinstance(node, StandIn):
        yield from _list_holders(node.state, depth + 1)
        return
    if isinstance(node, dict | list) and node:
        yield node
    if isinstance(node, dict):
        children: Any = [*node.values(), *(key for key in node if isinstance(key, StandIn))]
    else:
        children = node if isinstance(node, list) else ()
    for child in children:
        yield from _list_holders(child, depth + 1)


DCP_EDITS = (*folders.EDITS, strange_metadata, other_segments, many_names, harmful_metadata)
SHARD_EDITS = (*hugging_face_files.EDITS, strange_offsets, strange_offsets)
DEEPSPEED_EDITS = (*folders.EDITS, strange_file, strange_file, strange_file)
