"""Which variable of a file is which of a tree: by order, by name, or by shapes without a doubt."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from adamx.base.errors import InvalidType
from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.names import match_names, split_name, split_names

__all__ = ["Order", "Shape", "apply_order", "assign", "check_order", "check_pairs", "check_paths"]

Order = Sequence[str] | Mapping[str, str]
Shape = tuple[int, ...]


def check_order(order: object, lengths: Collection[int], of: str) -> list[str]:
    """`order` as a list of paths, none twice, as many as one of `lengths`."""
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


def check_paths(order: object, paths: Collection[str]) -> list[str]:
    """`order` as a list of all `paths` of a tree."""
    ordered = check_order(order, [len(paths)], "each leaf of params")
    if unknown := sorted(set(ordered) - set(paths)):
        raise CheckpointError(
            f"{listed(unknown)}: not among the paths of params, which are "
            f"{listed(paths, most=1000)}",
            where="order",
            argument="order",
        )
    return ordered


def apply_order(
    order: object, names: Sequence[str], mu: Collection[str], of: Collection[str]
) -> dict[str, str]:
    """By name the path that `order` gives it: in the order of `names`, or in that of `of`.

    Of `names`, those without moments (`mu`) may be left out.
    """
    trained = [name for name in names if name in mu]
    choices = [list(names), trained]
    choices.insert(2 if all(name in of for name in trained) else 0, list(of))
    paths = check_order(order, [len(choice) for choice in choices], "each variable")
    chosen = next(choice for choice in choices if len(choice) == len(paths))
    return dict(zip(chosen, paths, strict=True))


def check_pairs(order: Mapping[str, str], known: Collection[str]) -> None:
    """Raise unless `order` is of names in a file, which are `known`, to paths."""
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
      find_fault: by name and path, what else is wrong with putting one there, if anything is.
      sides: what the two are called in an error.
      named: whether the names are more than numbers in an order.

    Raises:
      CheckpointError: neither names nor shapes settle it; or entries are missing, extra or
        misshapen: all of them.
    """
    required = {name: shape for name, shape in found.items() if name not in optional}
    if order is None:
        order = match_names(found, required, wanted, known or ()) if named else {}
    # If any name matches, never match by shape.
    all_names = {*split_names(found).values(), *split_names(known or ()).values()}
    silent = not named or all_names.isdisjoint(split_names(wanted).values())
    if not order and found and wanted and silent:
        fitting = required if len(required) == len(wanted) else found
        order = _match_shapes(fitting, wanted, shape_at, sides)
    pairs = [(name, path) for name, path in order.items() if name in found and path in wanted]
    names = {path: name for name, path in pairs}
    source, target = sides
    absent = {split_name(name): what for name, what in (known or {}).items()}
    missing = [path for path in wanted if path not in names]
    unknown = [path for path in missing if split_name(path) not in absent]
    extra = [name for name in found if order.get(name) not in wanted and name not in optional]
    problems = [
        f"{path}: {absent.get(split_name(path)) or f'not in the {source}'}" for path in missing
    ]
    problems += [
        f"{path}: expected one variable, found both {name} and {names[path]}"
        for name, path in pairs
        if names[path] != name
    ]
    for name in extra:
        called = f" (as {order[name]})" if order.get(name, name) != name else ""
        problems.append(f"{name}: in the {source}{called}, but not in the {target}")
    for path, name in names.items():
        shape = shape_at(name, path)
        if find_fault is not None and (fault := find_fault(name, path)):
            problems.append(f"{path}: {fault}")
        elif shape != wanted[path]:
            also = "" if shape == found[name] else f", {found[name]} in the {source}"
            problems.append(f"{path}: expected shape {wanted[path]}, found {shape}{also}")
    if problems:
        message = "\n  ".join([f"the {source}'s variables do not fit the {target}:", *problems])
        if unknown or extra:
            message += f"\nThe {source} has, in its order: {listed(found, most=1000)}"
            message += f"\nThe {target} has: {listed(wanted, most=1000)}"
            message += f"\nWhere names differ, {_advise(sides)}"
        raise CheckpointError(message, argument="order" if unknown or extra else None)
    return names


def _match_shapes(
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    shape_at: Callable[[str, str], Shape],
    sides: tuple[str, str],
) -> dict[str, str]:
    """By name the path of the same shape, if there is only one way to assign all; {} if none.

    There is only one if and only if this never comes to a halt: take a variable that fits one path
    only, or a path that only one variable fits, and go on without both.
    """
    fits = {n: {p for p in wanted if shape_at(n, p) == wanted[p]} for n in found}
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
    names = "paths" if target == "tree" else "names"
    keys, values = (target, source) if target == "other file" else (source, target)
    return (
        f"give order=[the {target}'s {names} in the {source}'s order], or a mapping from the names "
        f"in the {keys} to those in the {values}"
    )


def _describe_ambiguity(
    found: Mapping[str, Shape], wanted: Mapping[str, Shape], sides: tuple[str, str]
) -> str:
    source, target = sides

    def table(entries: Mapping[str, Shape]) -> str:
        return "".join(f"\n  {name} {shape}" for name, shape in entries.items())

    return (
        f"the names in the {source} are not those of the {target}, and more than one assignment "
        f"has the right shapes. The {source} has, in its order:{table(found)}\n"
        f"The {target} has:{table(wanted)}\nSo {_advise(sides)}"
    )
