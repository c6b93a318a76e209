"""The reader and the writer of torch's archives by themselves: each value against torch's own."""

import collections
import datetime
import decimal
import functools
import pickle
import types

import numpy as np
import pytest

from adamx.checkpoint import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.stand_ins import StandIn
from adamx.checkpoint.untrusted.torch_archive import (
    open_archive,
    read_archive,
    read_pickle,
    read_tensors,
)
from adamx.checkpoint.untrusted.torch_tensors import Tensor, TensorStandIn, make_tensor
from adamx.checkpoint.writing.torch_writer import write_archive
from tests.fuzz import archives

torch = pytest.importorskip("torch", reason="torch writes what is read here")

KINDS = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
MORE = "uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
PROTOCOLS = (2, 3, 4, 5)


def values(dtype):
    numbers = torch.from_numpy(np.random.RandomState(0).randn(3, 4) * 9)
    return numbers.to(getattr(torch, dtype))


def stored(tensor):
    return tensor.contiguous().untyped_storage().tolist()[: tensor.numel() * tensor.itemsize]


@pytest.mark.parametrize("dtype", [*KINDS.split(), *MORE.split()])
def test_dtypes_keep_their_bits_both_ways(dtype, tmp_path):
    tensor = values(dtype)
    torch.save({"a": tensor, "b": tensor.T, "c": tensor[1:, ::2]}, tmp_path / "a.pt")
    mapped = read_archive(tmp_path / "a.pt")
    read = dict(zip(mapped, read_tensors(list(mapped.values())), strict=True))
    new = {name: make_tensor(array) for name, array in read.items()}
    write_archive(tmp_path / "b.pt", new)
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    for name, like in {"a": tensor, "b": tensor.T, "c": tensor[1:, ::2]}.items():
        assert isinstance(mapped[name], Tensor)
        assert not mapped[name].flags.writeable
        assert read[name].flags.writeable
        assert str(read[name].dtype) == dtype
        assert read[name].shape == tuple(like.shape)
        assert list(read[name].tobytes()) == stored(like)
        assert list(mapped[name].tobytes()) == stored(like)
        assert again[name].dtype == like.dtype
        assert stored(again[name]) == stored(like)
    assert np.shares_memory(read["a"], read["b"])


def test_big_endian(tmp_path):
    """The same numbers from a file with the other byte order."""
    dtypes = KINDS.split()
    torch.save({dtype: values(dtype) for dtype in dtypes}, tmp_path / "a.pt")
    parts = archives.members((tmp_path / "a.pt").read_bytes())
    parts["a/byteorder"] = b"big"
    for key, dtype in enumerate(dtypes):
        width = values(dtype).itemsize // (2 if "complex" in dtype else 1)
        data = np.frombuffer(parts[f"a/data/{key}"], f"u{width}")
        parts[f"a/data/{key}"] = data.byteswap().tobytes()
    (tmp_path / "b.pt").write_bytes(archives.packed(parts))
    found = read_archive(tmp_path / "b.pt")
    for dtype, read in zip(found, read_tensors(list(found.values())), strict=True):
        assert list(read.tobytes()) == list(found[dtype].tobytes()) == stored(values(dtype))


def test_a_wrong_checksum(tmp_path):
    torch.save(torch.arange(10.0), tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(np.float32(3).tobytes())] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="a/data/0: the checksum is wrong"):
        read_tensors([read_archive(tmp_path / "a.pt")])
    with pytest.raises(ValueError, match="a/data/0: the checksum is wrong"):
        write_archive(tmp_path / "b.pt", read_archive(tmp_path / "a.pt"))


def test_a_file_that_is_changed_meanwhile(tmp_path):
    torch.save(torch.arange(10.0), tmp_path / "a.pt")
    tensor = read_archive(tmp_path / "a.pt")
    torch.save(torch.arange(11.0), tmp_path / "b.pt")
    (tmp_path / "b.pt").replace(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        read_tensors([tensor])


def test_an_archive_within_a_file(tmp_path):
    parts = []
    for number in range(3):
        torch.save(torch.full((4,), float(number)), tmp_path / "a.pt")
        parts.append((tmp_path / "a.pt").read_bytes())
    (tmp_path / "all").write_bytes(b"".join(parts))
    start = len(parts[0])
    tensor = read_archive(tmp_path / "all", start, len(parts[1]))
    np.testing.assert_array_equal(read_tensors([tensor])[0], np.full(4, 1, np.float32))
    with pytest.raises(CheckpointError, match="the file has fewer"):
        read_archive(tmp_path / "all", start, 10**6)


WITHOUT_VALUES = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(3, device="meta"),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "dimensions": lambda: torch.ones((1,) * 40),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", WITHOUT_VALUES.values(), ids=WITHOUT_VALUES)
def test_tensors_without_an_array_are_stand_ins(make, tmp_path):
    tensor = make()
    torch.save([tensor], tmp_path / "a.pt")
    saved = open_archive(tmp_path / "a.pt")
    assert isinstance(saved.value[0], TensorStandIn)
    write_archive(tmp_path / "b.pt", saved.value)
    (again,) = torch.load(tmp_path / "b.pt", weights_only=False)
    assert (again.layout, again.device, again.dtype) == (tensor.layout, tensor.device, tensor.dtype)
    assert again.shape == tensor.shape


class Slots:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a

    def __repr__(self):
        return f"Slots({self.a})"


LOOP: list = []
LOOP.append((LOOP,))
OBJECTS = {
    "parameter": torch.nn.Parameter(torch.ones(2), requires_grad=False),
    "parameter with attributes": torch.nn.Parameter(torch.ones(2)),
    "tensor that wants a gradient": torch.ones(2, requires_grad=True),
    "nothing": torch.zeros(0, 3),
    "size": torch.Size([1, 2]),
    "device": torch.device("cuda", 1),
    "dtypes": (torch.float16, torch.float8_e5m2, torch.strided),
    "default dictionary": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "ordered": collections.OrderedDict(b=1, a=2),
    "sets": [{1, "a", (2, 3)}, frozenset({1.5})],
    "numbers": [2**70, -(2**70), 1j, -0.0, True, None, 10**700],
    "bytes": [b"\xff" * 300, b"", bytearray(b"ab")],
    "texts": ["a" * 300, "ä", "Ω", "\U0001f600", "\ud800"],
    "numpy": [np.arange(6.0).reshape(2, 3).T, np.float16(2), np.array("ab"), np.zeros((0, 2))],
    "more of numpy": [np.dtype("i4,f8"), np.datetime64("2020"), np.array([None]), np.dtype(">f4")],
    "slots": Slots([1]),
    "method": functools.partial(int, base=2),
    "namespace": types.SimpleNamespace(a=1),
    "range": [range(3), slice(1, 2)],
    "dates": (datetime.datetime(2020, 1, 2), decimal.Decimal("1.5")),
    "error": [ValueError("a")],
    "loop": LOOP,
}
OBJECTS["parameter with attributes"].tag = "a"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_objects_are_written_back_as_they_were(value, protocol, tmp_path):
    """Torch writes, adamx reads and writes, and torch has the same again."""
    torch.save({"x": value}, tmp_path / "a.pt", pickle_protocol=protocol)
    saved = open_archive(tmp_path / "a.pt")
    assert saved.protocol == protocol
    write_archive(tmp_path / "b.pt", saved.value, protocol=protocol)
    again = torch.load(tmp_path / "b.pt", weights_only=False)["x"]
    assert type(again) is type(value)
    assert repr(again) == repr(value)
    if isinstance(value, torch.Tensor):
        assert again.requires_grad == value.requires_grad
        assert vars(again) == vars(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_in_a_stand_in(protocol):
    class_of = types.SimpleNamespace(a=[1], b=types.SimpleNamespace(c=2))
    pairs = collections.UserDict(a=1)
    found = read_pickle(pickle.dumps([class_of, pairs], protocol, fix_imports=False), Account(1000))
    assert all(isinstance(value, StandIn) for value in found)
    assert [value.name for value in found] == ["types.SimpleNamespace", "collections.UserDict"]
    assert found[0].attributes["a"] == [1]
    assert found[0].attributes["b"].attributes == {"c": 2}
    assert found[1].attributes == {"data": {"a": 1}}
    deque = read_pickle(pickle.dumps(collections.deque([1, 2]), protocol), Account(1000))
    assert deque.items == [1, 2]
