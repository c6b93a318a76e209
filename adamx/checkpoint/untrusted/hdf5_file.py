"""The part of the HDF5 format in which Keras writes, read without trusting a byte of it.

libhdf5 is not made for that: on damaged files it crashes, loops forever and takes unlimited
memory. What is read here is the version of the format that it writes by default, "earliest".
Structures are called as in the HDF5 File Format Specification; see `hdf5_messages`.
"""

import dataclasses
import io
import math
import os
from collections.abc import Iterator
from struct import unpack, unpack_from

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.hdf5_messages import (
    ATTRIBUTE,
    CONTINUATION,
    LAYOUT,
    SYMBOL_TABLE,
    UNDEFINED,
    Attribute,
    Dataset,
    read_attribute,
    read_dataset,
    text_type,
)

__all__ = ["SIGNATURE", "File", "Group"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_USER_BLOCKS = (0, 512)  # where the superblock may be
_LONGEST_NAME = 1 << 16

# Bytes of memory that something takes here, about.
_LINK, _TEXT = 200, 100


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A group; an address is None where the link is no hard one."""

    name: str
    address: int
    attributes: dict[str, Attribute]
    links: dict[str, int | None]


class File:
    """An HDF5 file, whose structures are read on demand.

    The memory that they take is charged to an account. So reading ends, however structures refer
    to each other.
    """

    def __init__(self, stream: io.BufferedReader, account: Account | None = None) -> None:
        self._stream = stream
        self.size = stream.seek(0, os.SEEK_END)
        self.account = account or Account(self.size)
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
                f"{path}: expected an object in the file, found a soft or broken link"
            )
        if address not in self._nodes:
            self.account.spend(len(path))
            self._nodes[address] = self._node(address, path)
        return self._nodes[address]

    def texts(self, node: Group | Dataset, name: str) -> tuple[tuple[int, ...], list[str]] | None:
        """Shape and entries of an attribute of texts, or None."""
        attribute = node.attributes.get(name)
        if attribute is None:
            return None
        where = f"{node.name}: attribute {name}"
        if attribute.shape is None:
            raise CheckpointError(f"{where}: expected strings, found nothing")
        count = math.prod(attribute.shape)
        if count == 0:
            return attribute.shape, []  # an empty list has a dtype of numbers
        told = text_type(attribute.datatype)
        if told is None:
            raise CheckpointError(f"{where}: expected strings, found something else")
        size, is_variable = told
        if count * size > len(attribute.data):
            raise ValueError(f"{where} claims {count * size} bytes")
        self.account.spend(count * _TEXT)
        parts = [attribute.data[i * size : i * size + size] for i in range(count)]
        found = [self._variable(part) if is_variable else part.rstrip(b"\0") for part in parts]
        return attribute.shape, [self._decoded(text) for text in found]

    def read(self, dataset: Dataset) -> np.ndarray:
        """The values, which are already known to be inside the file."""
        self.account.spend(dataset.nbytes)
        array = np.empty(dataset.shape, dataset.dtype)
        view = array.reshape(-1).view(np.uint8)
        if isinstance(dataset.data, bytes):
            view[:] = np.frombuffer(dataset.data, np.uint8, dataset.nbytes)
        elif dataset.nbytes:
            self._stream.seek(self._base + dataset.data)
            if self._stream.readinto(view.data) != dataset.nbytes:
                raise ValueError(f"{dataset.name} ends too early")
        return view.reshape(dataset.shape) != 0 if array.dtype == bool else array

    def _root(self) -> Group:
        for start in _USER_BLOCKS:
            self._base = start
            superblock = self._bytes(0, 96)
            if superblock.startswith(SIGNATURE):
                break
        else:
            raise ValueError("the superblock is missing")
        if superblock[8] != 0 or superblock[13:15] != b"\x08\x08":
            raise CheckpointError(
                "expected the version of HDF5 that Keras writes, found another; "
                "`h5repack --low=0 OLD NEW` converts it"
            )
        base, _, end, _, _, root = unpack_from("<6Q", superblock, 24)
        if base != self._base:
            raise ValueError(f"expected the base address {self._base}, found {base}")
        if end > self.size:
            raise ValueError(f"{end} bytes were written, {self.size} are there")
        node = self._node(root, "/")
        if not isinstance(node, Group):
            raise ValueError("the root is not a group")
        return node

    def _node(self, address: int, name: str) -> Group | Dataset:
        """The object whose header is at `address`."""
        messages: dict[int, bytes] = {}
        attributes: dict[str, Attribute] = {}
        for kind, is_shared, body in self._messages(address):
            if kind == ATTRIBUTE:
                key, attribute = read_attribute(body)
                attributes[key] = attribute
            else:
                messages[kind] = b"" if is_shared else body
        if SYMBOL_TABLE in messages:
            links = self._links(*unpack_from("<QQ", messages[SYMBOL_TABLE]))
            return Group(name, address, attributes, links)
        if LAYOUT in messages:
            return read_dataset(name, attributes, messages)
        raise CheckpointError(
            f"{name}: expected the version of groups that Keras writes, found a newer one, which "
            "links to other files need"
        )

    def _messages(self, address: int) -> Iterator[tuple[int, bool, bytes]]:
        """Type, whether it is stored elsewhere, and body of each message of an object header."""
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
                if kind == CONTINUATION:
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
                for start, target in self._symbols(child):
                    name = self._name(names, start)
                    if name in links:
                        raise ValueError(f"two links are called {name}")
                    links[name] = target
        return links

    def _symbols(self, address: int) -> Iterator[tuple[int, int | None]]:
        """For each entry of a symbol table, the start of its name and the object's address."""
        signature, count = unpack("<4s2xH", self._bytes(address, 8))
        if signature != b"SNOD":
            raise ValueError(f"there is no symbol table at {address}")
        self.account.spend(count * _LINK)
        entries = self._bytes(address + 8, 40 * count)
        for at in range(0, 40 * count, 40):
            start, target, cache = unpack_from("<QQI", entries, at)
            yield start, None if cache == 2 or target == UNDEFINED else target

    def _name(self, names: bytes, start: int) -> str:
        end = names.find(b"\0", start, start + _LONGEST_NAME)
        if end < 0:
            raise ValueError("the name of a link does not end")
        return self._decoded(names[start:end])

    def _variable(self, reference: bytes) -> bytes:
        """The text that an entry of variable length refers to."""
        length, address, index = unpack("<IQI", reference)
        if length == 0 or address == 0:
            return b""
        block, places = self._collection(address)
        start, size = places.get(index, (0, 0))
        if length > size or start + size > len(block):
            raise ValueError(f"the text {index} in the heap at {address} is too short")
        self.account.spend(length)
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
                self.account.spend(_TEXT)
                at += 16 + (length + 7) // 8 * 8
            self._collections[address] = block, places
        return self._collections[address]

    def _decoded(self, text: bytes) -> str:
        self.account.spend(len(text) * (1 if text.isascii() else 4))
        return text.decode()

    def _bytes(self, address: int, count: int) -> bytes:
        start = self._base + address
        if start + count > self.size:
            raise ValueError(f"{count} bytes at {start} are not in the file of {self.size} bytes")
        self.account.spend(count)
        self._stream.seek(start)
        return self._stream.read(count)
