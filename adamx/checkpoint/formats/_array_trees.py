"""The arrays of a file by their paths, which are read only when they are asked for."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._counts import read_count
from adamx.checkpoint.formats._tree_paths import Path, dotted, find_boxes, find_children

__all__ = ["ArrayTree", "Leaf", "outline"]


class Described(Protocol):
    """What is known of an array in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""
        ...


class Leaf(Described, Protocol):
    """An array in a file, which is read only when it is asked for."""

    def read(self) -> np.ndarray:
        """Its numbers; their memory is charged."""
        ...


class ArrayTree:
    """All arrays of a file by path, with what was read of them."""

    def __init__(self, leaves: Mapping[Path, Leaf]) -> None:
        self.leaves = leaves
        self.children = find_children(leaves)
        self.boxes = find_boxes(leaves, self.children)
        self.seen: set[Path] = set()

    def at(self, path: Path) -> Path | None:
        """The path of the array there, perhaps in a box; None if there is none."""
        return path if path in self.leaves else self.boxes.get(path)

    def below(self, node: Path) -> dict[Path, Path]:
        """Map paths from `node`, without boxes, to the paths of all arrays below it."""
        found: dict[Path, Path] = {}
        size = len(node)
        for path in self.leaves:
            if path[:size] == node:
                plain = path[:-1] if self.boxes.get(path[:-1]) == path else path
                rest = plain[size:] or path[size:]
                if rest in found:
                    raise CheckpointError("two arrays have this path", where=dotted(path))
                found[rest] = path
        return found

    def read(self, path: Path) -> np.ndarray:
        """The numbers of an array."""
        self.seen.add(path)
        try:
            return self.leaves[path].read()
        except CheckpointError as error:
            raise error.within(dotted(path)) from error.__cause__

    def read_count(self, node: Path) -> int:
        """The whole number at a path."""
        path = self.at(node)
        assert path is not None
        if shape := self.leaves[path].shape:
            raise CheckpointError(
                where=dotted(node),
                expected="one number",
                found=f"shape {shape}, as of an ensemble (jax.vmap) or of replicas (jax.pmap)",
                remedy="save one member: jax.tree.map(lambda x: x[0], state)",
            )
        return read_count(dotted(node), self.read(path))


def outline(leaves: Mapping[Path, Described]) -> Iterator[str]:
    """What is at each path."""
    for path, leaf in leaves.items():
        yield f"{dotted(path)}: {leaf.dtype} of shape {leaf.shape}"
