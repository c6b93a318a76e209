"""What moments, and parameters, stored in few bits change: directions, losses and bytes.

    python -m benchmarks.memory open [steps]
    python -m benchmarks.memory closed [--steps 2000] [--seeds 5] [--only NAME]
    python -m benchmarks.memory bytes

`open`: three small networks are trained by exact Adam, in double precision, and Adam in each form
gets the same gradients. Of each form's direction: the root mean square difference from the exact
one, the mean size, and the largest entry so far, all relative to the exact run's.

`closed`: each form trains by its own directions, with the learning rate, initial parameters and
batches of the others. The mean training loss of the last 200 steps and the loss on held-out data,
over all seeds; and the mean paired difference to float32, both with standard errors. It takes most
of an hour on two cores.

`bytes`: what parameters and state take, counted from the arrays. And the most that a training step
of 50 million parameters takes, gradients and activations included: by XLA's account, and by how
much the resident memory of a new process grew, which compiled the step, or found it compiled. The
last column leaves out what a model of 0.2 million parameters takes: the program.

The package flashoptim-jax takes part where it is installed.
"""

import argparse
import sys

from benchmarks import closed_loop, footprint, open_loop
from benchmarks.trainings import TRAININGS

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
    add_to_closed = commands.add_parser("closed").add_argument
    add_to_closed("--steps", type=int, default=2000)
    add_to_closed("--seeds", type=int, default=5)
    add_to_closed("--only", choices=TRAININGS, help="one training; all")
    commands.add_parser("bytes")
    options = parser.parse_args()
    if options.command == "open":
        open_loop.compare(options.steps)
    elif options.command == "closed":
        names = [options.only] if options.only else list(TRAININGS)
        closed_loop.compare(options.steps, options.seeds, names)
    else:
        footprint.compare()


if __name__ == "__main__":
    sys.exit(main())
