"""The command `adamx`: inspect, convert and compare checkpoints."""

import argparse
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adamx.base.version import __version__
from adamx.checkpoint import FORMATS, CheckpointError
from adamx.checkpoint.format import FileFormat
from adamx.cli.comparison import diff
from adamx.cli.conversion import convert
from adamx.cli.inspection import inspect
from adamx.cli.loading import add_options
from adamx.cli.output import explain

__all__ = ["main", "make_parser"]

_BAD, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: its arguments; None for those of the process.

    Returns:
      The exit code: 0; 1 if two states differ, or `--check` found something; 2 after bad input,
      with the error on standard error; 130 if interrupted; 141 if the output's reader has exited.
    """
    # Never crash on a name that the terminal cannot encode.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = make_parser().parse_args(argv)
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


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line, from which `shtab` makes completions for a shell."""
    parser = argparse.ArgumentParser(
        prog="adamx",
        description=f"Read, convert and compare the state of Adam in checkpoints: {_known()}.",
        epilog="exit codes: 0; 1 if two states differ or --check found something; 2 after an error",
    )
    parser.add_argument("--version", action="version", version=f"adamx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any, name: str, about: str, *files: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=f"{about.capitalize()}.")
        one.set_defaults(run=run)
        for file in files:
            one.add_argument(file.lower(), type=Path, metavar=file)
        add_options(one)
        return one

    one = command(inspect, "inspect", "show what a file holds, and what is wrong in it", "FILE")
    one.add_argument("--json", action="store_true", help="print JSON")
    about = "look for moments that no run of Adam can produce; exit code 1 if there are any"
    one.add_argument("--check", action="store_true", help=about)

    about = "write the names of the variables with their shapes, one per line: edit the file, and "
    about += "pass it to --names"
    one.add_argument("--order-template", type=Path, metavar="FILE", help=about)

    about = "draw the distribution of each variable's moments (needs matplotlib)"
    one.add_argument("--plot", type=Path, metavar="PICTURE", help=about)

    about = "write the optimizer state of a file in another format"
    one = command(convert, "convert", about, "SOURCE", "TARGET")
    writable = tuple(name for name, form in FORMATS.items() if form.writable)
    one.add_argument(
        "--to", choices=writable, help="TARGET's format, if its suffix does not identify it"
    )
    needing = _list_suffixes(form for form in FORMATS.values() if form.template == "required")
    about = "a file or folder of the same model in TARGET's format, saved after a step; needed for "
    about += f"{needing} and for folders"
    one.add_argument("--template", type=Path, metavar="FILE", help=about)
    about = (
        "TARGET's names of SOURCE's variables: one per line, in SOURCE's order. Without a "
        "template, if SOURCE is not in the model's order: SOURCE's names in that order"
    )
    one.add_argument("--order", type=Path, metavar="FILE", help=about)
    one.add_argument("--force", action="store_true", help="replace TARGET if it exists")

    about = "tell whether two files hold the same optimizer state, whatever their formats"
    one = command(diff, "diff", about, "A", "B")
    about = "B's names of A's variables: one per line, in A's order"
    one.add_argument("--order", type=Path, metavar="FILE", help=about)
    return parser


def _known() -> str:
    """The formats, in words."""
    forms = FORMATS.values()
    return "; ".join(f"{form.title} ({_list_suffixes([form]) or 'a folder'})" for form in forms)


def _list_suffixes(forms: Iterable[FileFormat]) -> str:
    return ", ".join(suffix for form in forms for suffix in form.suffixes)
