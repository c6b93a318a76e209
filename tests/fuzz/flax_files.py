"""`.msgpack` files of Flax: damage to arrays, their descriptions, and the tree around them."""

import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from tests.fuzz.mangling import pick

__all__ = ["EDITS", "enlarged", "places"]

Edit = Callable[[bytes, np.random.RandomState], bytes]
Tree = dict[str, Any]

_STRUCTURE = re.compile(rb"[\xc7-\xc9][^\xc7-\xc9]{1,4}\x01\x93|[\x81-\x8f][\xa1-\xbf]")


def places(content: bytes) -> np.ndarray:
    """Where maps and arrays begin."""
    return np.array([match.start() for match in _STRUCTURE.finditer(content[: 1 << 20])])


def enlarged(content: bytes, size: int) -> bytes:
    """With one variable more, of that size with its weight and moments."""
    tree = _tree(content)
    numbers = np.random.default_rng(0).random(size // 12, np.float32)
    for node in _holders(tree):
        node["large"] = _pack(numbers.shape, "float32", numbers.tobytes())
    return _dump(tree)


def strange_description(content: bytes, rng: np.random.RandomState) -> bytes:
    """A shape, a dtype or a size that is not that of the numbers, or none at all."""
    shapes = [[2**40, 2**40], [-1], [0, 2**63], [1] * 99, "x", None, [8.0], [], {}]
    dtypes = ["object", "float64", "V4", "str32", "f4,f4", "datetime64[s]", b"float32", 7, "x" * 99]
    kind = rng.randint(3)

    def change(array: msgpack.ExtType) -> msgpack.ExtType:
        shape, dtype, data = msgpack.unpackb(array.data)
        shape = pick(rng, shapes) if kind == 0 else shape
        dtype = pick(rng, dtypes) if kind == 1 else dtype
        data = data[: rng.randint(len(data))] if kind == 2 else data
        return _pack(shape, dtype, data)

    return _changed(content, rng, change)


def strange_value(content: bytes, rng: np.random.RandomState) -> bytes:
    """Something else in place of an array."""
    others = [
        None,
        True,
        7,
        -1.5,
        "text",
        b"bytes",
        [],
        {},
        [{"a": 1}],
        msgpack.ExtType(2, b"\x92"),
    ]
    other = pick(rng, [*others, msgpack.ExtType(1, b""), msgpack.ExtType(99, b"x")])
    return _changed(content, rng, lambda _: other)


def strange_extension(content: bytes, rng: np.random.RandomState) -> bytes:
    data = rng.bytes(rng.randint(200))
    return _changed(content, rng, lambda _: msgpack.ExtType(pick(rng, [1, 3]), data))


def removed_node(content: bytes, rng: np.random.RandomState) -> bytes:
    tree = _tree(content)
    node = pick(rng, _nodes(tree))
    del node[pick(rng, node)]
    return _dump(tree)


def renamed_node(content: bytes, rng: np.random.RandomState) -> bytes:
    """Another name, of another kind too."""
    tree = _tree(content)
    node = pick(rng, _nodes(tree))
    names = ["mu", "nu", "nu_max", "count", "value", "", "a/b", "\x1b[31m", "x" * 5_000, 7, None]
    node[pick(rng, names)] = node.pop(pick(rng, node))
    return _dump(tree)


def copied_node(content: bytes, rng: np.random.RandomState) -> bytes:
    """One part of the tree in place of another."""
    tree = _tree(content)
    source, target = pick(rng, _nodes(tree)), pick(rng, _nodes(tree))
    copy = msgpack.unpackb(_dump(source[pick(rng, source)]))
    target[pick(rng, target)] = copy
    return _dump(tree)


def divided(content: bytes, rng: np.random.RandomState) -> bytes:
    """An array in parts that do not make it up."""
    shape = pick(rng, [{"0": 2**40}, {"0": -1}, {"1": 3}, [3], None])

    def change(array: msgpack.ExtType) -> Tree:
        chunks = pick(rng, [{"0": array}, {"1": array}, {}, [array], {"0": array, "1": 7}])
        return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}

    return _changed(content, rng, change)


def deep(content: bytes, rng: np.random.RandomState) -> bytes:
    start = pick(rng, [b"\x81\xa1a", b"\x91", b"\xdd\0\0\0\1"])
    return b"\x82\xa1z" + start * int(pick(rng, [65, 2_000, 200_000])) + b"\xc0" + content[1:]


def many_nodes(content: bytes, rng: np.random.RandomState) -> bytes:
    del content
    count = int(pick(rng, [1_000, 300_000]))
    inner = pick(rng, [b"\x80", b"\xc0", b"\x01", b"\xa0", b"\x90"])
    return b"\x81\xa1a\xdd" + count.to_bytes(4, "big") + inner * count


EDITS: tuple[Edit, ...] = (
    strange_description,
    strange_value,
    strange_extension,
    removed_node,
    renamed_node,
    copied_node,
    divided,
    deep,
    many_nodes,
)


def _pack(shape: Any, dtype: Any, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, _dump([shape, dtype, data]))


def _dump(value: Any) -> bytes:
    data = msgpack.packb(value)
    assert data is not None
    return data


def _tree(content: bytes) -> Tree:
    return msgpack.unpackb(content, max_ext_len=1 << 30)


def _nodes(tree: Tree) -> list[Tree]:
    """All maps with something in them."""
    inner = [value for value in tree.values() if isinstance(value, dict) and value]
    return [tree, *(node for value in inner for node in _nodes(value))]


def _holders(tree: Tree) -> list[Tree]:
    """The weights and the moments."""
    adam = tree["opt_state"]["0"]
    return [tree["params"], adam["mu"], adam["nu"]]


def _changed(
    content: bytes, rng: np.random.RandomState, change: Callable[[msgpack.ExtType], Any]
) -> bytes:
    tree = _tree(content)
    holders = [
        (node, key)
        for node in _nodes(tree)
        for key, value in node.items()
        if isinstance(value, msgpack.ExtType)
    ]
    node, key = pick(rng, holders)
    node[key] = change(node[key])
    return _dump(tree)
