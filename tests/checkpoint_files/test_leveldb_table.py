"""LevelDB tables and what TensorFlow keeps in them: checksums, blocks, shards; and damage."""

import io
import shutil
import tracemalloc

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.castagnoli import compute_crc32c, mask_crc32c
from adamx.checkpoint.untrusted.leveldb_table import read_table
from adamx.checkpoint.untrusted.protocol_buffers import list_fields, read_varint
from tests.checkpoint_files.bundle_writer import (
    GRAPH,
    Objects,
    field,
    varint,
    write_bundle,
    write_table,
)
from tests.checkpoint_files.wild_cases import WILD

CONFIG = AdamConfig(convention="keras")

# RFC 3720, B.4, and the catalogue of parametrised CRCs.
VECTORS = {
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
}


def test_known_checksums():
    for data, checksum in VECTORS.items():
        assert compute_crc32c(data) == checksum


def divide(data, register=0xFFFFFFFF):
    """The definition: the remainder of a division of polynomials, bit by bit."""
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 64, 4_096, 4_097, 4_129, 16_383, 16_384, 20_001])
def test_checksums_of_any_size(size):
    data = np.random.default_rng(size).bytes(size)
    assert compute_crc32c(data) == divide(data)
    assert compute_crc32c(data[size // 3 :], compute_crc32c(data[: size // 3])) == divide(data)


def test_checksums_beyond_one_block():
    data = np.random.default_rng(0).bytes((1 << 20) + 77)
    at = (1 << 20) - 5  # the end of the second part is in another block
    assert compute_crc32c(data) == compute_crc32c(data[at:], compute_crc32c(data[:at]))
    changed = bytearray(data)
    changed[7] ^= 1
    assert compute_crc32c(changed) != compute_crc32c(data)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 1 << 32, (1 << 64) - 1])
def test_varints(value):
    assert read_varint(varint(value), 0) == (value, len(varint(value)))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9 + b"\x7f", b"\xff" * 11])
def test_damaged_varints(data):
    with pytest.raises(ValueError, match="cut off or too long"):
        read_varint(data, 0)


@pytest.mark.parametrize("data", [b"\x0b", b"\x0a\x05abc", b"\x0d\x01", b"\x09\x01"])
def test_damaged_messages(data):
    with pytest.raises(ValueError, match="a field"):
        list(list_fields(data))


def read(table, size=1 << 20):
    return list(read_table(io.BufferedReader(io.BytesIO(table)), Account(size)))


ENTRIES = [(f"net/{n:02d}/kernel".encode(), bytes([n]) * n) for n in range(23)]


@pytest.mark.parametrize("sharing", [True, False])
def test_a_table(sharing):
    assert read(write_table(ENTRIES, sharing=sharing)) == ENTRIES


def test_every_flipped_bit_and_every_cut_of_a_table_is_found():
    table = write_table(ENTRIES[:5])
    for end in range(len(table)):
        with pytest.raises((ValueError, CheckpointError)):
            read(table[:end])
    for bit in range(8 * len(table)):
        damaged = bytearray(table)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = read(damaged)
        except (ValueError, CheckpointError):
            continue
        assert found == ENTRIES[:5]  # in the footer is what nothing is read by


@pytest.mark.parametrize("entries", [ENTRIES[::-1], [ENTRIES[3], *ENTRIES]])
def test_keys_out_of_order(entries):
    with pytest.raises(ValueError, match="out of order"):
        read(write_table(entries))


@pytest.mark.slow
def test_keys_that_unfold_take_no_memory():
    """A long beginning, which many keys share; a block has four of them."""
    key = b"k" * (1 << 16)
    table = write_table([(key, b""), *((key + bytes([n]), b"") for n in range(200))])
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="more memory than twice its"):
        read(table, len(table))
    assert tracemalloc.get_traced_memory()[1] < 2 * len(table) + (8 << 20)
    tracemalloc.stop()


# Checkpoints.


def tensors():
    one = np.ones(3, np.float32)
    own = {"a": one, "a/Adam": 2 * one, "a/Adam_1": 3 * one, "global_step": np.asarray(0)}
    return own | {f"beta{n}_power": np.float32(b) for n, b in ((1, 0.9), (2, 0.999))}


def test_several_shards(tmp_path):
    index = write_bundle(tmp_path / "model", tensors(), shards=3)
    np.testing.assert_array_equal(load(index, config=CONFIG).mu["a"], [2, 2, 2])
    (tmp_path / "model.data-00002-of-00003").unlink()
    with pytest.raises(
        CheckpointError, match=r"the file model\.data-00002-of-00003 in the folder of the index"
    ):
        load(index, config=CONFIG)


REFUSED = {
    "big-endian": ({"header": field(2, 1)}, "a big-endian machine"),
    "compressed": ({"compression": 1}, "found compression 1"),
    "sliced": ({"sliced": ("a/Adam",)}, "a/Adam: .*that a partitioner has split"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    options, message = REFUSED[name]
    index = write_bundle(tmp_path / "model", tensors(), **options)
    with pytest.raises(CheckpointError, match=message):
        load(index, config=CONFIG)


def test_every_dtype_keeps_its_bits(tmp_path):
    arrays = tensors()
    for dtype in ("float64", "bfloat16"):
        name = f"a/{dtype}"
        arrays[name] = np.arange(6).reshape(2, 3).astype(np.dtype(dtype))
        params = load(write_bundle(tmp_path / "model", arrays), config=CONFIG).params
        assert params[name].dtype == arrays[name].dtype
        np.testing.assert_array_equal(params[name], arrays[name])


@pytest.mark.parametrize("case", ["tf1_saver", "tf2_tfkeras", "tf2_keras3"])
def test_damaged_tensors(case, tmp_path):
    [data] = (WILD / case).glob("*.data-*")
    [index] = (WILD / case).glob("*.index")
    shutil.copy(index, tmp_path)
    content, damaged = data.read_bytes(), tmp_path / data.name
    index = tmp_path / index.name
    config = AdamConfig(convention="keras")
    for at in np.random.default_rng(0).integers(100, len(content), 40):
        changed = bytearray(content)
        changed[at] ^= 1
        damaged.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"checksum is wrong|damaged") as caught:
            load(index, config=config)
        assert str(caught.value).startswith(f"{index}: ")
    for end in (0, 50, len(content) - 1):
        damaged.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match="found a file of"):
            load(index, config=config)
    damaged.unlink()
    with pytest.raises(CheckpointError, match="copy all files of the checkpoint"):
        load(index, config=config)


GRAPHS = {
    "no message": b"\x0a\xff",
    "a node that is not there": field(1, field(1, field(1, 9) + field(2, "x"))),
    "no nodes": b"",
    "a cycle": field(1, field(1, field(1, 0) + field(2, "x"))),
    "a long name": field(1, field(1, field(1, 0) + field(2, "x" * 5_000))),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_damaged_graphs(name, tmp_path):
    index = write_bundle(tmp_path / "model", {GRAPH: GRAPHS[name]})
    with pytest.raises(CheckpointError, match=r"damaged|expected the state of an Adam"):
        load(index, config=CONFIG)


@pytest.mark.slow
def test_large_graphs_take_no_time_and_little_memory(tmp_path):
    """Lists that many share, and objects within one another without end."""
    shared, nested = Objects(), Objects()
    part = shared.add(0, "list")
    for number in range(1_500):
        shared.link(part, str(number), number % 2)
        optimizer = shared.add(0, f"optimizer {number}")
        for name in ("_iterations", "_momentums", "_velocities"):
            shared.link(optimizer, name, part)
    last = 0
    for number in range(3_000):
        last = nested.add(last, f"{number}")
        nested.link(last, "_momentums", 0)
        nested.link(last, "_velocities", 0)
    for name, graph in {"shared": shared, "nested": nested}.items():
        index = graph.write(tmp_path / name)
        size = sum(file.stat().st_size for file in tmp_path.glob(f"{name}.*"))
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=r"found \d+: |more memory than twice"):
            load(index, config=CONFIG)
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (5 << 20)
        tracemalloc.stop()


def test_the_mask():
    """LevelDB's own definition: rotated to the right by 15 bits, and a constant added."""
    assert mask_crc32c(0) == 0xA282EAD8
    assert mask_crc32c(1) == 0xA282EAD8 + (1 << 17)
    assert mask_crc32c(1 << 15) == 0xA282EAD9
