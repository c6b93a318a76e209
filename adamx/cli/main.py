"""The command `adamx`: what a checkpoint holds, the same in another format, whether two agree."""

import argparse
import ast
import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamx.base.trees import listed
from adamx.base.version import __version__
from adamx.checkpoint import FORMATS, Checkpoint, CheckpointError, load
from adamx.checkpoint.api import find_target, write
from adamx.checkpoint.compare import bring, find_differences, measure
from adamx.checkpoint.errors import convert_error
from adamx.checkpoint.format import FileFormat
from adamx.checkpoint.frameworks import FRAMEWORKS
from adamx.cli.description import describe_variables, make_rows
from adamx.cli.output import (
    count_noun,
    explain,
    list_effective,
    list_fields,
    make_printable,
    measure_size,
    narrow,
    print_table,
    shorten,
    show,
    show_progress,
)
from adamx.config.adam_config import AdamConfig
from adamx.config.keras_config import GENERATIONS

__all__ = ["main"]

_DONE, _DIFFERENT, _BAD, _INTERRUPTED, _BROKEN_PIPE = 0, 1, 2, 130, 141

_ALWAYS_SHOWN = ("learning_rate", "b1", "b2", "eps", "convention")

_Rows = list[dict[str, str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: its arguments; None for those of the process.

    Returns:
      The exit code: 0; 1 if two states differ; 2 after bad input, with the error on standard
      error; 130 if interrupted; 141 if nobody reads the output any more.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not to fail at a name that cannot be shown
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (CheckpointError, ImportError, OSError) as error:
        print(f"adamx: error: {explain(error)}", file=sys.stderr)
        return _BAD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adamx",
        description=f"Read, convert and compare the state of Adam in checkpoints: {_known()}.",
        epilog="exit codes: 0; 1 if two states differ; 2 after an error",
    )
    parser.add_argument("--version", action="version", version=f"adamx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any, name: str, about: str, *files: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=f"{about.capitalize()}.")
        one.set_defaults(run=run)
        for file in files:
            one.add_argument(file.lower(), type=Path, metavar=file)
        bare = _list_suffixes(form for form in FORMATS.values() if not form.holds_config)
        about = f"Keras's get_config() as JSON; for files without hyperparameters: {bare}"
        one.add_argument("--config", type=Path, metavar="FILE", help=about)
        about = "of Keras, where get_config() does not tell it"
        one.add_argument("--generation", choices=GENERATIONS, help=about)
        return one

    one = command(_inspect, "inspect", "show what a file holds, and what is wrong in it", "FILE")
    one.add_argument("--json", action="store_true", help="for programs to read")

    about = "write the optimizer state of a file in another format"
    one = command(_convert, "convert", about, "SOURCE", "TARGET")
    writable = tuple(name for name, form in FORMATS.items() if form.writable)
    one.add_argument("--to", choices=writable, help="TARGET's format; else its suffix tells")
    needing = _list_suffixes(form for form in FORMATS.values() if form.template == "required")
    about = f"a file in TARGET's format, saved of its model after a step; needed for {needing}"
    one.add_argument("--template", type=Path, metavar="FILE", help=about)
    about = "TARGET's names of SOURCE's variables: one a line, in SOURCE's order"
    one.add_argument("--order", type=Path, metavar="FILE", help=about)
    about = "another hyperparameter, such as convention=torch, decay=0, clip_value=None; repeatable"
    settings = {"type": _setting, "action": "append", "default": []}
    one.add_argument("--set", metavar="FIELD=VALUE", help=about, **settings)
    one.add_argument("--force", action="store_true", help="replace TARGET if it exists")

    about = "tell whether two files hold the same optimizer state, whatever their formats"
    one = command(_diff, "diff", about, "A", "B")
    about = "B's names of A's variables: one a line, in A's order"
    one.add_argument("--order", type=Path, metavar="FILE", help=about)
    return parser


def _known() -> str:
    """The formats, in words."""
    forms = FORMATS.values()
    return "; ".join(f"{form.title} ({_list_suffixes([form]) or 'a folder'})" for form in forms)


def _list_suffixes(forms: Iterable[FileFormat]) -> str:
    return ", ".join(suffix for form in forms for suffix in form.suffixes)


def _setting(text: str) -> tuple[str, Any]:
    """A field of AdamConfig and its value, of `field=value`."""
    field, _, value = text.partition("=")
    known = [field.name for field in dataclasses.fields(AdamConfig)]
    if field not in known:
        raise argparse.ArgumentTypeError(f"expected FIELD=VALUE, with one of {', '.join(known)}")
    try:
        return field, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return field, value


def _load(path: Path, arguments: argparse.Namespace) -> Checkpoint:
    config = None
    if arguments.config is not None:
        try:
            described = json.loads(arguments.config.read_bytes())
            config = AdamConfig.from_keras(described, arguments.generation)
        except (TypeError, ValueError) as error:
            raise convert_error(error).within(str(arguments.config)) from error
    with show_progress(f"reading {path.name}", measure_size(path)) as progress:
        if arguments.run is _diff and config is not None:
            # A file with hyperparameters of its own keeps them: they are compared.
            with contextlib.suppress(CheckpointError):
                return load(path, progress=progress)
        return load(path, config=config, progress=progress)


def _order(path: Path | None) -> list[str] | None:
    """The names in a text file, one a line, without comments."""
    if path is None:
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return [name for name in names if name]


def _inspect(arguments: argparse.Namespace) -> int:
    checkpoint = _load(arguments.file, arguments)
    variables = describe_variables(checkpoint)
    if arguments.json:
        facts = {
            "file": str(arguments.file),
            "framework": checkpoint.framework,
            "version": checkpoint.version,
            "count": checkpoint.count,
            "config": list_fields(checkpoint.config),
            "variables": [variable for variable in variables if "norm_m" in variable],
            "without_moments": [variable for variable in variables if "norm_m" not in variable],
            "extra": {name: measure(array) for name, array in checkpoint.extra.items()},
        }
        print(json.dumps(facts, indent=2, allow_nan=False))
        return _DONE
    config, usual = list_effective(checkpoint.config), list_fields(AdamConfig())
    head = {
        "file": str(arguments.file),
        "framework": f"{FRAMEWORKS[checkpoint.framework].title} {checkpoint.version or ''}".strip(),
        "count": count_noun(checkpoint.count, "step"),
        **{k: v for k, v in config.items() if k in _ALWAYS_SHOWN or v != usual[k]},
    }
    if checkpoint.extra:
        head["extra"] = listed(checkpoint.extra, most=3)
    width = max(map(len, head)) + 2
    for key, value in head.items():
        print(make_printable(f"{key:{width}}{show(value)}"))
    print()
    print_table(make_rows(variables) or [{"variable": "(none)"}])
    return _DONE


def _convert(arguments: argparse.Namespace) -> int:
    target: Path = arguments.target
    if os.path.lexists(target) and not arguments.force:
        raise CheckpointError("exists", where=str(target), remedy="--force replaces it")
    find_target(target, arguments.to)  # what is wrong with it is told before a large file is read
    order = _order(arguments.order)
    checkpoint = _load(arguments.source, arguments)
    old = list_fields(checkpoint.config)
    checkpoint = _with_settings(checkpoint, dict(arguments.set))
    new, steps = list_fields(checkpoint.config), count_noun(checkpoint.count, "step")
    names = {field: [*getattr(checkpoint, field)] for field in ("mu", "params", "extra")}
    with show_progress(f"writing {target.name}", measure_size(arguments.source)) as progress:
        # The checkpoint is empty afterwards, and there was no second copy of it.
        left = write(target, checkpoint, arguments.to, arguments.template, order, progress)
    last = f"{target}: carried {steps}, {_carried(names, left)}"
    last += f"; not carried: {shorten(left, names['params']) or 'nothing'}"
    for field in (field for field in new if new[field] != old[field]):
        what = "the place of epsilon" if field == "convention" else field
        last += f"; changed {what} from {show(old[field])} to {show(new[field])}"
    print(make_printable(last))
    return _DONE


def _carried(names: Mapping[str, Sequence[str]], left: Sequence[str]) -> str:
    weights = sum(f"params/{name}" not in left for name in names["params"])
    carried = [
        "config" if "config" not in left else "",
        f"moments of {count_noun(len(names['mu']), 'variable')}",
        count_noun(weights, "weight") if weights else "",
        listed([name for name in names["extra"] if name not in left], most=3),
    ]
    return ", ".join(filter(None, carried))


def _with_settings(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with other hyperparameters."""
    old = checkpoint.config
    try:
        new = dataclasses.replace(old, **settings)
    except (TypeError, ValueError) as error:
        own = convert_error(error)
        raise own.replace(where=f"--set {own.where}".rstrip()) from error
    conventions = {old.convention, new.convention}
    if old.amsgrad and len(conventions) > 1 and "optax" in conventions:
        raise CheckpointError(
            f"AMSGrad's maxima in {old.convention} are not those in {new.convention}, since Optax "
            "alone corrects their bias first",
            where="--set convention",
        )
    return dataclasses.replace(checkpoint, config=new)


def _diff(arguments: argparse.Namespace) -> int:
    order = _order(arguments.order)
    a, b = _load(arguments.a, arguments), _load(arguments.b, arguments)
    try:
        as_b, left = bring(a, b, order)
    except CheckpointError as error:
        raise error.within(f"{arguments.a} and {arguments.b}") from error
    differing = find_differences(as_b, b)
    only_a = [*left, *(["v_max"] if a.nu_max and not b.nu_max else [])]
    only_b = [name for name in b.extra if name not in as_b.extra]
    only_b += ["v_max"] if b.nu_max and not a.nu_max else []
    only_b += [f"params/{name}" for name in b.params if not a.params]

    for line in _config_differences(a.config, b.config):
        print(make_printable(line))
    for side, names, one in (("A", only_a, a), ("B", only_b, b)):
        if names:
            print(make_printable(f"only in {side}: {shorten(names, one.params)}"))
    if a.count != b.count:
        print(f"count: {count_noun(a.count, 'step')} in A, {b.count} in B")
    if differing:
        print("the largest differences, and how many entries differ:")
        print_table(_difference_rows(differing))
    lacking = [name for name in only_a + only_b if not name.startswith("params/")]
    if differing or lacking or a.count != b.count:
        print("A and B are not the same optimizer state")
        return _DIFFERENT
    compared = [count_noun(b.count, "step"), f"moments of {count_noun(len(b.mu), 'variable')}"]
    compared += [count_noun(len(as_b.params), "weight")] if as_b.params else []
    print(f"A and B are the same optimizer state, bit for bit: {', '.join(compared)}")
    return _DONE


def _difference_rows(differences: Mapping[str, Mapping[str, str]]) -> _Rows:
    kinds = dict.fromkeys(kind for cells in differences.values() for kind in cells)
    return [
        {"variable": name} | {kind: cells.get(kind, "same") for kind in kinds}
        for name, cells in differences.items()
    ]


def _config_differences(a: AdamConfig, b: AdamConfig) -> Iterator[str]:
    ours, theirs = list_effective(a), list_effective(b)
    for field in (field for field in ours if field in theirs):
        x, y = ours[field], theirs[field]
        if x != y:
            floats = isinstance(x, float) and isinstance(y, float)
            note = ", the same in float32" if floats and narrow(x) == narrow(y) else ""
            yield f"{field}: {show(x)} in A, {show(y)} in B{note}"
