"""What `torch.distributed.checkpoint` saved, as a tree: tensors are read once they are chosen."""

import math
import reprlib
from typing import Any

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._dcp_metadata import Described
from adamx.checkpoint.formats._dcp_segments import Store
from adamx.checkpoint.untrusted.stand_ins import Global
from adamx.checkpoint.untrusted.torch_tensors import TensorStandIn

__all__ = ["build_tree", "fill", "find_value"]

_STATE, _GROUPS = "state", "param_groups"
_FUNCTION = Global("torch.distributed.checkpoint", "tensor")

_Path = tuple[str | int, ...]


class _Unread(TensorStandIn):
    """Stands for a tensor that is in the files under `entry`."""

    __slots__ = ("entry",)

    def __init__(self, entry: str, shape: tuple[int, ...], dtype: Global) -> None:
        super().__init__(_FUNCTION, (), "not read", shape, dtype)
        self.entry = entry


def build_tree(described: Described, store: Store, optimizer: str | None) -> Any:
    """The tree with the values of optimizers, but without tensors.

    Args:
      described: what there is.
      store: where values are.
      optimizer: the dotted key of the only optimizer that is looked at; None for all.
    """
    optimizers = {
        prefix
        for path in described.paths.values()
        if (prefix := _find_optimizer(path)) is not None
        and optimizer in (None, ".".join(map(str, prefix)))
    }
    root: dict[Any, Any] = {}
    for name, path in described.paths.items():
        entry = described.entries[name]
        if entry.dtype is not None:
            value: Any = _Unread(name, entry.shape, entry.dtype)
        else:
            is_needed = any(_is_of(path, prefix) for prefix in optimizers)
            value = store.read_value(name, entry) if is_needed else None
        _put(root, path, name, value)
    return _with_lists(root, ())


def fill(
    node: Any, described: Described, store: Store, *, within: bool, single: bool = False
) -> None:
    """Read the tensors of a part of the tree; of dictionaries `within` it, too.

    With `single` only those of one element, such as rates and steps.
    """
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs):
        if isinstance(value, _Unread):
            if single and math.prod(value.shape) != 1:
                continue
            node[key] = store.read_tensor(value.entry, described.entries[value.entry])
        elif within and isinstance(value, dict | list):
            fill(value, described, store, within=True, single=single)


def find_value(tree: Any, path: _Path) -> Any:
    """The value at a path of the tree, whose keys may have become numbers."""
    node = tree
    for key in path:
        is_list = isinstance(node, list | tuple)
        node = node[key if is_list or key in node else int(key)]
    return node


def _find_optimizer(path: _Path) -> _Path | None:
    """The path of the optimizer of which this is a part of the groups; None if of none."""
    if _GROUPS in path[:-1]:
        return path[: path.index(_GROUPS)]
    # A flat optimizer has its groups by the parameters' names, in one level.
    return path[:-1] if str(path[-1]).startswith(f"{_GROUPS}.") else None


def _is_of(path: _Path, optimizer: _Path) -> bool:
    """Whether it is a part of the state or of the groups of an optimizer."""
    depth = len(optimizer)
    if path[:depth] != optimizer or len(path) <= depth:
        return False
    return str(path[depth]).partition(".")[0] in (_STATE, _GROUPS)


def _put(root: dict[Any, Any], path: _Path, name: str, value: Any) -> None:
    node = root
    for key in path[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise CheckpointError(
                where=name, expected="a unique path", found=f"{reprlib.repr(path):.200}"
            )
    if path[-1] in node:
        raise CheckpointError(
            where=name, expected="a unique path", found=f"{reprlib.repr(path):.200}"
        )
    node[path[-1]] = value


def _with_lists(node: Any, path: _Path) -> Any:
    """The same with lists, and with numbers as keys where torch wrote the positions as texts."""
    if not isinstance(node, dict):
        return node
    made = {key: _with_lists(value, (*path, key)) for key, value in node.items()}
    if made and all(isinstance(key, int) for key in made):
        if set(made) != set(range(len(made))):
            raise CheckpointError(
                where=".".join(map(str, path)),
                expected=f"{len(made)} elements of a list",
                found=f"elements at {sorted(made)[:10]}",
            )
        return [made[index] for index in range(len(made))]
    groups, state = made.get(_GROUPS), made.get(_STATE)
    if isinstance(groups, list) and isinstance(state, dict) and _has_positions(groups):
        # The keys of dictionaries became texts; the parameters of groups remained numbers.
        made[_STATE] = {int(k) if k.isdecimal() else k: value for k, value in state.items()}
    return made


def _has_positions(groups: list[Any]) -> bool:
    params = [group.get("params") for group in groups if isinstance(group, dict)]
    return any(isinstance(p, int) for held in params if isinstance(held, list) for p in held)
