"""How much untrusted data of zstd can unpack to, by the headers of its blocks."""

__all__ = ["bound_zstd"]

_FRAME, _PASSED_OVER = 0xFD2FB528, 0x184D2A50  # what frames begin with; 16 kinds of the second
_LARGEST = 1 << 17  # bytes that a compressed block can unpack to


def bound_zstd(data: bytes) -> int:
    """An upper bound in bytes; a ValueError if blocks do not fill their frames.

    A decoder finds out only at the end of a frame that it is not of the size that it claims.
    """
    at, total = 0, 0
    while at < len(data):
        magic = _number(data, at, 4)
        if magic & ~0xF == _PASSED_OVER:
            at += 8 + _number(data, at + 4, 4)
        elif magic == _FRAME:
            at, size = _pass_frame(data, at + 4)
            total += size
        else:
            raise ValueError("not a zstd frame")
    if at != len(data):
        raise ValueError("a zstd frame ends too early")
    return total


def _pass_frame(data: bytes, at: int) -> tuple[int, int]:
    """Where a frame ends, and what it can unpack to."""
    flags = _number(data, at, 1)
    is_single, total = flags >> 5 & 1, 0
    at += 2 - is_single + (0, 1, 2, 4)[flags & 3] + (is_single, 2, 4, 8)[flags >> 6]
    is_last = False
    while not is_last:
        header = _number(data, at, 3)
        is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == 3:
            raise ValueError("a zstd block of an unknown kind")
        at += 3 + (1 if kind == 1 else size)
        total += _LARGEST if kind == 2 else size
    return at + (4 if flags >> 2 & 1 else 0), total


def _number(data: bytes, at: int, width: int) -> int:
    part = data[at : at + width]
    if len(part) != width:
        raise ValueError("zstd data end too early")
    return int.from_bytes(part, "little")
