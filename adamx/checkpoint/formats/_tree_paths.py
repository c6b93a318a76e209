"""Paths of arrays in a tree of names."""

from collections.abc import Collection, Iterable, Mapping

__all__ = ["Path", "dotted", "find_boxes", "find_children", "summarise"]

Path = tuple[str, ...]

_BOXED = "value"  # the key under which Flax keeps an array with what is known of it


def dotted(path: Path) -> str:
    """A path as a user gives it."""
    return ".".join(path) or "(all of the file)"


def find_children(paths: Iterable[Path]) -> dict[Path, set[str]]:
    """Map each node's path to its keys, nodes before those within them."""
    children: dict[Path, set[str]] = {(): set()}
    for path in paths:
        for end in range(len(path)):
            children.setdefault(path[:end], set()).add(path[end])
    return children


def find_boxes(paths: Collection[Path], children: Mapping[Path, set[str]]) -> dict[Path, Path]:
    """Map the path of each box of Flax to that of the array in it.

    NNX keeps each array under `value`, linen those with a partitioning, and nothing beside it.
    """
    return {
        path[:-1]: path
        for path in paths
        if path[-1:] == (_BOXED,) and len(path) > 1 and children[path[:-1]] == {_BOXED}
    }


def summarise(paths: Iterable[Path], others: Iterable[Path]) -> tuple[str, ...]:
    """What nodes hold all of `paths` and none of `others`, with the number of arrays in each."""
    taken = {other[:end] for other in others for end in range(len(other) + 1)}
    counts: dict[Path, int] = {}
    for path in paths:
        ends = (end for end in range(1, len(path)) if path[:end] not in taken)
        node = path[: next(ends, len(path))]
        counts[node] = counts.get(node, 0) + 1
    return tuple(
        dotted(node) if count == 1 else f"{dotted(node)}: {count} arrays"
        for node, count in counts.items()
    )
