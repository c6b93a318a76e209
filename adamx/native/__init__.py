"""The compiled kernel: a whole step of Adam on a CPU in one pass over memory.

Built at install if a C++ compiler is found; the environment variable ADAMX_NATIVE=0 disables it.
`status` says whether it is in use, and why.
"""

from adamx.native.loader import NORM, STEP, Status, is_registered, status

__all__ = ["NORM", "STEP", "Status", "is_registered", "status"]


def __dir__() -> list[str]:
    return __all__
