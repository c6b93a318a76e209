"""The part of the HDF5 format in which Keras writes, read without trusting a byte of it.

libhdf5 is not made for that: on damaged files it crashes, goes round in circles and takes memory
without end. What is read here is the format that it writes unless told otherwise, "earliest".
Structures are called as in the HDF5 File Format Specification, version 3.0, which says what stands
where: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from struct import unpack, unpack_from
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from adamx.checkpoint.files import CheckpointError

__all__ = ["BFLOAT16", "SIGNATURE", "Dataset", "File", "Group"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
BFLOAT16 = np.dtype(jnp.bfloat16)

_USER_BLOCKS = (0, 512)  # where the superblock may be
_UNDEFINED = (1 << 64) - 1
_LONGEST_NAME = 1 << 16

# Messages of an object header.
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE = 0x1, 0x3, 0x7, 0x8, 0xB, 0xC
_CONTINUATION, _SYMBOL_TABLE = 0x10, 0x11

# Classes of datatypes.
_INTEGER, _FLOAT, _STRING, _OPAQUE, _ENUM, _VARIABLE_LENGTH = 0, 1, 3, 5, 8, 9

# Places and sizes, in bits: of the sign, the exponent (and its size), the mantissa; then the bias.
_FLOATS = {
    (15, 10, 5, 0, 10, 15): np.dtype(np.float16),
    (31, 23, 8, 0, 23, 127): np.dtype(np.float32),
    (63, 52, 11, 0, 52, 1023): np.dtype(np.float64),
    (15, 7, 8, 0, 7, 127): BFLOAT16,
}
_IMPLIED = 0x20  # in the bit field: the mantissa's first bit is not stored

# Bytes of memory that something takes here, about; each takes more than half of it in the file.
_LINK, _TEXT = 150, 100


@dataclasses.dataclass(frozen=True, slots=True)
class _Attribute:
    datatype: bytes
    shape: tuple[int, ...] | None
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A group; an address is None where the link is no hard one."""

    name: str
    address: int
    attributes: dict[str, _Attribute]
    links: dict[str, int | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """An array that is stored in one piece; or `fault`, why it is not one that can be read.

    Attributes:
      data: its address; or the bytes, where they stand in the header.
      dtype: as stored, whatever the byte order; bfloat16 may be two bytes without a meaning ("V2").
    """

    name: str
    attributes: dict[str, _Attribute]
    fault: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype("V"))
    data: int | bytes = b""

    @property
    def nbytes(self) -> int:
        """What the shape claims."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether the numbers are floating-point, as far as the file says it."""
        return not self.fault and self.dtype.kind in "fV"


class File:
    """An HDF5 file, whose structures are read as they are asked for.

    All of them together may take twice the file's size in memory. So nothing is read without end,
    however structures refer to each other.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = stream.seek(0, os.SEEK_END)
        self._left = 2 * self.size
        self._nodes: dict[int, Group | Dataset] = {}
        self._collections: dict[int, tuple[bytes, dict[int, tuple[int, int]]]] = {}
        self._base = 0
        self.root = self._root()

    def child(self, group: Group, name: str) -> Group | Dataset | None:
        """The object of that name, or None."""
        if name not in group.links:
            return None
        address = group.links[name]
        path = f"{group.name.rstrip('/')}/{name}"
        if address is None:
            raise CheckpointError(
                f"{path}: expected an object in the file, found a link to elsewhere"
            )
        if address not in self._nodes:
            self._nodes[address] = self._node(address, path)
        return self._nodes[address]

    def texts(self, node: Group | Dataset, name: str) -> tuple[tuple[int, ...], list[str]] | None:
        """Shape and entries of an attribute of texts, or None."""
        attribute = node.attributes.get(name)
        if attribute is None:
            return None
        where = f"{node.name}: attribute {name}"
        if attribute.shape is None:
            raise CheckpointError(f"{where}: expected text, found nothing")
        count = math.prod(attribute.shape)
        if count == 0:
            return attribute.shape, []  # an empty list has a dtype of numbers
        class_, bits, size = _datatype(attribute.datatype)
        is_variable = class_ == _VARIABLE_LENGTH and bits & 15 == 1
        if class_ != _STRING and not is_variable:
            raise CheckpointError(f"{where}: expected text, found something else")
        if count * size > len(attribute.data) or size < (16 if is_variable else 1):
            raise ValueError(f"{where} claims {count * size} bytes")
        self._take(count * _TEXT)
        parts = [attribute.data[i * size : i * size + size] for i in range(count)]
        found = [self._variable(part) if is_variable else part.rstrip(b"\0") for part in parts]
        return attribute.shape, [self._decoded(text) for text in found]

    def read(self, dataset: Dataset) -> np.ndarray:
        """The values, which have been seen to be in the file."""
        array = np.empty(dataset.shape, dataset.dtype)
        view = array.reshape(-1).view(np.uint8)
        if isinstance(dataset.data, bytes):
            view[:] = np.frombuffer(dataset.data, np.uint8, dataset.nbytes)
        elif dataset.nbytes:
            self._stream.seek(self._base + dataset.data)
            if self._stream.readinto(view) != dataset.nbytes:  # type: ignore[attr-defined]
                raise ValueError(f"{dataset.name} ends too early")
        return view.reshape(dataset.shape) != 0 if array.dtype == bool else array

    def _root(self) -> Group:
        for self._base in _USER_BLOCKS:
            superblock = self._bytes(0, 96)
            if superblock.startswith(SIGNATURE):
                break
        else:
            raise ValueError("the superblock is missing")
        if superblock[8] != 0 or superblock[13:15] != b"\x08\x08":
            raise CheckpointError(
                "expected HDF5 in the form that Keras writes, found another version of it; "
                "`h5repack --low=0 OLD NEW` puts it into that form"
            )
        base, _, end, _, _, root = unpack_from("<6Q", superblock, 24)
        if base != self._base:
            raise ValueError(f"expected the base address {self._base}, found {base}")
        if end > self.size:
            raise ValueError(f"{end} bytes were written, {self.size} are there")
        node = self._node(root, "/")
        if not isinstance(node, Group):
            raise ValueError("the root is no group")
        return node

    def _node(self, address: int, name: str) -> Group | Dataset:
        """The object whose header stands there."""
        messages: dict[int, bytes] = {}
        attributes: dict[str, _Attribute] = {}
        for kind, is_shared, body in self._messages(address):
            if kind == _ATTRIBUTE:
                key, attribute = _attribute(body)
                attributes[key] = attribute
            else:
                messages[kind] = b"" if is_shared else body
        if _SYMBOL_TABLE in messages:
            links = self._links(*unpack_from("<QQ", messages[_SYMBOL_TABLE]))
            return Group(name, address, attributes, links)
        if _LAYOUT in messages:
            return _dataset(name, attributes, messages)
        raise CheckpointError(
            f"{name}: expected a group or an array in the form that Keras writes, found another"
        )

    def _messages(self, address: int) -> Iterator[tuple[int, bool, bytes]]:
        """Type, whether it stands elsewhere, and body of each message of an object header."""
        version, length = unpack("<B7xI", self._bytes(address, 12))
        if version != 1:
            raise ValueError(f"there is no object header at {address}")
        blocks = [(address + 16, length)]
        while blocks:
            start, length = blocks.pop()
            block = self._bytes(start, length)
            at = 0
            while at + 8 <= length:
                kind, size, flags = unpack_from("<HHB", block, at)
                at += 8 + size
                if at > length:
                    raise ValueError(f"a message of the object header at {address} is too long")
                if kind == _CONTINUATION:
                    blocks.append(unpack_from("<QQ", block, at - size))
                elif kind:
                    yield kind, bool(flags & 2), block[at - size : at]

    def _links(self, tree: int, heap: int) -> dict[str, int | None]:
        """The links of a group: a B-tree whose leaves are symbol tables; a heap has the names."""
        signature, size, _, start = unpack("<4s4xQQQ", self._bytes(heap, 32))
        if signature != b"HEAP":
            raise ValueError(f"there is no local heap at {heap}")
        names = self._bytes(start, size)
        links: dict[str, int | None] = {}
        ahead = [tree]
        while ahead:
            address = ahead.pop()
            signature, kind, level, used = unpack("<4sBBH", self._bytes(address, 8))
            if signature != b"TREE" or kind != 0:
                raise ValueError(f"there is no B-tree of a group at {address}")
            children = unpack(f"<{2 * used}Q", self._bytes(address + 32, 16 * used))[::2]
            if level:
                ahead += children
                continue
            for child in children:
                for place, target in self._symbols(child):
                    name = self._name(names, place)
                    if name in links:
                        raise ValueError(f"two links are called {name}")
                    links[name] = target
        return links

    def _symbols(self, address: int) -> Iterator[tuple[int, int | None]]:
        """Of each entry of a symbol table the name's place, and the address of the object."""
        signature, count = unpack("<4s2xH", self._bytes(address, 8))
        if signature != b"SNOD":
            raise ValueError(f"there is no symbol table at {address}")
        self._take(count * _LINK)
        entries = self._bytes(address + 8, 40 * count)
        for at in range(0, 40 * count, 40):
            place, target, cache = unpack_from("<QQI", entries, at)
            yield place, None if cache == 2 or target == _UNDEFINED else target

    def _name(self, names: bytes, place: int) -> str:
        end = names.find(b"\0", place, place + _LONGEST_NAME)
        if end < 0:
            raise ValueError("the name of a link does not end")
        self._take(end - place)
        return self._decoded(names[place:end])

    def _variable(self, reference: bytes) -> bytes:
        """The text that an entry of variable length refers to."""
        length, address, index = unpack("<IQI", reference)
        if length == 0 or address == 0:
            return b""
        block, places = self._collection(address)
        start, size = places.get(index, (0, 0))
        if length > size or start + size > len(block):
            raise ValueError(f"the text {index} in the heap at {address} is too short")
        self._take(length)
        return block[start : start + length].rstrip(b"\0")

    def _collection(self, address: int) -> tuple[bytes, dict[int, tuple[int, int]]]:
        """A global heap collection, and where in it each object is."""
        if address not in self._collections:
            signature, size = unpack("<4s4xQ", self._bytes(address, 16))
            if signature != b"GCOL":
                raise ValueError(f"there is no global heap at {address}")
            block = self._bytes(address, size)
            places: dict[int, tuple[int, int]] = {}
            at = 16
            while at + 16 <= size:
                index, length = unpack_from("<H6xQ", block, at)
                if index == 0:  # what is left is free
                    break
                places[index] = at + 16, length
                self._take(_TEXT)
                at += 16 + (length + 7) // 8 * 8
            self._collections[address] = block, places
        return self._collections[address]

    def _decoded(self, text: bytes) -> str:
        if not text.isascii():
            self._take(4 * len(text))
        return text.decode()

    def _bytes(self, address: int, count: int) -> bytes:
        start = self._base + address
        if start + count > self.size:
            raise ValueError(f"{count} bytes at {start} are not in the file of {self.size} bytes")
        self._take(count)
        self._stream.seek(start)
        return self._stream.read(count)

    def _take(self, count: int) -> None:
        """Account for memory."""
        self._left -= count
        if self._left < 0:
            raise ValueError("its structures take more than the file: they refer to each other")


def _attribute(body: bytes) -> tuple[str, _Attribute]:
    """Name and content of an attribute message."""
    version, flags, *sizes = unpack_from("<BBHHH", body)
    if version not in (1, 2, 3):
        raise ValueError(f"an attribute of version {version}")
    at = 9 if version == 3 else 8
    parts = []
    for size in sizes:
        parts.append(body[at : at + size])
        at += (size + 7) // 8 * 8 if version == 1 else size
    name, datatype, space = parts
    is_shared = version > 1 and flags & 3
    shape = None if is_shared else _shape(space)
    return name.rstrip(b"\0").decode(), _Attribute(datatype, shape, body[at:])


def _dataset(name: str, attributes: dict[str, _Attribute], messages: dict[int, bytes]) -> Dataset:
    layout = messages[_LAYOUT]
    if _EXTERNAL in messages or _FILTERS in messages or layout[0] != 3 or layout[1] > 1:
        return Dataset(
            name,
            attributes,
            "expected an array stored in one piece as Keras writes it, found it chunked, "
            "compressed or outside of the file; `h5repack -l CONTI -f NONE` undoes compression",
        )
    dtype = _numpy_dtype(messages.get(_DATATYPE, b""))
    shape = _shape(messages.get(_DATASPACE, b""))
    if dtype is None or shape is None:
        found = "something else" if dtype is None else "a dataset without values"
        return Dataset(name, attributes, f"expected numbers, found {found}")
    data: int | bytes
    if layout[1] == 0:
        (length,) = unpack_from("<H", layout, 2)
        data = layout[4 : 4 + length]
        length = len(data)
    else:
        data, length = unpack_from("<QQ", layout, 2)
    dataset = Dataset(name, attributes, "", shape, dtype, data)
    if dataset.nbytes > length or (dataset.nbytes and data == _UNDEFINED):
        fault = f"expected {dataset.nbytes} bytes for shape {shape}, but they are not in the file"
        return dataclasses.replace(dataset, fault=fault)
    return dataset


def _shape(message: bytes) -> tuple[int, ...] | None:
    """The shape in a dataspace message; None for a dataspace of nothing, or one elsewhere."""
    if not message:
        return None
    version, rank, _, kind = unpack_from("<BBBB", message)
    if version not in (1, 2) or rank > 32:
        raise ValueError(f"a dataspace of version {version} with {rank} dimensions")
    if version == 2 and kind == 2:
        return None
    return unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)


def _datatype(message: bytes) -> tuple[int, int, int]:
    """Class, bit field and size in a datatype message."""
    first, low, middle, high, size = unpack_from("<4BI", message)
    return first & 15, low | middle << 8 | high << 16, size


def _numpy_dtype(message: bytes) -> np.dtype | None:
    """What NumPy calls a type of numbers, or None."""
    if not message:
        return None
    class_, bits, size = _datatype(message)
    order = ">" if bits & 1 else "<"
    if class_ in (_INTEGER, _FLOAT) and unpack_from("<HH", message, 8) != (0, 8 * size):
        return None
    if class_ == _INTEGER and size in (1, 2, 4, 8):
        return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
    if class_ == _FLOAT and bits & 0x70 == _IMPLIED:
        fields = (bits >> 8 & 255, *unpack_from("<4BI", message, 12))
        dtype = _FLOATS.get(fields)
        if dtype is None or dtype.itemsize != size or (dtype == BFLOAT16 and order == ">"):
            return None
        return dtype if dtype == BFLOAT16 else dtype.newbyteorder(order)
    if class_ == _OPAQUE and size == BFLOAT16.itemsize:
        return np.dtype("V2")
    if class_ == _ENUM and size == 1:
        return np.dtype(bool)
    return None
