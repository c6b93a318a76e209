"""Find the states of Adam in a tree of names, and choose which of them to read."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._array_trees import ArrayTree
from adamx.checkpoint.formats._tree_paths import Path, dotted
from adamx.checkpoint.trees import MOMENTS

__all__ = ["AdamNode", "choose_adams", "find_adams"]

_OWN = {"count", *MOMENTS}
# Fields of Optax's wrappers that hold the state of another transformation.
_WRAPPERS = {"base_optimizer_state", "fast_state", "inner_opt_state", "inner_state"}
_PARTS = "inner_states"  # of optax.partition: a state for each label
_RESTORE_CODES = (
    "restore the state with the library that saved it, into one of moments in 8 bits; "
    "adamx.checkpoint.Checkpoint.from_state converts that"
)
_MOST = 64  # states of Adam in one file


class AdamNode(NamedTuple):
    """A node with the fields of Adam.

    Attributes:
      node: its path.
      root: of the whole optimizer's state.
      moments: by field and path of the parameter, the path in the file.
    """

    node: Path
    root: Path
    moments: Mapping[str, Mapping[Path, Path]]

    @property
    def names(self) -> list[Path]:
        """The parameters' paths."""
        return list(self.moments["mu"])

    @property
    def is_part(self) -> bool:
        """Whether it may hold some of the parameters only."""
        return not {"inner_state", _PARTS}.isdisjoint(self.node[len(self.root) :])


def find_adams(tree: ArrayTree) -> list[AdamNode]:
    """All nodes with the fields of Adam and no others."""
    found: list[AdamNode] = []
    for node, fields in tree.children.items():
        if len(found) > _MOST:
            raise CheckpointError(f"more than {_MOST} states with the fields of Adam")
        if not {"count", "mu", "nu"} <= fields <= _OWN or tree.at((*node, "count")) is None:
            continue
        if any(node[: len(other.node)] == other.node for other in found):
            continue  # parameters that are called so
        moments = {field: tree.below((*node, field)) for field in MOMENTS}
        found.append(AdamNode(node, _find_root(node), moments))
    return found


def _find_root(node: Path) -> Path:
    """The path of the optimizer's state, without the chains and wrappers within it."""
    end = len(node)
    while end:
        if end > 1 and node[end - 2] == _PARTS:
            end -= 2
        elif node[end - 1].isdecimal() or node[end - 1] in _WRAPPERS:
            end -= 1
        else:
            break
    return node[:end]


def choose_adams(adams: Sequence[AdamNode], tree: ArrayTree, key: str | None) -> list[AdamNode]:
    """The one Adam, or the parts of one, that are to be read.

    Args:
      adams: all of them.
      tree: the file's arrays.
      key: the dotted key of the one, or of something that holds it; None if there is only one.
    """
    chosen = [adam for adam in adams if key is None or _is_within(dotted(adam.node), key)]
    if not adams:
        raise _refuse(tree)
    if not chosen:
        raise CheckpointError(
            where="optimizer",
            expected=f"one of {listed(dotted(adam.node) for adam in adams)}",
            found=key or "nothing",
            argument="optimizer",
        )
    roots = dict.fromkeys(adam.root for adam in chosen)
    names = [name for adam in chosen for name in adam.names]
    are_parts = all(adam.is_part for adam in chosen) and len(set(names)) == len(names)
    if len(roots) > 1 or (len(chosen) > 1 and not are_parts):
        places = roots if len(roots) > 1 else [adam.node for adam in chosen]
        raise CheckpointError(
            where="optimizer",
            expected="the state of one Adam",
            found=f"{len(places)}: {listed(map(dotted, places))}",
            remedy="choose one with optimizer=, by its key",
            argument="optimizer",
            choices=map(dotted, places),
        )
    for adam in chosen:
        _check_kind(adam, tree)
    if len({bool(adam.moments["nu_max"]) for adam in chosen}) > 1:
        raise CheckpointError(
            where=listed(dotted(adam.node) for adam in chosen),
            expected="AMSGrad in all parts or in none",
            remedy="choose one part with optimizer=",
            argument="optimizer",
        )
    return chosen


def _is_within(place: str, key: str) -> bool:
    return place == key or place.startswith(f"{key}.")


def _refuse(tree: ArrayTree) -> CheckpointError:
    """The error for a file without Adam, with what it has instead."""
    others = [
        f"{dotted(node)} ({', '.join(sorted(fields))})"
        for node, fields in tree.children.items()
        if "trace" in fields or ("count" in fields and len(fields) > 1)
    ]
    return CheckpointError(
        expected="the state of Adam: count, mu and nu in one node",
        found=listed(others)
        or f"none among {listed(map(dotted, tree.leaves), most=6) or 'nothing'}",
    )


def _check_kind(adam: AdamNode, tree: ArrayTree) -> None:
    """Raise for moments that are no floating-point numbers, or have one number for each array."""
    for paths in adam.moments.values():
        for path in paths.values():
            if not jnp.issubdtype(dtype := tree.leaves[path].dtype, np.inexact):
                is_coded = path[-1:] == ("codes",) and dtype.itemsize == 1
                raise CheckpointError(
                    where=dotted(path),
                    expected="floating-point numbers",
                    found=f"{dtype}{', of moments in 8 bits' * is_coded}",
                    remedy=_RESTORE_CODES if is_coded else "",
                )
    nu = [tree.leaves[path].shape for path in adam.moments["nu"].values()]
    mu = [tree.leaves[path].shape for path in adam.moments["mu"].values()]
    if nu != mu and not any(nu):
        raise CheckpointError(
            where=dotted(adam.node),
            expected="the state of Adam",
            found="a second moment with one number for each array, as in novograd",
        )
