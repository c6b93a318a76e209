"""Pickles that somebody made to do harm, opcode by opcode."""

import collections
import io
import pickle
import pickletools
import struct
from collections.abc import Callable

import numpy as np

from tests.fuzz.mangling import pick

__all__ = ["EDITS", "calling", "integer", "numpy_number", "split", "text", "with_payload"]

_START, _STOP = b"\x80\x02", b"."
_INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1"}


def split(content: bytes) -> list[bytes]:
    """The pickles at the beginning of an old file of torch, and the rest."""
    parts, stream = [], io.BytesIO(content)
    for _ in range(5):
        start = stream.tell()
        collections.deque(pickletools.genops(stream), maxlen=0)
        parts.append(content[start : stream.tell()])
    return [*parts, stream.read()]


def with_payload(saved: bytes, payload: bytes) -> bytes:
    """A tuple of something more and of what was saved."""
    return _START + b"(" + payload + saved[len(_START) : -len(_STOP)] + b"t" + _STOP


def calling(module: str, name: str, *arguments: bytes) -> bytes:
    """A call of a function."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def integer(value: int) -> bytes:
    """A number, pickled."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    digits = pickle.encode_long(value)
    return b"\x8a" + bytes([len(digits)]) + digits


def text(value: str) -> bytes:
    """A text, pickled."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def numpy_number(code: str, data: str, byte_order: str = "<") -> bytes:
    """A number of NumPy with any dtype and bytes, pickled."""
    dtype = calling("numpy", "dtype", text(code)) + b"(K\x03" + text(byte_order) + b"NNNtb"
    encoded = calling("_codecs", "encode", text(data), text("latin1"))
    return calling("numpy.core.multiarray", "scalar", dtype, encoded)


def allocation(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Something that takes memory for a number alone."""
    functions = [
        ("builtins", "bytearray"),
        ("__builtin__", "bytearray"),
        ("torch", "FloatTensor"),
        ("torch.storage", "UntypedStorage"),
        ("torch.storage", "TypedStorage"),
        ("torch", "Tensor"),
        ("torch.nn.parameter", "Parameter"),
        ("torch", "Size"),
    ]
    module, name = pick(rng, functions)
    size = integer(int(rng.choice([10**8, 10**9, 10**12])))
    new = f"c{module}\n{name}\n".encode() + b"(" + size + b"t\x81"
    return with_payload(saved, calling(module, name, size) if rng.rand() < 0.7 else new)


def doubling(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Text that each of many codecs makes twice as long."""
    del rng
    times = 24
    start = b"c_codecs\nencode\n" * times + text("a" * 1000) + text("latin1") + b"\x86R"
    return with_payload(saved, start + (text("hex") + b"\x86R") * (times - 1))


def execution(saved: bytes, rng: np.random.RandomState) -> bytes:
    functions = [("os", "system"), ("builtins", "eval"), ("posix", "system"), ("subprocess", "run")]
    functions += [
        ("torch", "load"),
        ("torch.hub", "load"),
        ("builtins", "open"),
        ("x\x1b[31m", "y"),
    ]
    module, name = pick(rng, functions)
    return with_payload(saved, calling(module, name, text("touch /tmp/adamx-was-here")))


def strange_number(saved: bytes, rng: np.random.RandomState) -> bytes:
    """A number of NumPy, perhaps of a dtype and bytes that do not fit; or the dtype of it alone."""
    codes = ["f8", "i4", "b1", "c16", "f16", "O8", "V8", "U2", "M8", "f8,f8", "(9,9)f8", "x" * 9]
    data = "\0" * pick(rng, [0, 1, 4, 8, 16, 1000])
    number = numpy_number(pick(rng, codes), data, pick(rng, ["<", ">", "|", "=", "x", "<f8"]))
    dtype = calling("numpy", "dtype", text(pick(rng, codes))) + pick(rng, [b"}b", b"Nb", b"]b"])
    kinds = [number, number + b"}b", b"]" + number + b"a", b"}" + number + b"Ns", dtype]
    return with_payload(saved, pick(rng, kinds))


def foreign_object(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Objects of classes that are not known, and what a pickle may do with them; and sets."""
    one = pick(rng, [b"cargparse\nNamespace\n)\x81", calling("pathlib", "PosixPath", text("a"))])
    web = b")" + (b"r\xff\xff\x00\x00j\xff\xff\x00\x00\x86") * 60
    kinds = [one, one + b"}" + text("a") + b"K\x01sb", one + web + b"b", one + b"K\x01a"]
    kinds += [one + web + b"a", one + b"(K\x01K\x02u", one + b")R", one + b")\x81", one + b"Q"]
    kinds += [b"}" + one + b"Ns", b"](" + one * 9_999 + b"e", b"c\x1b[31m\nx\n", b"ctorch\nonnx\n"]
    kinds += [b"(" + b"".join(b"ca\n%x\n" % i for i in range(9_999)) + b"t"]
    kinds += [calling("__builtin__", "set", part) for part in (web, b"]", b"](" + web + b"e", one)]
    kinds += [calling("builtins", "complex", integer(1), integer(2**600)), calling("a", "Storage")]
    return with_payload(saved, pick(rng, kinds))


def deep(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Lists, tuples or dictionaries within one another."""
    kinds = [b"]" * 50_000 + b"a" * 49_999, b")" + b"\x85" * 50_000]
    kinds.append((b"}" + text("x" * 20)) * 20_000 + b"N" + b"s" * 20_000)
    return with_payload(saved, pick(rng, kinds))


def recursive(saved: bytes, rng: np.random.RandomState) -> bytes:
    kinds = [b"]r\xff\xff\x00\x00j\xff\xff\x00\x00a", b"}r\xff\xff\x00\x00K\x01j\xff\xff\x00\x00s"]
    return with_payload(saved, pick(rng, kinds))


def web(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Tuples of twice the one before, perhaps as a key: 2 ** 60 ways to the last."""
    put, get = b"r\xff\xff\x00\x00", b"j\xff\xff\x00\x00"
    tuples = b")" + (put + get + b"\x86") * 60
    return with_payload(saved, b"}" + tuples + b"Ns" if rng.rand() < 0.5 else tuples)


def crowd(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Many small things, each of which takes more memory than bytes."""
    kinds = [b"](" + b"]" * 200_000 + b"e", b"](" + b"}" * 200_000 + b"e", b"}" * 200_000 + b"0"]
    kinds.append(b"](" + (b"c_codecs\nencode\n" + text("") + b"\x85R") * 9999 + b"e")
    kinds.append(b"](" + calling("collections", "OrderedDict") * 9999 + b"e")
    return with_payload(saved, pick(rng, kinds))


def claimed(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Texts and places in the memo that are too large."""
    size = pick(rng, [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"])
    kinds = [b"X" + size, b"B" + size, b"\x8b" + size, b"Nr" + size, b"\x8e" + size * 2]
    return with_payload(saved, pick(rng, [*kinds, b"\x95" + size * 2]))


def wrong_integer(saved: bytes, rng: np.random.RandomState) -> bytes:
    """Of a shape, a stride, an offset, a size, a position, or a place in the memo."""
    spans = [span for name, span in _opcodes(saved) if name in _INTEGERS]
    start, end = pick(rng, spans)
    values = [-1, 0, 1, 2, 31, 65, 129, 300, 1000, 4000, 2**31, 2**40, 2**62, 2**63, 2**64, 2**600]
    return saved[:start] + integer(pick(rng, values)) + saved[end:]


def wrong_opcode(saved: bytes, rng: np.random.RandomState) -> bytes:
    """One opcode more, one less, or two in the place of each other."""
    spans = [span for _, span in _opcodes(saved)][1:-1]
    start, end = pick(rng, spans)
    again, until = pick(rng, spans)
    choice = rng.randint(3)
    if choice == 0:
        return saved[:start] + saved[end:]
    if choice == 1:
        return saved[:start] + saved[again:until] + saved[start:]
    return saved[:start] + saved[again:until] + saved[end:]


def many_wrong_integers(saved: bytes, rng: np.random.RandomState) -> bytes:
    for _ in range(rng.randint(2, 6)):
        saved = wrong_integer(saved, rng)
    return saved


EDITS: tuple[Callable[[bytes, np.random.RandomState], bytes], ...] = (
    allocation,
    allocation,
    doubling,
    execution,
    foreign_object,
    foreign_object,
    strange_number,
    deep,
    recursive,
    web,
    crowd,
    claimed,
    wrong_integer,
    wrong_integer,
    many_wrong_integers,
    wrong_opcode,
    wrong_opcode,
)


def _opcodes(saved: bytes) -> list[tuple[str, tuple[int, int]]]:
    """Names of the opcodes, and where they begin and end."""
    stream, found = io.BytesIO(saved), []
    for opcode, _, start in pickletools.genops(stream):
        found.append((opcode.name, (start or 0, stream.tell())))
    return found
