"""Zip archives: their members, and directories that lie about them."""

import io
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from tests.fuzz.mangling import pick

__all__ = ["EDITS", "members", "packed", "places"]

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_EVIL = "../adamx-was-here"


def members(content: bytes) -> dict[str, bytes]:
    """What is in an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of them, whose checksums are right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part, compression)
    return stream.getvalue()


def places(content: bytes) -> np.ndarray:
    """Where headers begin."""
    return np.array([match.start() for match in re.finditer(rb"PK[\x01-\x08]{2}", content)])


def deflated(content: bytes, rng: np.random.RandomState) -> bytes:
    kinds = (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return packed(members(content), pick(rng, kinds))


def bomb(content: bytes, rng: np.random.RandomState) -> bytes:
    """Zeros that deflate to next to nothing, in the place of a member."""
    parts = members(content)
    parts[pick(rng, parts)] = bytes(1 << 24)
    return packed(parts, zipfile.ZIP_DEFLATED)


def quoted_bomb(content: bytes, rng: np.random.RandomState) -> bytes:
    """Members that share their bytes."""
    del rng
    parts = members(content)
    result = bytearray(packed(parts))
    headers = [match.start() for match in re.finditer(_CENTRAL, result)]
    largest = max(headers, key=lambda at: struct.unpack_from("<I", result, at + 24)[0])
    for at in headers:
        for place, length in ((16, 12), (42, 4)):  # checksum and sizes; where it is
            start = largest + place
            result[at + place : at + place + length] = result[start : start + length]
    return bytes(result)


def doubled(content: bytes, rng: np.random.RandomState) -> bytes:
    """Two members of one name, or of names that differ by the case alone."""
    parts = members(content)
    name = pick(rng, parts)
    stream = io.BytesIO(content)
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "a") as archive:
        warnings.simplefilter("ignore")
        again = name if rng.rand() < 0.5 else name.swapcase()
        archive.writestr(again, parts[name][: rng.randint(len(parts[name]) + 1)])
    return stream.getvalue()


def encrypted(content: bytes, rng: np.random.RandomState) -> bytes:
    del rng
    return _patched(content, 8, lambda flags: flags | 1, "<H")


def without_member(content: bytes, rng: np.random.RandomState) -> bytes:
    parts = members(content)
    del parts[pick(rng, parts)]
    return packed(parts)


def empty_member(content: bytes, rng: np.random.RandomState) -> bytes:
    parts = members(content)
    parts[pick(rng, parts)] = b""
    return packed(parts)


def swapped_members(content: bytes, rng: np.random.RandomState) -> bytes:
    parts = members(content)
    one, other = pick(rng, parts), pick(rng, parts)
    parts[one], parts[other] = parts[other], parts[one]
    return packed(parts)


def evil_member(content: bytes, rng: np.random.RandomState) -> bytes:
    names = [_EVIL, "/tmp/adamx-was-here", "C:\\adamx", "a/" * 30_000, "\x1b[31m", "x\x00y"]
    return packed({**members(content), pick(rng, names): b"evil"})


def many_members(content: bytes, rng: np.random.RandomState) -> bytes:
    """A directory of empty members, each of which takes more memory than bytes."""
    count = int(rng.choice([500, 5000]))
    return packed({**members(content), **{f"{index:x}": b"" for index in range(count)}})


def wrong_size(content: bytes, rng: np.random.RandomState) -> bytes:
    values = [0, 1, 1 << 20, 1 << 30, (1 << 32) - 2, (1 << 32) - 1]
    value = pick(rng, values)
    place = int(rng.choice([20, 24]))
    return _patched(content, place, lambda _: value, "<I")


def wrong_offset(content: bytes, rng: np.random.RandomState) -> bytes:
    shift = int(rng.choice([-1, 1, 30, 1 << 20, 1 << 31]))
    return _patched(content, 42, lambda offset: (offset + shift) % (1 << 32), "<I")


def moved_directory(content: bytes, rng: np.random.RandomState) -> bytes:
    """Bytes before the archive, or between its directory and the end record."""
    junk = b"PK\x03\x04" + bytes(int(rng.choice([10, 60, 3000])))
    end = content.rindex(_END)
    return junk + content if rng.rand() < 0.5 else content[:end] + junk + content[end:]


def two_directories(content: bytes, rng: np.random.RandomState) -> bytes:
    """An archive within the comment of another, so that readers may disagree."""
    other = without_member(content, rng)
    end = content.rindex(_END)
    record = content[end : end + 20] + struct.pack("<H", min(len(other), 0xFFFF))
    return content[:end] + record + other[-0xFFFF:]


EDITS = (
    deflated,
    bomb,
    quoted_bomb,
    doubled,
    encrypted,
    without_member,
    empty_member,
    swapped_members,
    evil_member,
    many_members,
    wrong_size,
    wrong_offset,
    moved_directory,
    two_directories,
)


def _patched(content: bytes, place: int, change: Callable[[int], int], form: str) -> bytes:
    """With a field of all entries of the directory changed."""
    result = bytearray(content)
    for match in re.finditer(_CENTRAL, content):
        at = match.start() + place
        struct.pack_into(form, result, at, change(struct.unpack_from(form, result, at)[0]))
    return bytes(result)
