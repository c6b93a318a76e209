"""`adamx inspect`: what a checkpoint holds, group by group, and what is wrong in it."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from adamx.base.trees import listed
from adamx.checkpoint import Checkpoint, CheckpointError
from adamx.checkpoint.api import recognise
from adamx.checkpoint.compare import measure
from adamx.checkpoint.frameworks import FRAMEWORKS
from adamx.checkpoint.naming import describe_naming
from adamx.cli.description import describe_variables, make_rows
from adamx.cli.loading import find_config, load_file
from adamx.cli.order_template import write_order_template
from adamx.cli.output import (
    count_noun,
    explain,
    list_effective,
    list_fields,
    make_printable,
    print_table,
    show,
)
from adamx.cli.picture import draw_moments
from adamx.cli.views import View, view
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup, list_unlike

__all__ = ["inspect"]

_ALWAYS_SHOWN = ("learning_rate", "b1", "b2", "eps", "convention")
_TO_CONFIGURE = (
    "--check, --plot and the sizes of steps need them: pass --config FILE, or --set FIELD=VALUE"
)


def inspect(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if `--check` found something wrong."""
    if arguments.order_template is not None and os.path.lexists(arguments.order_template):
        raise CheckpointError("exists", where=str(arguments.order_template))
    checkpoint, is_configured = _load(arguments)
    variables = describe_variables(checkpoint, is_configured=is_configured)
    problems = checkpoint.problems() if arguments.check else []
    if arguments.plot is not None:
        draw_moments(arguments.plot, checkpoint)
    if arguments.order_template is not None:
        write_order_template(arguments.order_template, checkpoint, arguments.file)
    if arguments.json:
        facts = _collect_facts(
            str(arguments.file), checkpoint, variables, is_configured=is_configured
        )
        if arguments.check:
            facts["problems"] = [problem._asdict() for problem in problems]
        print(json.dumps(facts, indent=2, allow_nan=False))
        return bool(problems)
    head = _describe_head(str(arguments.file), checkpoint, is_configured=is_configured)
    _print_checkpoint(head, variables)
    if arguments.check:
        print()
        for problem in problems:
            print(make_printable(str(problem)))
        count = count_noun(len(checkpoint.mu), "variable")
        verdict = f"{count_noun(len(problems), 'finding')}: no run of Adam gives such moments"
        print(verdict if problems else f"sound: nothing was found in the moments of {count}")
    return bool(problems)


def _load(arguments: argparse.Namespace) -> tuple[Checkpoint, bool]:
    """The checkpoint, and whether its hyperparameters are known; a note says if they are not.

    If it cannot be read, or is to be read with hyperparameters that are missing, print what can be
    read before the error.
    """
    try:
        return load_file(arguments.file, arguments)[1], True
    except CheckpointError as error:
        obstacle = error
    is_given = arguments.config is not None or bool(arguments.set)
    is_bare = not recognise(arguments.file).holds_config and not is_given
    if is_bare and not arguments.check and arguments.plot is None:
        note = f"{obstacle.expected.removeprefix('an AdamConfig, since ')}; {_TO_CONFIGURE}"
        for made_up in (AdamConfig(), AdamConfig(amsgrad=True)):
            try:
                checkpoint = load_file(arguments.file, arguments, default=made_up)[1]
            except CheckpointError as error:
                if error.argument in ("names", "strict"):  # hyperparameters would not help
                    obstacle = error
                    break
            else:
                notes = (*checkpoint.notes, note)
                return dataclasses.replace(checkpoint, notes=notes), False
    _show_anyhow(arguments, obstacle)
    raise obstacle


def _print_checkpoint(head: Sequence[str], variables: list[dict[str, Any]]) -> None:
    for line in head:
        print(make_printable(line))
    print()
    print_table(make_rows(variables) or [{"variable": "(none)"}])


def _show_anyhow(arguments: argparse.Namespace, error: CheckpointError) -> None:
    """Print what can be read of a file in spite of `error`, and all other obstacles."""
    path, form = arguments.file, recognise(arguments.file)
    keys = {"optimizer": arguments.optimizer, "weights": arguments.weights}
    given: dict[str, Any] = {name: key for name, key in keys.items() if key is not None}
    with contextlib.suppress(CheckpointError):  # then it is the error
        given["config"] = find_config(form, arguments)
    obstacles = {explain(error): None}
    facts: list[dict[str, Any]] = []
    separator = ""
    for one in view(path, form, **given):  # one after the other, since each holds all arrays
        obstacles |= dict.fromkeys(map(explain, one.obstacles))
        if arguments.json:
            facts.append(_collect_seen(str(path), one))
            continue
        if one.checkpoint is None and not one.outline:
            continue
        print(separator, end="")
        separator = "\n"
        chosen = [f"{name:15}{key}, one of several" for name, key in one.options.items()]
        if one.checkpoint is None:
            lines = [f"{'file':15}{path}", f"{'format':15}{form.description}", *chosen, ""]
            for line in [*lines, *one.outline]:
                print(make_printable(line))
        else:
            head = _describe_head(str(path), one.checkpoint, is_configured=one.is_configured)
            variables = describe_variables(one.checkpoint, is_configured=one.is_configured)
            _print_checkpoint([*head, *chosen], variables)
        del one
    if arguments.json:
        told = {"file": str(path), "format": form.name, "seen": facts}
        print(json.dumps(told | {"obstacles": list(obstacles)}, indent=2))
        return
    for text in list(obstacles)[1:]:  # the first is raised
        print(f"\n{text}")
    sys.stdout.flush()  # before the error, which goes to standard error


def _collect_seen(file: str, one: View) -> dict[str, Any]:
    if one.checkpoint is None:
        return {**one.options, "outline": one.outline}
    is_configured = one.is_configured
    variables = describe_variables(one.checkpoint, is_configured=is_configured)
    facts = _collect_facts(file, one.checkpoint, variables, is_configured=is_configured)
    return dict(one.options) | facts


def _collect_facts(
    file: str, checkpoint: Checkpoint, variables: list[dict[str, Any]], *, is_configured: bool
) -> dict[str, Any]:
    groups = [
        {"names": group.names, "count": group.count, "scheduled": group.scheduled}
        | ({"config": list_fields(group.config)} if is_configured else {})
        for group in checkpoint.groups
    ]
    unlike = list_unlike(checkpoint.groups)
    alike: dict[str, Any] = {} if "count" in unlike else {"count": checkpoint.count}
    if is_configured and not set(unlike) - {"count"}:
        alike["config"] = list_fields(checkpoint.config)
    return {
        "file": file,
        "framework": checkpoint.framework,
        "version": checkpoint.version,
        **alike,
        "groups": groups,
        "naming": dict(checkpoint.naming),
        "variables": [variable for variable in variables if "norm_m" in variable],
        "without_moments": [variable for variable in variables if "norm_m" not in variable],
        "extra": {name: measure(array) for name, array in checkpoint.extra.items()},
        "not_read": checkpoint.not_read,
        "notes": checkpoint.notes,
    }


def _describe_head(file: str, checkpoint: Checkpoint, *, is_configured: bool) -> list[str]:
    """The lines above the table: what all variables share, the groups, and remarks."""
    framework = FRAMEWORKS[checkpoint.framework].title
    head = {
        "file": file,
        "framework": f"{framework} {checkpoint.version or ''}".strip(),
        "names": describe_naming(checkpoint),
    }
    groups, unlike = checkpoint.groups, list_unlike(checkpoint.groups)
    if "count" not in unlike:
        head["count"] = count_noun(groups[0].count, "step")
    if is_configured:
        head |= {k: v for k, v in _list_shown(groups[0]).items() if k not in unlike}
    else:
        head["hyperparameters"] = "not known"
    for index, group in enumerate(groups if len(groups) > 1 else ()):
        parts = [count_noun(len(group.names), "variable")]
        parts += [count_noun(group.count, "step")] * ("count" in unlike)
        own = list_fields(group.config)
        parts += [f"{field} {show(own[field])}" for field in unlike if field != "count"]
        parts += ["learning rate set by a scheduler"] * group.scheduled
        head[f"group {index}"] = f"{', '.join(parts)}: {listed(group.names, most=3)}"
    if checkpoint.extra:
        head["extra"] = listed(checkpoint.extra, most=3)
    if checkpoint.not_read:
        head["left out"] = listed(checkpoint.not_read, most=8)
    width = max(map(len, head)) + 2
    lines = [f"{key:{width}}{show(value)}" for key, value in head.items()]
    return lines + [f"{'note':{width}}{note}" for note in checkpoint.notes]


def _list_shown(group: ParameterGroup) -> dict[str, Any]:
    """The hyperparameters that matter: the usual ones, and others that are not the default."""
    config, usual = list_effective(group.config), list_fields(AdamConfig())
    return {k: v for k, v in config.items() if k in _ALWAYS_SHOWN or v != usual[k]}
