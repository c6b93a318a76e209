"""What moments stored in few bits change: directions beside exact ones.

    python -m benchmarks.memory open [steps]

`open`: three small networks are trained by exact Adam, in double precision, and Adam in each form
gets the same gradients. Of each form's direction: the root mean square difference from the exact
one, the mean size, and the largest entry so far, all relative to the exact run's.

The package flashoptim-jax takes part where it is installed.
"""

import argparse
import sys

from benchmarks import open_loop

__all__ = ["main"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_to_open = commands.add_parser("open").add_argument
    add_to_open("steps", type=int, nargs="?", default=2000)
    options = parser.parse_args()
    open_loop.compare(options.steps)


if __name__ == "__main__":
    sys.exit(main())
