"""Trees of arrays: the names of their leaves, and how two of them differ in structure."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.tree_util import KeyPath, tree_flatten_with_path, tree_leaves_with_path

from adamx.base.jax_seam import is_traced

__all__ = [
    "describe_difference",
    "expand_nones",
    "flatten_with_path",
    "is_box",
    "is_none",
    "leaf_name",
    "listed",
    "path_name",
    "put_like",
    "split_list",
]


def is_none(x: object) -> bool:
    """Whether `x` is None: a leaf that Optax and Equinox leave out."""
    return x is None


# Base classes of Flax's boxes, by name, since adamx works without Flax: NNX's variables, and
# linen's metadata of axes, such as `nn.Partitioned`.
_BOXES = frozenset({"AxisMetadata", "Variable", "VariableState"})


def is_box(node: object) -> bool:
    """Whether `node` is one of Flax's boxes, which hold an array and its metadata."""
    return _is_box_class(type(node))


@functools.cache
def _is_box_class(kind: type) -> bool:
    return any(c.__name__ in _BOXES and c.__module__.startswith("flax.") for c in kind.__mro__)


def flatten_with_path(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[KeyPath, Any]], Any]:
    """The leaves of `tree` with their paths, and its structure.

    Like JAX's `tree_flatten_with_path`, but a leaf in one of Flax's boxes has the path of the box:
    it is `kernel`, as in a tree without boxes, and not `kernel/value`.
    """
    nodes, boxed = tree_flatten_with_path(
        tree, is_leaf=lambda x: is_box(x) or (is_leaf is not None and is_leaf(x))
    )
    if not any(is_box(node) for _, node in nodes):
        return nodes, boxed
    keyed = []
    for path, node in nodes:
        within = tree_leaves_with_path(node, is_leaf=is_leaf)
        # The first key in a box is the box's own: `value`.
        keyed += [((*path, *rest[1:]), leaf) for rest, leaf in within]
    return keyed, jax.tree.structure(tree, is_leaf=is_leaf)


def path_name(path: KeyPath) -> str:
    """`dense/kernel` for the leaf under the keys "dense" and "kernel".

    The path is one of `flatten_with_path`, by which all leaves are named.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_name(path: KeyPath) -> str:
    """`path_name`, or words for the path of a tree that is one leaf."""
    return path_name(path) or "the only leaf of the tree"


def listed(names: Iterable[str], most: int = 10) -> str:
    """The names, separated by commas; beyond the first `most`, only the number of the others."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def describe_difference(found: Any, expected: Any) -> str:
    """The leaves that are missing in `found` and those that are unexpected there, in words.

    Where the names of the leaves are the same, the structures themselves.
    """
    named: list[dict[str, Any]] = [
        {leaf_name(path): leaf for path, leaf in flatten_with_path(tree)[0]}
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
    """Split `values` into consecutive lists of the lengths `counts`."""
    rest = iter(values)
    return [[next(rest) for _ in range(count)] for count in counts]


def expand_nones(tree: Any, like: Any) -> Any:
    """`tree`, with each None that stands for a subtree of `like` expanded to one for each leaf."""
    return jax.tree.map(
        lambda x, part: jax.tree.map(lambda _: None, part) if x is None else x,
        tree,
        like,
        is_leaf=is_none,
    )


def put_like(old: Any, new: jax.Array) -> Any:
    """The array `new`, on the devices of the leaf `old` that it replaces, if that is placed."""
    is_placed = isinstance(old, jax.Array) and not is_traced(old) and old.committed
    return jax.device_put(new, old.sharding) if is_placed else new
