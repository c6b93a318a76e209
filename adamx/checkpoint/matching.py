"""Which variable of a file is which of a tree: by order, by name, or by shapes without a doubt."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError

__all__ = [
    "Shape",
    "assign",
    "by_name",
    "check_order",
    "check_pairs",
    "precision_problems",
    "role",
    "transposes",
]

Shape = tuple[int, ...]

_TRANSPOSED = {"kernel", "weight"}


def transposes(name: str, other: str, shape: Shape) -> bool:
    """Whether one is called `kernel` (Keras, Flax) and the other `weight` (torch): a transpose."""
    ends = {role(name), role(other)}
    return ends == _TRANSPOSED and len(shape) >= 2


def check_order(order: object, lengths: Collection[int], of: str) -> list[str]:
    """`order` as a list of paths, none twice, as many as one of `lengths`."""
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise TypeError(f"order: expected a list of paths, found {type(order).__name__}")
    paths = list(order)
    for path in paths:
        if not isinstance(path, str):
            raise TypeError(f"order: expected paths such as 'hidden/kernel', found {path!r}")
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise CheckpointError(f"order: expected every path once, found {listed(twice)} twice")
    if len(paths) not in lengths:
        counts = " or ".join(map(str, sorted(set(lengths))))
        raise CheckpointError(f"order: expected {counts} paths, one for {of}; found {len(paths)}")
    return paths


def check_pairs(order: Mapping[str, str], known: Collection[str]) -> None:
    """Raise unless `order` is of names in a file, which are `known`, to paths."""
    for name, path in order.items():
        if not isinstance(name, str) or not isinstance(path, str):
            raise TypeError(f"order: expected names and paths, found {name!r}: {path!r}")
    if unknown := [name for name in order if name not in known]:
        raise CheckpointError(
            f"order: {listed(unknown)}: not in the file, which has {listed(known, most=1000)}"
        )


def assign(
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    *,
    order: Mapping[str, str] | None,
    shape_at: Callable[[str, str], Shape],
    optional: Collection[str] = (),
    known: Mapping[str, str] | None = None,
    fault: Callable[[str, str], str | None] | None = None,
    sides: tuple[str, str] = ("file", "tree"),
    named: bool = True,
) -> dict[str, str]:
    """By path of the tree, the name of the file's variable that belongs there.

    Args:
      found: the file's variables and their shapes, in the file's order.
      wanted: the tree's paths and their shapes.
      order: by name of a variable its path, where the user has said so.
      shape_at: the shape of a variable, by name and path, as it would be put in there.
      optional: names that need not be in the tree.
      known: by name, what is wrong with a variable that is not among those found.
      fault: by name and path, what else is wrong with putting one there, if anything is.
      sides: what the two are called in an error.
      named: whether the names are more than numbers in an order.

    Raises:
      CheckpointError: neither names nor shapes settle it; or entries are missing, extra or
        misshapen: all of them.
    """
    source, target = sides
    required = {name: shape for name, shape in found.items() if name not in optional}
    if order is None:
        order = by_name(found, required, wanted, known or ()) if named else {}
    # Where the file speaks of the tree's paths, shapes are not asked to say something else.
    all_names = {*_split(found).values(), *_split(known or ()).values()}
    silent = not named or all_names.isdisjoint(_split(wanted).values())
    if not order and found and wanted and silent:
        fitting = required if len(required) == len(wanted) else found
        order = _by_shape(fitting, wanted, shape_at, sides)
    pairs = [(name, path) for name, path in order.items() if name in found and path in wanted]
    names = {path: name for name, path in pairs}
    absent = {tuple(_parts(name)): what for name, what in (known or {}).items()}
    problems = [
        f"{path}: {absent.get(tuple(_parts(path))) or f'not in the {source}'}"
        for path in wanted
        if path not in names
    ]
    for name, path in pairs:
        if names[path] != name:
            problems.append(f"{path}: expected one variable, found both {name} and {names[path]}")
    for name in found:
        if order.get(name) not in wanted and name not in optional:
            called = f" (as {order[name]})" if order.get(name, name) != name else ""
            problems.append(f"{name}: in the {source}{called}, but not in the {target}")
    for path, name in names.items():
        shape = shape_at(name, path)
        if fault is not None and (told := fault(name, path)):
            problems.append(f"{path}: {told}")
        elif shape != wanted[path]:
            also = "" if shape == found[name] else f", {found[name]} in the {source}"
            problems.append(f"{path}: expected shape {wanted[path]}, found {shape}{also}")
    if problems:
        message = "\n  ".join([f"the {source}'s variables do not fit the {target}:", *problems])
        if any("not in the" in problem for problem in problems):
            message += f"\nThe {source} has, in its order: {listed(found, most=1000)}"
            message += f"\nThe {target} has: {listed(wanted, most=1000)}"
            message += f"\nWhere names differ, {_advice(sides)}"
        raise CheckpointError(message)
    return names


def by_name(
    found: Collection[str],
    required: Collection[str],
    wanted: Collection[str],
    others: Collection[str] = (),
) -> dict[str, str]:
    """By name the path that is equal, or equal without what all names and all paths begin with.

    `others` are names in the file that are not to be matched. A name that is one of them means it.
    """
    names, paths = _split(found), _split(wanted)
    known = [*names.values(), *_split(others).values()]

    def match(name_prefix: int, path_prefix: int) -> dict[str, str]:
        at = {parts[path_prefix:]: path for path, parts in paths.items()}
        return {
            name: at[parts[name_prefix:]]
            for name, parts in names.items()
            if parts[name_prefix:] in at
        }

    name_prefix, path_prefix = _common(known), _common(list(paths.values()))
    exact = set(known) & set(paths.values())
    for prefixes in ((0, path_prefix), (name_prefix, 0), (name_prefix, path_prefix)):
        matched = match(*prefixes)
        covers = set(matched.values()) == set(wanted) and matched.keys() >= set(required)
        if covers and not exact:
            return matched
    return match(0, 0)


def _split(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """By name its parts; an error where two names have the same, `a.b` and `a/b`."""
    split = {name: tuple(_parts(name)) for name in names}
    if len(set(split.values())) != len(split):
        counts = Counter(split.values())
        twice = [name for name, parts in split.items() if counts[parts] > 1]
        raise CheckpointError(f"{listed(twice)}: expected names that differ in more than . and /")
    return split


def _parts(name: str) -> list[str]:
    """The parts of a name, without the `value` under which Flax NNX has an array of its states."""
    parts = name.replace(".", "/").split("/")
    return parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts


def role(name: str) -> str:
    """What a layer calls the array: `kernel`, `bias`, `weight`, ..."""
    return _parts(name)[-1]


def _common(names: Sequence[tuple[str, ...]]) -> int:
    """How many first parts all names share, short of the whole of any."""
    if len(names) < 2:
        return 0
    count = 0
    for parts in zip(*(name[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return count


def _by_shape(
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    shape_at: Callable[[str, str], Shape],
    sides: tuple[str, str],
) -> dict[str, str]:
    """By name the path of the same shape, if there is only one way to assign all; {} if none.

    There is only one if and only if this never comes to a halt: take a variable that fits in one
    place only, or a place that only one variable fits, and go on without both.
    """
    fits = {n: {p for p in wanted if shape_at(n, p) == wanted[p]} for n in found}
    takers = {p: {n for n in found if p in fits[n]} for p in wanted}
    if len(found) != len(wanted) or not all(fits.values()) or not all(takers.values()):
        return {}
    order: dict[str, str] = {}
    while fits:
        pair = next(((n, *ps) for n, ps in fits.items() if len(ps) == 1), None)
        if pair is None:
            raise CheckpointError(_ambiguous(found, wanted, sides))
        name, path = pair
        order[name] = path
        del fits[name]
        for other in takers.pop(path) - {name}:
            if other in fits:
                fits[other].discard(path)
                if not fits[other]:
                    return {}
    return order


def _advice(sides: tuple[str, str]) -> str:
    source, target = sides
    names = "paths" if target == "tree" else "names"
    keys, values = (target, source) if target == "other file" else (source, target)
    return (
        f"give order=[the {target}'s {names} in the {source}'s order], or a mapping from the names "
        f"in the {keys} to those in the {values}"
    )


def _ambiguous(
    found: Mapping[str, Shape], wanted: Mapping[str, Shape], sides: tuple[str, str]
) -> str:
    source, target = sides

    def table(entries: Mapping[str, Shape]) -> str:
        return "".join(f"\n  {name} {shape}" for name, shape in entries.items())

    return (
        f"the names in the {source} are not those of the {target}, and more than one assignment "
        f"has the right shapes. The {source} has, in its order:{table(found)}\n"
        f"The {target} has:{table(wanted)}\nSo {_advice(sides)}"
    )


def precision_problems(key: str, array: np.ndarray, dtype: np.typing.DTypeLike) -> list[str]:
    """What is lost when `array` becomes `dtype`: nothing, or one line."""
    narrow = np.dtype(dtype)
    if array.dtype == narrow or np.can_cast(array.dtype, narrow, "safe"):
        return []
    with np.errstate(all="ignore"):
        same = np.array_equal(array.astype(narrow).astype(array.dtype), array, equal_nan=True)
    if same:
        return []
    return [
        f"{key}: expected values that {narrow} can hold, as there, found {array.dtype}; use "
        f"{array.dtype} there, or round the checkpoint's arrays first (dataclasses.replace)"
    ]
