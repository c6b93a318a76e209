"""TensorFlow's checkpoints: damage to entries, graph and tensors, with checksums that are right.

The content of a case is the size of the index in four bytes, the index, and the bytes of the shard.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.leveldb_table import read_table
from adamx.checkpoint.untrusted.protocol_buffers import read_integers, read_varint
from tests.checkpoint_files.bundle_writer import GRAPH, checksum, field, varint, write_table
from tests.fuzz.mangling import mangled, pick

__all__ = ["EDITS", "damaged_within", "enlarged", "places", "read", "split"]

Edit = Callable[[bytes, np.random.RandomState], bytes]
Entries = dict[bytes, bytes]

_CHECKSUM = b"\x35"  # the tag of an entry's checksum, which stands last
_HUGE = [0, 1, 3, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


def read(path: Path) -> bytes:
    """The content of a checkpoint with one shard."""
    [shard] = path.parent.glob(f"{path.stem}.data-*")
    return _join(path.read_bytes(), shard.read_bytes())


def split(content: bytes) -> tuple[bytes, bytes]:
    """The index and the shard."""
    size = int.from_bytes(content[:4], "little")
    return content[4 : 4 + size], content[4 + size :]


def places(content: bytes) -> np.ndarray:
    """Where the index begins, its blocks end, and the shard and its last tensor begin."""
    size, whole = int.from_bytes(content[:4], "little"), len(content)
    inner = np.linspace(4, 4 + size, 20, dtype=int)
    return np.array([4, *inner, size - 90, size - 44, 4 + size, max(4 + size, whole - 3_000)])


def enlarged(content: bytes, size: int) -> bytes:
    """With a weight more, of that size."""
    entries, data = _parse(content)
    more = np.random.default_rng(0).random(size // 4, np.float32).tobytes()
    shape = field(2, field(2, field(1, size // 4)))
    told = field(1, 1) + shape + field(4, len(data)) + field(5, len(more))
    entries[b"large"] = told + _CHECKSUM + checksum(more)
    return _build(entries, data + more)


def damaged_within(content: bytes, rng: np.random.RandomState) -> tuple[bytes, str]:
    """Bytes of an entry, of the graph or of a tensor changed."""
    entries, data = _parse(content)
    name = pick(rng, entries)
    if rng.rand() < 0.5:
        entries[name], told = mangled(entries[name], np.zeros(1, int), rng)
        return _build(entries, data), f"{name!r} {told}"
    name = GRAPH.encode() if GRAPH.encode() in entries else pick(rng, list(entries)[1:])
    return _replace(entries, data, name, rng), f"{name!r} replaced"


def no_shard(content: bytes, rng: np.random.RandomState) -> bytes:
    del rng
    return _join(split(content)[0], b"")


def cut_shard(content: bytes, rng: np.random.RandomState) -> bytes:
    index, data = split(content)
    return _join(index, data[: rng.randint(len(data))])


def shifted_shard(content: bytes, rng: np.random.RandomState) -> bytes:
    index, data = split(content)
    return _join(index, bytes(rng.randint(1, 64)) + data)


def lying_entry(content: bytes, rng: np.random.RandomState) -> bytes:
    """Another kind, shard, place or size; the last one of a field counts."""
    entries, data = _parse(content)
    name = pick(rng, list(entries)[1:])
    entries[name] += field(pick(rng, [1, 3, 4, 5]), pick(rng, [*_HUGE, 7, 14, 20, 21]))
    return _build(entries, data)


def lying_shape(content: bytes, rng: np.random.RandomState) -> bytes:
    entries, data = _parse(content)
    name = pick(rng, list(entries)[1:])
    axes = [pick(rng, _HUGE) for _ in range(pick(rng, [0, 1, 2, 40]))]
    entries[name] += field(2, b"".join(field(2, field(1, size)) for size in axes))
    return _build(entries, data)


def lying_header(content: bytes, rng: np.random.RandomState) -> bytes:
    entries, data = _parse(content)
    entries[b""] = field(1, pick(rng, _HUGE)) + field(2, pick(rng, [0, 0, 1]))
    return _build(entries, data)


def swapped_entries(content: bytes, rng: np.random.RandomState) -> bytes:
    entries, data = _parse(content)
    first, second = pick(rng, entries), pick(rng, entries)
    entries[first], entries[second] = entries[second], entries[first]
    return _build(entries, data)


def renamed(content: bytes, rng: np.random.RandomState) -> bytes:
    entries, data = _parse(content)
    names = [
        b"Adam",
        b"/Adam",
        b"a/Adam_1",
        b"\xff\xfe",
        b"\x1b[31m/Adam",
        b"a/" * 30_000 + b"Adam",
    ]
    entries[pick(rng, names)] = entries.pop(pick(rng, list(entries)[1:]))
    return _build(entries, data)


def many_entries(content: bytes, rng: np.random.RandomState) -> bytes:
    """As many small tensors as fit, all in one place."""
    entries, data = _parse(content)
    told = entries[pick(rng, list(entries)[1:])]
    entries |= {f"n{number}/Adam".encode(): told for number in range(2_000)}
    return _build(entries, data)


def compressed(content: bytes, rng: np.random.RandomState) -> bytes:
    entries, data = _parse(content)
    return _join(write_table(sorted(entries.items()), compression=rng.randint(1, 256)), data)


EDITS: tuple[Edit, ...] = (
    no_shard,
    cut_shard,
    shifted_shard,
    lying_entry,
    lying_shape,
    lying_header,
    swapped_entries,
    renamed,
    many_entries,
    compressed,
)


def _parse(content: bytes) -> tuple[Entries, bytes]:
    index, data = split(content)
    stream = io.BufferedReader(io.BytesIO(index))  # pyright: ignore[reportArgumentType]
    return dict(read_table(stream, Account(len(content)))), data


def _build(entries: Entries, data: bytes) -> bytes:
    return _join(write_table(sorted(entries.items())), data)


def _join(index: bytes, data: bytes) -> bytes:
    return len(index).to_bytes(4, "little") + index + data


def _replace(entries: Entries, data: bytes, name: bytes, rng: np.random.RandomState) -> bytes:
    """Another tensor behind the data, mangled, or as large as its own."""
    if name == GRAPH.encode():
        graph = _read_graph(entries, data)
        graph, _ = mangled(graph, np.arange(len(graph), step=50), rng)
        size = len(graph).to_bytes(4, "little")
        more, kind = varint(len(graph)) + checksum(size) + graph, 7
        told = checksum(size + checksum(size) + graph)
    else:
        more, kind = rng.bytes(pick(rng, [4, 8, 32, 256])), 1
        told = checksum(more)
    entry = field(1, kind) + field(4, len(data)) + field(5, len(more)) + _CHECKSUM + told
    return _build({**entries, name: entry}, data + more)


def _read_graph(entries: Entries, data: bytes) -> bytes:
    start, size = read_integers(entries[GRAPH.encode()], (4, 5))
    _, at = read_varint(data, start)
    return data[at + 4 : start + size]
