"""`adamx convert`: the optimizer state of a file in another format."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from adamx.base.trees import listed
from adamx.checkpoint import Checkpoint, CheckpointError
from adamx.checkpoint.api import find_target, recognise, write
from adamx.checkpoint.naming import describe_naming
from adamx.cli.loading import load_file, read_order
from adamx.cli.output import (
    count_noun,
    list_fields,
    make_printable,
    measure_size,
    shorten,
    show,
    show_progress,
)

__all__ = ["convert"]


def convert(arguments: argparse.Namespace) -> int:
    """Run the command."""
    target: Path = arguments.target
    if os.path.lexists(target) and not arguments.force:
        remedy = "" if target.is_dir() else "--force replaces it"
        raise CheckpointError("exists", where=str(target), remedy=remedy)
    # Report an unusable target before reading a large file.
    find_target(target, arguments.to, arguments.template)
    order = read_order(arguments.order)
    old, checkpoint = load_file(arguments.source, arguments)
    changes = _list_changes(old, checkpoint)
    del old
    steps = " and ".join(dict.fromkeys(count_noun(g.count, "step") for g in checkpoint.groups))
    names = {field: [*getattr(checkpoint, field)] for field in ("mu", "params", "extra")}
    naming, beside = describe_naming(checkpoint), list(checkpoint.not_read)
    is_told = set(checkpoint.naming.values()) <= {"file"}
    with show_progress(f"writing {target.name}", measure_size(arguments.source)) as progress:
        # The checkpoint is empty afterwards, and there was no second copy of it.
        left = write(
            *(target, checkpoint, arguments.to, arguments.template, order, progress),
            **_list_keys(arguments),
        )
    last = f"{target}: carried {steps}, {_carried(names, left)}"
    lost = shorten(list(dict.fromkeys([*left, *beside])), names["params"])
    last += f"; not carried: {lost or 'nothing'}"
    print(make_printable("; ".join([last, *changes])))
    if not is_told:
        print(make_printable(f"names: {naming}"))
    return 0


def _list_keys(arguments: argparse.Namespace) -> dict[str, str]:
    """The keys of optimizer and weights, for a template that may hold several of them, too."""
    keys = {"optimizer": arguments.optimizer, "weights": arguments.weights}
    if arguments.template is None or not recognise(arguments.template).has_selectors:
        return {}
    return {name: key for name, key in keys.items() if key is not None}


def _list_changes(old: Checkpoint, new: Checkpoint) -> list[str]:
    """What `--set` has changed: a text for each field and value before."""
    changes: dict[str, None] = {}
    for before, after in zip(old.groups, new.groups, strict=True):
        was, now = list_fields(before.config), list_fields(after.config)
        for field in (field for field in now if now[field] != was[field]):
            what = "the position of epsilon" if field == "convention" else field
            changes[f"changed {what} from {show(was[field])} to {show(now[field])}"] = None
    return list(changes)


def _carried(names: Mapping[str, Sequence[str]], left: Sequence[str]) -> str:
    weights = sum(f"params/{name}" not in left for name in names["params"])
    carried = [
        "config" if "config" not in left else "",
        f"moments of {count_noun(len(names['mu']), 'variable')}",
        count_noun(weights, "weight") if weights else "",
        listed([name for name in names["extra"] if name not in left], most=3),
    ]
    return ", ".join(filter(None, carried))
