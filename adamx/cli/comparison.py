"""`adamx diff`: whether two checkpoints hold the same optimizer state."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adamx.base.trees import listed
from adamx.checkpoint import Checkpoint, CheckpointError
from adamx.checkpoint.api import recognise
from adamx.checkpoint.compare import bring, find_differences
from adamx.checkpoint.fitting import match_variables
from adamx.cli.loading import load_file, read_order
from adamx.cli.output import (
    count_noun,
    list_effective,
    make_printable,
    narrow,
    print_table,
    shorten,
    show,
)
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup

__all__ = ["diff"]

_SAME, _DIFFERENT = 0, 1


def diff(arguments: argparse.Namespace) -> int:
    """Run the command; 1 if the states differ."""
    order = read_order(arguments.order)
    a, a_configured = _load(arguments.a, arguments)
    b, b_configured = _load(arguments.b, arguments)
    try:
        as_b, left = bring(a, b, order)
    except CheckpointError as error:
        raise error.within(f"{arguments.a} and {arguments.b}") from error
    differing = find_differences(as_b, b)
    only_a = [*left, *(["v_max"] if a.nu_max and not b.nu_max else [])]
    only_b = [name for name in b.extra if name not in as_b.extra]
    only_b += ["v_max"] if b.nu_max and not a.nu_max else []
    only_b += [f"params/{name}" for name in b.params if not a.params]

    pairs = _pair_groups(a, b, match_variables(a, b, order, ("A", "B")))
    counts = _gather(pairs, _compare_counts)
    if a_configured and b_configured:
        for line in _gather(pairs, _compare_configs):
            print(make_printable(line))
    else:
        print("hyperparameters are not compared: not both files hold them")
    for side, names, one in (("A", only_a, a), ("B", only_b, b)):
        if names:
            print(make_printable(f"only in {side}: {shorten(names, one.params)}"))
    for line in counts:
        print(make_printable(line))
    if differing:
        print("the largest differences, and how many entries differ:")
        print_table(_make_rows(differing, as_b))
    lacking = [name for name in only_a + only_b if not name.startswith("params/")]
    if differing or lacking or counts:
        print("A and B are not the same optimizer state")
        return _DIFFERENT
    steps = " and ".join(dict.fromkeys(count_noun(group.count, "step") for group in b.groups))
    compared = [steps, f"moments of {count_noun(len(b.mu), 'variable')}"]
    compared += [count_noun(len(as_b.params), "weight")] if as_b.params else []
    print(f"A and B are the same optimizer state, bit for bit: {', '.join(compared)}")
    return _SAME


def _load(path: Path, arguments: argparse.Namespace) -> tuple[Checkpoint, bool]:
    """The checkpoint in a file, and whether its hyperparameters are known.

    A file that has hyperparameters keeps them, so that they are compared. For one that does not,
    any will do.
    """
    is_configured = recognise(path).holds_config or bool(arguments.config or arguments.set)
    for default in (AdamConfig(), AdamConfig(amsgrad=True)):
        try:
            checkpoint = load_file(path, arguments, prefers_own=True, default=default)[1]
        except CheckpointError as error:
            if is_configured or default.amsgrad or not error.where.endswith("amsgrad"):
                raise
        else:
            return checkpoint, is_configured
    raise AssertionError


_Pair = tuple[ParameterGroup, ParameterGroup]


def _pair_groups(a: Checkpoint, b: Checkpoint, sources: Mapping[str, str]) -> dict[str, _Pair]:
    """Map each variable of B to its group in A and in B."""
    ours = {name: group for group in a.groups for name in group.names}
    theirs = {name: group for group in b.groups for name in group.names}
    return {path: (ours[name], theirs[path]) for path, name in sources.items()}


def _gather(
    pairs: Mapping[str, _Pair], compare: Callable[[ParameterGroup, ParameterGroup], Iterator[str]]
) -> list[str]:
    """What differs; with the names of the variables unless all of them differ."""
    found: dict[str, list[str]] = {}
    for name, pair in pairs.items():
        for line in compare(*pair):
            found.setdefault(line, []).append(name)
    return [
        line if len(names) == len(pairs) else f"{line}, of {listed(names, most=3)}"
        for line, names in found.items()
    ]


def _compare_counts(a: ParameterGroup, b: ParameterGroup) -> Iterator[str]:
    if a.count != b.count:
        yield f"count: {count_noun(a.count, 'step')} in A, {b.count} in B"


def _compare_configs(a: ParameterGroup, b: ParameterGroup) -> Iterator[str]:
    ours, theirs = list_effective(a.config), list_effective(b.config)
    for field in (field for field in ours if field in theirs):
        x, y = ours[field], theirs[field]
        if x != y:
            floats = isinstance(x, float) and isinstance(y, float)
            note = ", the same in float32" if floats and narrow(x) == narrow(y) else ""
            yield f"{field}: {show(x)} in A, {show(y)} in B{note}"


def _make_rows(
    differences: Mapping[str, Mapping[str, str]], checkpoint: Checkpoint
) -> list[dict[str, str]]:
    """The table of differences; a weight without moments has none there."""
    kinds = dict.fromkeys(kind for cells in differences.values() for kind in cells)
    return [
        {"variable": name}
        | {k: cells.get(k, "same" if k == "weight" or name in checkpoint.mu else "") for k in kinds}
        for name, cells in differences.items()
    ]
