"""CRC-32C, the checksum of LevelDB tables and TensorFlow's tensors, many bytes at a time.

The register of a CRC is a vector of 32 bits, and what zero bytes do to it is linear. So parts of a
block are computed side by side, as the lanes of an array, and put together by what the bytes of a
later part do to the register of an earlier one.
"""

import functools

import numpy as np

__all__ = ["compute_crc32c", "mask_crc32c"]

_POLYNOMIAL = 0x82F63B78  # reflected
_ALL = 0xFFFFFFFF
_BLOCK = 1 << 20  # bytes, so that copies of it take little memory
_SHORT = 4096  # bytes, up to which Python is faster than NumPy
_FEW_WORDS, _MANY_WORDS, _LARGE = 8, 64, 1 << 14

_Words = np.ndarray


def compute_crc32c(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """The CRC-32C of bytes; `start` is that of the bytes before them."""
    view = memoryview(data).cast("B")
    register = start ^ _ALL
    for at in range(0, len(view), _BLOCK):
        block = view[at : at + _BLOCK]
        if len(block) <= _SHORT:
            table = _list_byte_table()
            for byte in block:
                register = table[(register ^ byte) & 0xFF] ^ register >> 8
        else:
            register = _advance(register, len(block)) ^ _find_register(block)
    return register ^ _ALL


def mask_crc32c(checksum: int) -> int:
    """The form in which files hold a checksum, so that it is not taken for data."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & _ALL


def _find_register(block: memoryview) -> int:
    """The register after a block, from 0: zeros in front of the block change nothing."""
    width = 4 * (_FEW_WORDS if len(block) < _LARGE else _MANY_WORDS)
    lanes = 1 << (-(-len(block) // width) - 1).bit_length()
    padded = np.zeros(lanes * width, np.uint8)
    padded[-len(block) :] = np.frombuffer(block, np.uint8)
    columns = np.ascontiguousarray(padded.view("<u4").reshape(lanes, -1).T)
    registers = np.zeros(lanes, np.uint32)
    operator = _tabulate_word()
    for column in columns:
        registers = _apply(operator, registers ^ column, 16)
    power = width.bit_length() - 1
    while len(registers) > 1:
        registers = _apply(_tabulate(power), registers[0::2], 8) ^ registers[1::2]
        power += 1
    return int(registers[0])


def _advance(register: int, count: int) -> int:
    """The register after `count` bytes of zeros."""
    registers = np.array([register], np.uint32)
    for power in range(count.bit_length()):
        if count >> power & 1:
            registers = _apply(_tabulate(power), registers, 8)
    return int(registers[0])


def _apply(tables: _Words, registers: _Words, bits: int) -> _Words:
    """What a linear operator makes of registers: looked up `bits` bits at a time."""
    mask, last = np.uint32((1 << bits) - 1), 32 - bits
    result = tables[0].take(registers & mask, mode="clip")  # faster than [], as nothing is checked
    for part in range(1, len(tables) - 1):
        result ^= tables[part].take(registers >> np.uint32(part * bits) & mask, mode="clip")
    result ^= tables[-1].take(registers >> np.uint32(last), mode="clip")
    return result


@functools.cache
def _list_byte_table() -> list[int]:
    """What a byte does to the register."""
    table = []
    for register in range(256):
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
        table.append(register)
    return table


@functools.cache
def _list_columns(power: int) -> _Words:
    """What 2**power zero bytes make of each single bit."""
    if power == 0:
        table = _list_byte_table()
        bits = [1 << bit for bit in range(32)]
        return np.array([table[bit & 0xFF] ^ bit >> 8 for bit in bits], np.uint32)
    return _apply(_tabulate(power - 1), _list_columns(power - 1), 8)


@functools.cache
def _tabulate(power: int) -> _Words:
    return _expand(_list_columns(power), 8)


@functools.cache
def _tabulate_word() -> _Words:
    """What four bytes do, in tables large enough that two look-ups suffice."""
    return _expand(_list_columns(2), 16)


def _expand(columns: _Words, bits: int) -> _Words:
    """The tables of an operator, by what it makes of single bits."""
    tables = np.zeros((32 // bits, 1 << bits), np.uint32)
    for bit, column in enumerate(columns):
        part, place = divmod(bit, bits)
        half = 1 << place
        tables[part, half : 2 * half] = tables[part, :half] ^ column
    return tables
