"""Find the variables of the moments in a Keras optimizer's lists, by name rather than order."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from adamx.checkpoint.consistency import Naming
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._bundle_entries import Bundle
from adamx.checkpoint.formats._bundle_graph import Node

__all__ = ["Named", "name_lists"]

# What Keras 3 and tf_keras call a variable of each list.
_KINDS = {
    "_momentums": ("momentum", "m"),
    "_velocities": ("velocity", "v"),
    "_velocity_hats": ("velocity_hat", "vhat"),
    "_model_variables_moving_average": ("average", "average"),
}


class Named(NamedTuple):
    """The entries of the lists by name of their variable, and how the names are known.

    `prefixes` are what the optimizer is called in the names of its variables.
    """

    keys: dict[str, dict[str, str]]
    naming: Naming
    prefixes: list[str]


def name_lists(
    bundle: Bundle,
    lists: Mapping[str, Sequence[Node]],
    known: Sequence[tuple[str, Node]],
    *,
    is_keras3: bool,
) -> Named:
    """Find the variable of each entry.

    Args:
      bundle: for the shapes.
      lists: each list of variables, by the name that the optimizer gives it.
      known: the variables that may be trained, by name; for Keras 3 in the optimizer's order.
      is_keras3: whether Keras 3 wrote the names, or tf_keras.

    Raises:
      CheckpointError: the names contradict the number or the shapes of the entries.
    """
    told = {part: _read_names(part, nodes, known, is_keras3) for part, nodes in lists.items()}
    prefixes = [prefix for names in told.values() for _, prefix in names]
    by_name = {part: [name for name, _ in names] for part, names in told.items()}
    naming: Naming = "file"
    if any(None in names or len(set(names)) < len(names) for names in by_name.values()):
        # Names are missing or occur twice; lists of Keras 3 are in the order of its variables.
        count = len(lists["_momentums"])
        in_order = is_keras3 and len(known) == count
        order = [name for name, _ in known] if in_order else [str(i) for i in range(count)]
        by_name = {part: list(order) for part in lists}
        naming = "inferred" if in_order else "unknown"
    keys: dict[str, dict[str, str]] = {}
    for part, nodes in lists.items():
        names = by_name[part]
        if len(names) != len(nodes) or set(names) != set(by_name["_momentums"]):
            raise CheckpointError(
                where=part,
                expected=f"an entry for each of the {len(lists['_momentums'])} variables",
                found=f"{len(nodes)} entries, or those of other variables",
            )
        own = {name: node.key for name, node in zip(names, nodes, strict=True) if name is not None}
        keys[part] = {name: own[name] for name in by_name["_momentums"] if name is not None}
    _check_shapes(bundle, keys, dict(known))
    return Named(keys, naming, prefixes)


def _read_names(
    part: str, nodes: Sequence[Node], known: Sequence[tuple[str, Node]], is_keras3: bool
) -> list[tuple[str | None, str]]:
    """For each entry, the variable in its name, or None; and the prefix of the name."""
    if is_keras3:
        kind = _KINDS[part][0]
        by_spelling = _group([(node.full_name.replace("/", "_"), name) for name, node in known])
    else:
        kind = _KINDS[part][1]
        by_spelling = _group([(node.full_name, name) for name, node in known])
    result = []
    for node in nodes:
        spelling, prefix = _split(node.full_name, kind, is_keras3, by_spelling)
        names = by_spelling.get(spelling, [])
        # Without any weights in the file, the spelling is the name.
        own = spelling if not known and spelling and not is_keras3 else None
        result.append((names[0] if len(names) == 1 else own, f"{prefix}/{kind}" if prefix else ""))
    return result


def _split(
    full_name: str, kind: str, is_keras3: bool, spellings: Mapping[str, list[str]]
) -> tuple[str, str]:
    """What a name says of the variable, and of the optimizer."""
    if is_keras3:  # adam/dense_kernel_momentum
        prefix, _, last = full_name.rpartition("/")
        return (last.removesuffix(f"_{kind}") if last.endswith(f"_{kind}") else ""), prefix
    parts = full_name.split("/")  # Adam/m/dense/kernel
    ways = [
        ("/".join(parts[at + 1 :]), "/".join(parts[:at]))
        for at, one in enumerate(parts)
        if one == kind
    ]
    fitting = [way for way in ways if way[0] in spellings] if spellings else ways[:1]
    return fitting[0] if len(fitting) == 1 else ("", "")


def _group(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for spelling, name in pairs:
        groups.setdefault(spelling, []).append(name)
    return groups


def _check_shapes(
    bundle: Bundle, keys: Mapping[str, Mapping[str, str]], known: Mapping[str, Node]
) -> None:
    """Raise unless each entry has the shape of its variable, where that is in the file."""
    for part, own in keys.items():
        for name, key in own.items():
            variable = bundle.entries.get(known[name].key) if name in known else None
            entry = bundle.entries.get(key)
            if variable is not None and entry is not None and entry.shape != variable.shape:
                raise CheckpointError(
                    where=f"{part}: {name}", expected=f"shape {variable.shape}", found=entry.shape
                )
