"""Trees in MessagePack and chunks of zarr: as their own packages read them, and what is refused."""

import gzip
import io
import json
import tracemalloc
from typing import cast

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest

from adamx.checkpoint import CheckpointError, load
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.msgpack_tree import StoredArray, read_tree
from adamx.checkpoint.untrusted.zarr_header import check_chunk, read_header
from adamx.checkpoint.untrusted.zstd_frames import bound_zstd
from tests.checkpoint.format_cases import RUN

ARRAYS = {
    "float32": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "bfloat16": np.arange(3).astype(jnp.bfloat16),
    "float8": np.arange(3).astype(jnp.float8_e4m3fn),
    "complex": np.array([1 + 2j], np.complex64),
    "bool": np.array([True, False]),
    "scalar": np.asarray(7, np.int64),
    "number": np.float16(3),
    "none": np.zeros((0, 5), np.uint8),
    "large": np.zeros(70_000, np.uint8),
}
OTHERS = {"i": -3, "f": 0.5, "c": 1 + 2j, "n": None, "b": True, "t": "text", "d": {}, "l": [1, "x"]}


def tree_in(content):
    return read_tree(io.BufferedReader(io.BytesIO(content)), len(content), Account(len(content)))


def test_arrays_are_those_of_flax():
    content = flax.serialization.msgpack_serialize({"arrays": ARRAYS, "others": OTHERS})
    expected = flax.serialization.msgpack_restore(content)["arrays"]
    found = tree_in(content)
    assert found["others"].keys() == OTHERS.keys()
    for name, stored in found["arrays"].items():
        array = stored.read(io.BytesIO(content))
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        assert array.tobytes() == expected[name].tobytes()
        assert array.flags.writeable


def test_divided_arrays(monkeypatch, tmp_path):
    """As Flax divides those over 1 GiB."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    params = {"w": jnp.arange(35.0).reshape(5, 7), "b": jnp.ones(3)}
    tree = {"params": params, "tx": optax.adam(0.1).init(params)}
    content = flax.serialization.to_bytes(tree)
    assert content.count(b"__msgpack_chunked_array__") == 3
    (tmp_path / "x.msgpack").write_bytes(content)
    found = load(tmp_path / "x.msgpack", config=RUN).params["w"]
    np.testing.assert_array_equal(found, params["w"])


def test_only_what_is_needed_is_read(tmp_path):
    params = {"w": jnp.ones(4)}
    tree = {"data": np.zeros(1 << 25, np.uint8), "p": params, "tx": optax.adam(0.1).init(params)}
    (tmp_path / "x.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    del tree
    tracemalloc.start()
    checkpoint = load(tmp_path / "x.msgpack", config=RUN)
    assert tracemalloc.get_traced_memory()[1] < 1 << 21
    tracemalloc.stop()
    assert checkpoint.not_read == ("data",)


def dump(value) -> bytes:
    return cast(bytes, msgpack.packb(value))


def pack(shape, dtype, data):
    return msgpack.ExtType(1, dump([shape, dtype, data]))


def nest(depth):
    return b"\x81\xa1a" * depth + b"\xc0"


REFUSED = {
    "too short": (
        dump({"a": pack([4], "float32", bytes(16))})[:-1],
        "claims an array of 29 bytes in 28",
    ),
    "more": (dump({"a": 1}) + b"\0", "expected the end of the file, found 1 bytes more"),
    "shape": (dump({"a": pack([5], "float32", bytes(16))}), "array's description"),
    "negative": (dump({"a": pack([-4], "float32", b"")}), "array's description"),
    "large": (dump({"a": pack([2**40, 2**40], "float32", b"")}), "array's description"),
    "objects": (dump({"a": pack([1], "object", bytes(8))}), "expected an array of num"),
    "text": (dump({"a": pack([1], "str32", bytes(4))}), "expected an array of numbers"),
    "axes": (dump({"a": pack([1] * 33, "int8", b"\0")}), "array's description"),
    "rest": (dump({"a": msgpack.ExtType(1, b"\x93\x90\xa4int8\xc4\1\0\0")}), "1 bytes fo"),
    "many": (b"\xdf\xff\xff\xff\xff\xa1a\x01", "4294967295 values in "),
    "long": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "an array of 4294967295 bytes"),
    "keys": (dump({"a": {1: 2}}), "expected names as keys, found a number"),
    "twice": (b"\x82\xa1a\x01\xa1a\x02", "two values are called 'a'"),
    "no value": (b"\x81\xa1a\xc1", "no value begins with 0xc1"),
    "deep": (nest(70), "nested more than 64 deep"),
    "deeper": (nest(100_000), "nested more than 64 deep"),
    "divided": (
        dump({"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {}}),
        "the chunks of an array do not add up",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    content, message = REFUSED[name]
    path = tmp_path / "x.msgpack"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path, config=RUN, format="flax")
    assert str(caught.value).startswith(f"{path}: ")


def test_many_nodes_take_little_memory(tmp_path):
    """A million empty maps in 3 MB."""
    content = b"\xdf\x00\x0f\x42\x40" + b"".join(
        b"\xa3" + n.to_bytes(3, "little").translate(LETTERS) + b"\x80" for n in range(1_000_000)
    )
    (tmp_path / "x.msgpack").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        load(tmp_path / "x.msgpack", config=RUN, format="flax")
    assert tracemalloc.get_traced_memory()[1] < 2 * len(content) + (4 << 20)
    tracemalloc.stop()


LETTERS = bytes(range(128)) * 2


def test_a_stored_array_that_ends_early():
    stored = StoredArray((4,), np.dtype(np.uint8), ((0, 4),))
    with pytest.raises(ValueError, match="ends within an array"):
        stored.read(io.BytesIO(b"\0\0"))


# zstd: a frame with blocks of the three kinds, and one that is passed over.


def block(kind, size, data, last=False):
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + data


BLOCKS = block(0, 5, b"12345") + block(1, 1000, b"x") + block(2, 3, b"abc", last=True)
FRAMES = {
    "window": (b"\x28\xb5\x2f\xfd\x00\x58" + BLOCKS, 1_005 + (1 << 17)),
    "single": (b"\x28\xb5\x2f\xfd\x20\x05" + BLOCKS, 1_005 + (1 << 17)),
    "size, dictionary, checksum": (
        b"\x28\xb5\x2f\xfd\xc7\x58" + bytes(12) + BLOCKS + bytes(4),
        1_005 + (1 << 17),
    ),
    "two": (2 * (b"\x28\xb5\x2f\xfd\x00\x58" + block(0, 1, b"x", last=True)), 2),
    "passed over": (b"\x51\x2a\x4d\x18\x03\0\0\0abc", 0),
    "empty": (b"", 0),
}


@pytest.mark.parametrize("name", FRAMES)
def test_what_frames_can_unpack_to(name):
    data, size = FRAMES[name]
    assert bound_zstd(data) == size
    for end in range(1, len(data)):
        if name != "two" or end != len(data) // 2:
            with pytest.raises(ValueError, match="zstd"):
                bound_zstd(data[:end])


# Chunks of zarr, as their headers describe them.


def header(inner=None, codec="gzip"):
    codecs = [{"name": "bytes"}, {"name": codec}]
    if inner is not None:
        settings = {"chunk_shape": inner, "codecs": codecs, "index_codecs": [{"name": "bytes"}]}
        codecs = [{"name": "sharding_indexed", "configuration": settings}]
    described = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [40],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [20]}},
        "codecs": codecs,
    }
    return read_header(json.dumps(described).encode(), Account(0))


def test_a_header():
    found = header(inner=[10])
    assert (found.nbytes, found.chunks, found.compressor) == (160, 2, "gzip")
    with pytest.raises(CheckpointError, match="found 'lzma'"):
        header(codec="lzma")


def test_chunks_of_gzip():
    check_chunk(header(), gzip.compress(bytes(80)))
    with pytest.raises(CheckpointError, match="one that unpacks to"):
        check_chunk(header(), gzip.compress(bytes(1 << 24)))


def test_chunks_in_chunks():
    parts = [gzip.compress(bytes(40)), gzip.compress(bytes(1 << 24))]
    starts = np.cumsum([0, *map(len, parts)])
    for last, message in ((0, None), (1, "one that unpacks to")):
        index = [starts[0], len(parts[0]), starts[last], len(parts[last])]
        data = b"".join(parts) + np.array(index, "<u8").tobytes()
        if message is None:
            check_chunk(header(inner=[10]), data)
        else:
            with pytest.raises(CheckpointError, match=message):
                check_chunk(header(inner=[10]), data)
    for index in ([0, 1 << 40, 0, 0], [1 << 62, 5, 0, 0]):
        with pytest.raises(ValueError, match="outside of its chunk"):
            check_chunk(header(inner=[10]), np.array(index, "<u8").tobytes())
    with pytest.raises(ValueError, match="an index of 2 inner chunks in 9 bytes"):
        check_chunk(header(inner=[10]), bytes(9))
