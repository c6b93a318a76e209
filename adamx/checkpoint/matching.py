"""Match the variables of a file and of a tree: by order, by name, or by unambiguous shapes."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from adamx.base.errors import AdamxError, InvalidType
from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.names import match_names, split_name, split_names

__all__ = ["Order", "Shape", "apply_order", "assign", "check_order", "check_pairs", "check_paths"]

Order = Sequence[str] | Mapping[str, str]
Shape = tuple[int, ...]

_MOST_LINES = 1_000  # of a table in an error
_MOST_REFUSALS = 5


def check_order(order: object, lengths: Collection[int], of: str) -> list[str]:
    """`order` as a list of distinct paths, whose length is one of `lengths`."""
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise InvalidType(where="order", expected="a list of paths", found=type(order).__name__)
    paths = list(order)
    for path in paths:
        if not isinstance(path, str):
            raise InvalidType(
                where="order", expected="paths such as 'hidden/kernel'", found=repr(path)
            )
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise CheckpointError(
            where="order",
            expected="every path once",
            found=f"{listed(twice)} twice",
            argument="order",
        )
    if len(paths) not in lengths:
        counts = " or ".join(map(str, sorted(set(lengths))))
        raise CheckpointError(
            f"expected {counts} paths, one for {of}; found {len(paths)}",
            where="order",
            argument="order",
        )
    return paths


def check_paths(order: object, paths: Collection[str], of: str = "leaf of params") -> list[str]:
    """`order` as a list of all `paths`, each of which is one `of` something."""
    ordered = check_order(order, [len(paths)], f"each {of}")
    if unknown := sorted(set(ordered) - set(paths)):
        raise CheckpointError(
            f"{listed(unknown)}: not a {of}; expected all of {listed(paths, most=1000)}",
            where="order",
            argument="order",
        )
    return ordered


def apply_order(
    order: object, names: Sequence[str], mu: Collection[str], of: Collection[str]
) -> dict[str, str]:
    """Map each name to the path that `order` gives it: in the order of `names`, or of `of`.

    Names without moments (those not in `mu`) may be left out.
    """
    trained = [name for name in names if name in mu]
    choices = [list(names), trained]
    choices.insert(2 if all(name in of for name in trained) else 0, list(of))
    paths = check_order(order, [len(choice) for choice in choices], "each variable")
    chosen = next(choice for choice in choices if len(choice) == len(paths))
    return dict(zip(chosen, paths, strict=True))


def check_pairs(order: Mapping[str, str], known: Collection[str]) -> None:
    """Raise unless `order` maps names in the file, which are `known`, to paths."""
    for name, path in order.items():
        if not isinstance(name, str) or not isinstance(path, str):
            raise InvalidType(
                where="order", expected="names and paths", found=f"{name!r}: {path!r}"
            )
    if unknown := [name for name in order if name not in known]:
        raise CheckpointError(
            f"{listed(unknown)}: not in the file, which has {listed(known, most=1000)}",
            where="order",
            argument="order",
        )


def assign(
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    *,
    order: Mapping[str, str] | None,
    shape_at: Callable[[str, str], Shape],
    optional: Collection[str] = (),
    known: Mapping[str, str] | None = None,
    find_fault: Callable[[str, str], str | None] | None = None,
    sides: tuple[str, str] = ("the file", "the tree"),
    named: bool = True,
) -> dict[str, str]:
    """Map each path of the tree to the name of the file's variable that belongs there.

    Args:
      found: the file's variables and their shapes, in the file's order.
      wanted: the tree's paths and their shapes.
      order: the paths that the user gave, by name of the variable.
      shape_at: given a name and a path, the shape that the variable would have there. Where only
        shapes decide, it is called only for pairs with the same number of entries, and an
        error there means that the two do not belong together.
      optional: names that need not be in the tree.
      known: by name, what is wrong with a variable that is not among those found.
      find_fault: by name and path, what else is wrong with putting one there, if anything is.
      sides: what the two are called in an error.
      named: whether the names are more than numbers in an order.

    Raises:
      CheckpointError: neither names nor shapes settle it; or entries are missing, extra or
        misshapen: all of them. Or that of `shape_at` for a pair which names or `order` settle.
    """
    required = {name: shape for name, shape in found.items() if name not in optional}
    if order is None:
        order = match_names(found, required, wanted, known or ()) if named else {}
    # If any name matches, never match by shape.
    all_names = {*split_names(found).values(), *split_names(known or ()).values()}
    silent = not named or all_names.isdisjoint(split_names(wanted).values())
    refusals: list[str] = []
    if not order and found and wanted and silent:
        fitting = required if len(required) == len(wanted) else found
        order = _match_shapes(fitting, wanted, shape_at, sides, refusals)
    pairs = [(name, path) for name, path in order.items() if name in found and path in wanted]
    names = {path: name for name, path in pairs}
    source, target = sides
    absent = {split_name(name): what for name, what in (known or {}).items()}
    missing = [path for path in wanted if path not in names]
    unknown = [path for path in missing if split_name(path) not in absent]
    extra = [name for name in found if order.get(name) not in wanted and name not in optional]
    faults = {
        path: absent.get(split_name(path)) or f"not in {source}, shape {wanted[path]}"
        for path in missing
    }
    for path, name in names.items():
        if others := [other for other, its in pairs if its == path and other != name]:
            faults[path] = f"expected one variable, found {listed(others)} and {name}"
            continue
        shape = shape_at(name, path)
        if find_fault is not None and (fault := find_fault(name, path)):
            faults[path] = fault
        elif shape != wanted[path]:
            also = "" if shape == found[name] else f", {found[name]} in {source}"
            faults[path] = f"expected shape {wanted[path]}, found {shape}{also}"
    extras = {}
    for name in extra:
        called = f" (as {order[name]})" if order.get(name, name) != name else ""
        extras[name] = f"in {source}{called}, but not in {target}, shape {found[name]}"
    if faults or extras:
        message = f"the variables of {source} do not fit {target}:"
        if unknown or extra:
            message += f"\n{_capitalise(source)} has, in its order:{_table(found, extras)}"
            message += f"\n{_capitalise(target)} has:{_table(wanted, faults)}"
            if refusals:
                message += f"\nMatching by shape failed too:{''.join(refusals[:_MOST_REFUSALS])}"
            message += f"\nIf only the names differ, {_advise(sides)}"
        else:
            message += "".join(f"\n  {path}: {fault}" for path, fault in faults.items())
        raise CheckpointError(message, argument="order" if unknown or extra else None)
    return names


def _match_shapes(
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    shape_at: Callable[[str, str], Shape],
    sides: tuple[str, str],
    refusals: list[str],
) -> dict[str, str]:
    """Map each name to a path of the same shape, if there is only one way to do so; {} if none.

    There is only one if and only if this never gets stuck: take a variable that fits only one
    path, or a path that only one variable fits, and continue without both. `refusals` gets a line
    for each pair for which `shape_at` raised an error.
    """

    def fits_at(name: str, path: str) -> bool:
        if math.prod(found[name]) != math.prod(wanted[path]):
            return False
        try:
            return shape_at(name, path) == wanted[path]
        except AdamxError as error:  # a layout knows what belongs together, and refuses the rest
            refusals.append(f"\n  {name} to {error}")
            return False

    fits = {n: {p for p in wanted if fits_at(n, p)} for n in found}
    takers = {p: {n for n in found if p in fits[n]} for p in wanted}
    if len(found) != len(wanted) or not all(fits.values()) or not all(takers.values()):
        return {}
    order: dict[str, str] = {}
    while fits:
        pair = next(((n, *ps) for n, ps in fits.items() if len(ps) == 1), None)
        if pair is None:
            raise CheckpointError(_describe_ambiguity(found, wanted, sides), argument="order")
        name, path = pair
        order[name] = path
        del fits[name]
        for other in takers.pop(path) - {name}:
            if other in fits:
                fits[other].discard(path)
                if not fits[other]:
                    return {}
    return order


def _advise(sides: tuple[str, str]) -> str:
    source, target = sides
    is_tree = target == "the tree"
    keys, values = sides if is_tree else (target, source)
    return (
        f"pass order=[{target}'s {'paths' if is_tree else 'names'} in {source}'s order], or a "
        f"mapping from the names in {keys} to those in {values}"
    )


def _describe_ambiguity(
    found: Mapping[str, Shape], wanted: Mapping[str, Shape], sides: tuple[str, str]
) -> str:
    source, target = sides
    return (
        f"the names in {source} are not those of {target}, and more than one assignment fits the "
        f"shapes. {_capitalise(source)} has, in its order:{_table(found, {})}\n"
        f"{_capitalise(target)} has:{_table(wanted, {})}\nTo assign them, {_advise(sides)}"
    )


def _table(entries: Mapping[str, Shape], faults: Mapping[str, str]) -> str:
    """A line for each entry: its fault if it has one, else its shape."""
    lines = [f"{n}: {faults[n]}" if n in faults else f"{n} {entries[n]}" for n in entries]
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return "".join(f"\n  {line}" for line in [*lines[:_MOST_LINES], *more])


def _capitalise(side: str) -> str:
    return side[0].upper() + side[1:]
