"""Damage to bytes that knows nothing of what they mean, but for where structure stands."""

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["mangled", "pick"]

_NEAR = 96  # bytes after the place of a structure within which it is hit


def mangled(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> tuple[bytes, str]:
    """A damaged copy, and what was done.

    Args:
      content: to be damaged.
      places: where structures begin: headers, tables, sizes.
      rng: where the choices come from.
    """
    damage = pick(rng, _DAMAGES)
    return damage(content, places, rng), damage.__name__.strip("_")


def pick(rng: np.random.RandomState, choices: Iterable[Any]) -> Any:
    """One of them, and just as it is."""
    choices = list(choices)
    return choices[rng.randint(len(choices))]


def _truncated(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    end = rng.randint(len(content)) if rng.rand() < 0.7 else _structural(content, places, rng)
    return content[:end]


def _flipped_anywhere(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    del places
    result = bytearray(content)
    for _ in range(rng.randint(1, 9)):
        result[rng.randint(len(result))] ^= 1 << rng.randint(8)
    return bytes(result)


def _flipped_structure(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    result = bytearray(content)
    for _ in range(rng.randint(1, 9)):
        result[_structural(content, places, rng)] ^= 1 << rng.randint(8)
    return bytes(result)


def _filled(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    """Sizes and addresses of nothing or of everything."""
    start, length = _structural(content, places, rng), int(rng.choice([1, 2, 4, 8, 16]))
    fill = b"\xff" if rng.rand() < 0.5 else b"\x00"
    return _put(content, start, fill * length)


def _claimed(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    """An integer that may be a size becomes another one."""
    size, width = len(content), int(rng.choice([1, 2, 4, 8]))
    choices = [0, 1, 2, 127, 128, 255, 256, 65535, size - 1, size, size + 1, 2 * size]
    choices += [1 << 20, 1 << 30, 1 << 31, (1 << 32) - 1, 1 << 33, 1 << 40, 1 << 62, (1 << 64) - 1]
    value = pick(rng, choices) % (1 << 8 * width)
    start = _structural(content, places, rng)
    return _put(
        content, start - start % width * int(rng.randint(2)), value.to_bytes(width, "little")
    )


def _repeated(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    start, end = _chunk(content, places, rng)
    return content[:end] + content[start:end] + content[end:]


def _removed(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    start, end = _chunk(content, places, rng)
    return content[:start] + content[end:]


def _overwritten(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> bytes:
    """One part of the file put over another."""
    start, end = _chunk(content, places, rng)
    return _put(content, _structural(content, places, rng), content[start:end])


_DAMAGES = (
    _truncated,
    _flipped_anywhere,
    _flipped_structure,
    _flipped_structure,
    _filled,
    _claimed,
    _claimed,
    _repeated,
    _removed,
    _overwritten,
)


def _structural(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> int:
    place = places[rng.randint(len(places))] + rng.randint(_NEAR)
    return int(min(place, len(content) - 1))


def _chunk(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> tuple[int, int]:
    is_structure = rng.rand() < 0.5
    start = _structural(content, places, rng) if is_structure else rng.randint(len(content))
    length = int(rng.choice([1, 2, 4, 8, 24, 64, 512, 4096]))
    return start, min(start + length, len(content))


def _put(content: bytes, start: int, part: bytes) -> bytes:
    return (content[:start] + part + content[start + len(part) :])[: max(len(content), 1)]
