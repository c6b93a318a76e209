"""Trees of arrays: the names of their leaves, and how two of them differ in structure."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

__all__ = [
    "describe_difference",
    "expand_nones",
    "is_none",
    "leaf_name",
    "listed",
    "path_name",
    "split_list",
]


def is_none(x: object) -> bool:
    """Whether `x` is None: a leaf that Optax and Equinox leave out."""
    return x is None


def path_name(path: jax.tree_util.KeyPath) -> str:
    """`dense/kernel` for the leaf under the keys "dense" and "kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_name(path: jax.tree_util.KeyPath) -> str:
    """`path_name`, or words for the path of a tree that is one leaf."""
    return path_name(path) or "the only leaf of the tree"


def listed(names: Iterable[str], most: int = 10) -> str:
    """The names with commas between them; the first few of many."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def describe_difference(found: Any, expected: Any) -> str:
    """The leaves that are missing in `found` and those that are unexpected there, in words.

    Where the names of the leaves are the same, the structures themselves.
    """
    named: list[dict[str, Any]] = [
        {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (found, expected)
    ]
    missing = sorted(named[1].keys() - named[0].keys())
    unexpected = sorted(named[0].keys() - named[1].keys())
    parts = [f"missing: {listed(missing)}"] if missing else []
    parts += [f"unexpected: {listed(unexpected)}"] if unexpected else []
    if not parts:
        parts = [f"expected {jax.tree.structure(expected)}, found {jax.tree.structure(found)}"]
    return "; ".join(parts)


def split_list(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Lists of so many values each, one after the other."""
    rest = iter(values)
    return [[next(rest) for _ in range(count)] for count in counts]


def expand_nones(tree: Any, like: Any) -> Any:
    """`tree` with None for every leaf where it has one for a whole subtree of `like`."""
    return jax.tree.map(
        lambda x, part: jax.tree.map(lambda _: None, part) if x is None else x,
        tree,
        like,
        is_leaf=is_none,
    )
