"""The wire format of protocol buffers: numbered fields, without any description of messages."""

from collections.abc import Iterator

__all__ = ["list_fields", "read_fixed32", "read_integers", "read_varint"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST = 10  # bytes of a varint of 64 bits
_SIGN = 1 << 63

Value = int | bytes


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of up to 64 bits, and where it ends."""
    value = 0
    for place in range(_LONGEST):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + place + 1
    raise ValueError("a number is cut off or too long")


def list_fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message by number: integers, and bytes (texts, messages, fixed widths)."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        kind = tag & 7
        value: Value
        if kind == _VARINT:
            value, at = read_varint(message, at)
        else:
            if kind == _BYTES:
                size, at = read_varint(message, at)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"a field of unknown kind {kind}")
            if size > len(message) - at:
                raise ValueError("a field is longer than its message")
            value = message[at : at + size]
            at += size
        yield tag >> 3, value


def read_integers(message: bytes, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The integers with these field numbers, signed, 0 where they are missing; the last counts."""
    found = dict.fromkeys(numbers, 0)
    for number, value in list_fields(message):
        if number in found:
            if not isinstance(value, int):
                raise ValueError(f"field {number}: expected a number")
            found[number] = value - 2 * _SIGN if value & _SIGN else value
    return tuple(found.values())


def read_fixed32(value: Value) -> int:
    """An integer of 32 bits, stored as four bytes."""
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("expected four bytes")
    return int.from_bytes(value, "little")
