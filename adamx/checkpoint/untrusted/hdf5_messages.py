"""Messages of the object headers in an HDF5 file: what they say of attributes and of arrays.

Structures are called as in the HDF5 File Format Specification, version 3.0, which defines their
layout: https://support.hdfgroup.org/documentation/hdf5/latest/_s_p_e_c.html
"""

import dataclasses
import math
from struct import unpack_from

import jax.numpy as jnp
import numpy as np

__all__ = [
    "ATTRIBUTE",
    "BFLOAT16",
    "CONTINUATION",
    "LAYOUT",
    "SYMBOL_TABLE",
    "UNDEFINED",
    "Attribute",
    "Dataset",
    "read_attribute",
    "read_dataset",
    "text_type",
]

BFLOAT16 = np.dtype(jnp.bfloat16)
UNDEFINED = (1 << 64) - 1  # an address of nothing

# Messages of an object header.
_DATASPACE, _DATATYPE, _EXTERNAL, LAYOUT, _FILTERS, ATTRIBUTE = 0x1, 0x3, 0x7, 0x8, 0xB, 0xC
CONTINUATION, SYMBOL_TABLE = 0x10, 0x11

# Classes of datatypes.
_INTEGER, _FLOAT, _STRING, _OPAQUE, _ENUM, _VARIABLE_LENGTH = 0, 1, 3, 5, 8, 9

# By size: positions and sizes, in bits, of the sign, the exponent (and its size) and the mantissa,
# and the bias.
_FLOATS = {
    2: (15, 10, 5, 0, 10, 15),
    4: (31, 23, 8, 0, 23, 127),
    8: (63, 52, 11, 0, 52, 1023),
}
_BFLOAT16_FIELDS = (15, 7, 8, 0, 7, 127)
_IMPLIED = 0x20  # in the bit field: the mantissa's first bit is not stored


@dataclasses.dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute; its shape is None if it has none or is stored elsewhere."""

    datatype: bytes
    shape: tuple[int, ...] | None
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """An array that is stored in one piece; or `fault`, why it is not one that can be read.

    Attributes:
      data: its address; or the bytes, if they are stored in the header.
      dtype: as stored, whatever the byte order; bfloat16 may be two bytes without a meaning ("V2").
    """

    name: str
    attributes: dict[str, Attribute]
    fault: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype("V"))
    data: int | bytes = b""

    @property
    def nbytes(self) -> int:
        """The size that shape and dtype claim."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether the numbers are floating-point, as far as the file says it."""
        return not self.fault and self.dtype.kind in "fV"


def read_attribute(body: bytes) -> tuple[str, Attribute]:
    """Name and content of an attribute message."""
    version, flags, *sizes = unpack_from("<BBHHH", body)
    if version not in (1, 2, 3):
        raise ValueError(f"an attribute of version {version}")
    at = 9 if version == 3 else 8
    parts = []
    for size in sizes:
        parts.append(body[at : at + size])
        at += (size + 7) // 8 * 8 if version == 1 else size
    name, type_, space = parts
    is_shared = version > 1 and flags & 3
    shape = None if is_shared else _shape(space)
    return name.rstrip(b"\0").decode(), Attribute(type_, shape, body[at:])


def text_type(message: bytes) -> tuple[int, bool] | None:
    """Bytes of a text, or of a reference to one of variable length, and which; None for no text."""
    class_, bits, size = _datatype(message)
    if class_ == _STRING and size:
        return size, False
    return (size, True) if (class_, bits & 15, size) == (_VARIABLE_LENGTH, 1, 16) else None


def read_dataset(
    name: str, attributes: dict[str, Attribute], messages: dict[int, bytes]
) -> Dataset:
    """The dataset that messages of an object header describe."""
    layout = messages[LAYOUT]
    if _EXTERNAL in messages or _FILTERS in messages or layout[0] != 3 or layout[1] > 1:
        return Dataset(
            name,
            attributes,
            "expected an array stored contiguously, as Keras writes it, found one that is chunked, "
            "compressed or outside of the file; `h5repack -l CONTI -f NONE OLD NEW` converts it",
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
    if dataset.nbytes > length or (dataset.nbytes and data == UNDEFINED):
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
        if fields == _BFLOAT16_FIELDS and size == 2 and order == "<":
            return BFLOAT16
        return np.dtype(f"{order}f{size}") if fields == _FLOATS.get(size) else None
    if class_ == _OPAQUE and size == BFLOAT16.itemsize:
        return np.dtype("V2")
    if class_ == _ENUM and size == 1:
        return np.dtype(bool)
    return None
