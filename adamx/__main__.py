"""The command `adamx` as `python -m adamx`."""

import sys

from adamx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
