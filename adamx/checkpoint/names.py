"""The names of variables: their parts, their roles, and which names mean the same."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError

__all__ = [
    "is_transpose",
    "match_names",
    "read_role",
    "spell_order",
    "split_name",
    "split_names",
    "unwrap_names",
]

_TRANSPOSED = {"kernel", "weight"}
# What torch.compile, FSDP and activation checkpointing insert between the parts of a name.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def split_name(name: str) -> tuple[str, ...]:
    """The parts of a name, without the key `value` under which Flax NNX keeps an array.

    adamx names leaves without it (`base/trees.py`); other programs' files have it.
    """
    parts = name.replace(".", "/").split("/")
    return tuple(parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts)


def split_names(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Map names to their parts; an error if two have the same parts, as `a.b` and `a/b` do."""
    split = {name: split_name(name) for name in names}
    if len(set(split.values())) != len(split):
        counts = Counter(split.values())
        twice = [name for name, parts in split.items() if counts[parts] > 1]
        raise CheckpointError(
            where=listed(twice), expected="names that differ in more than . and /"
        )
    return split


def spell_order(order: Any, paths: Collection[str], names: Collection[str] = ()) -> Any:
    """`order` with its paths and names spelled as in `paths` and `names`, where these have them."""
    if isinstance(order, Mapping):
        return {_spell(name, names): _spell(path, paths) for name, path in order.items()}
    if isinstance(order, Sequence) and not isinstance(order, str):
        return [_spell(path, paths) for path in order]
    return order


def _spell(name: Any, known: Collection[str]) -> Any:
    """The one of `known` that means the same, as `a/b` and `a.b/value` do; or else `name`."""
    if name in known or not isinstance(name, str):
        return name
    same = {other for other in known if split_name(other) == split_name(name)}
    return same.pop() if len(same) == 1 else name


def read_role(name: str) -> str:
    """What a layer calls the array: `kernel`, `bias`, `weight`, ..."""
    return split_name(name)[-1]


def is_transpose(name: str, other: str, shape: Sequence[int]) -> bool:
    """Whether one is called `kernel` (Keras, Flax) and the other `weight` (torch): a transpose."""
    return {read_role(name), read_role(other)} == _TRANSPOSED and len(shape) >= 2


def match_names(
    found: Collection[str],
    required: Collection[str],
    wanted: Collection[str],
    others: Collection[str] = (),
) -> dict[str, str]:
    """Map names to paths that are equal, or equal without what all names or paths begin with.

    Args:
      found: the names.
      required: those of them that must have a path.
      wanted: the paths.
      others: names in the file that are not to be matched. A path equal to one belongs to it.
    """
    names, paths = split_names(found), split_names(wanted)
    known = [*names.values(), *split_names(others).values()]

    def match(name_prefix: int, path_prefix: int) -> dict[str, str]:
        at = {parts[path_prefix:]: path for path, parts in paths.items()}
        return {
            name: at[parts[name_prefix:]]
            for name, parts in names.items()
            if parts[name_prefix:] in at
        }

    name_prefix, path_prefix = _count_common(known), _count_common(list(paths.values()))
    exact = set(known) & set(paths.values())
    for prefixes in ((0, path_prefix), (name_prefix, 0), (name_prefix, path_prefix)):
        matched = match(*prefixes)
        covers = set(matched.values()) == set(wanted) and matched.keys() >= set(required)
        if covers and not exact:
            return matched
    return match(0, 0)


def _count_common(names: Sequence[tuple[str, ...]]) -> int:
    """How many leading parts all names share, not counting the last part of any."""
    if len(names) < 2:
        return 0
    count = 0
    for parts in zip(*(name[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return count


def unwrap_names(names: Sequence[str]) -> list[str]:
    """The names of torch's parameters without what wrappers of the model put into them.

    DistributedDataParallel puts `module.` before all of them, so a part of that name is kept where
    not all names begin with it.
    """
    parts = [[part for part in name.split(".") if part not in _WRAPPERS] for name in names]
    while parts and all(len(own) > 1 and own[0] == "module" for own in parts):
        parts = [own[1:] for own in parts]
    return [".".join(own) for own in parts]
