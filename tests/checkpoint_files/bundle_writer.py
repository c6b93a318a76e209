"""Writes TensorFlow checkpoints as TensorFlow does, and such as it would not write."""

import dataclasses

import numpy as np

from adamx.checkpoint.untrusted.castagnoli import compute_crc32c, mask_crc32c
from adamx.checkpoint.untrusted.leveldb_table import MAGIC

__all__ = ["GRAPH", "Objects", "field", "varint", "write_bundle", "write_table"]

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "bfloat16": 14}


def varint(value):
    """An unsigned integer in groups of seven bits."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number, value):
    """A field of a protocol buffer: an integer, a text or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def checksum(data):
    return mask_crc32c(compute_crc32c(data)).to_bytes(4, "little")


def write_table(entries, *, compression=0, sharing=True):
    """A LevelDB table of sorted keys and values, four to a block."""
    blocks, index = b"", b""
    entries = list(entries)
    for start in range(0, len(entries), 4):
        block, last = b"", b""
        for key, value in entries[start : start + 4]:
            unlike = (at for at, (a, b) in enumerate(zip(key, last, strict=False)) if a != b)
            shared = next(unlike, min(len(key), len(last))) if sharing else 0
            block += varint(shared) + varint(len(key) - shared) + varint(len(value))
            block += key[shared:] + value
            last = key
        handle = varint(len(blocks)) + varint(len(block) + 8)
        blocks += _end_block(block, compression)
        index += varint(0) + varint(len(last)) + varint(len(handle)) + last + handle
    meta = varint(len(blocks)) + varint(8)
    blocks += _end_block(b"", 0)
    handles = meta + varint(len(blocks)) + varint(len(index) + 8)
    blocks += _end_block(index, 0)
    return blocks + handles.ljust(40, b"\0") + MAGIC


def _end_block(block, compression):
    block += (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes([compression])
    return block + checksum(block)


def write_bundle(prefix, tensors, *, shards=1, header=b"", sliced=(), compression=0):
    """The files of a checkpoint; returns the path of the index.

    Args:
      prefix: of the files.
      tensors: arrays by name; bytes become a scalar of strings.
      shards: number of data files, which take turns.
      header: more fields of the header.
      sliced: names that are said to be in parts.
      compression: the number that blocks of the index have.
    """
    data = [b""] * shards
    entries = {b"": field(1, shards) + header}
    for turn, (name, tensor) in enumerate(sorted(tensors.items())):
        shard = turn % shards
        if isinstance(tensor, bytes):
            size = len(tensor).to_bytes(4, "little")
            raw = varint(len(tensor)) + checksum(size) + tensor
            crc = checksum(size + checksum(size) + tensor)
            kind, shape = 7, ()
        else:
            raw, kind, shape = tensor.tobytes(), _DTYPES[tensor.dtype.name], tensor.shape
            crc = checksum(raw)
        entry = field(1, kind) + field(2, b"".join(field(2, field(1, n)) for n in shape))
        entry += field(3, shard) + field(4, len(data[shard])) + field(5, len(raw))
        entry += varint(6 << 3 | 5) + crc + (field(7, b"") if name in sliced else b"")
        entries[name.encode()] = entry
        data[shard] += raw
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(write_table(sorted(entries.items()), compression=compression))
    for shard, content in enumerate(data):
        name = f"{prefix.name}.data-{shard:05d}-of-{shards:05d}"
        prefix.with_name(name).write_bytes(content)
    return index


@dataclasses.dataclass
class Objects:
    """A graph of objects that grows: `add` returns the number of a node."""

    nodes: list[bytes] = dataclasses.field(default_factory=lambda: [b""])
    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def add(self, parent, name, full_name=None, array=None):
        """An object below another; with an array a variable, whose key is its name."""
        self._append(f"{parent}/{name}", full_name, array)
        self.link(parent, name, len(self.nodes) - 1)
        return len(self.nodes) - 1

    def _append(self, path, full_name, array):
        node = b""
        if array is not None:
            key = f"{path}/.ATTRIBUTES/VARIABLE_VALUE"
            node = field(2, field(1, "VARIABLE_VALUE") + field(2, full_name) + field(3, key))
            self.tensors[key] = np.asarray(array)
        self.nodes.append(node)

    def link(self, parent, name, child):
        """Give an object a part that is there already."""
        self.nodes[parent] += field(1, field(1, child) + field(2, name))

    def add_slot(self, optimizer, name, variable, full_name, array):
        """A variable that an optimizer keeps for another one."""
        self._append(f"{variable}/.OPTIMIZER_SLOT/{optimizer}/{name}", full_name, array)
        value = len(self.nodes) - 1
        self.nodes[optimizer] += field(3, field(1, variable) + field(2, name) + field(3, value))

    def write(self, prefix, **options):
        """The checkpoint; returns the path of the index."""
        graph = b"".join(field(1, node) for node in self.nodes)
        return write_bundle(prefix, {**self.tensors, GRAPH: graph}, **options)
