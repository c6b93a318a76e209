"""Whether the arrays of a checkpoint belong together."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError

__all__ = ["check_moments"]

_Arrays = Mapping[str, np.ndarray]


def check_moments(
    names: Sequence[str], params: _Arrays, mu: _Arrays, others: Mapping[str, _Arrays], amsgrad: bool
) -> None:
    """Raise unless each variable has its moments, of one shape with each other and its weight.

    Args:
      names: of the variables; one without moments is frozen.
      params: the weights by name.
      mu: the first moments by name.
      others: `nu` and `nu_max`, each by name.
      amsgrad: whether there are to be maxima.
    """
    known = set(names)
    if len(known) != len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise CheckpointError(where=listed(twice), expected="every name once")
    problems = [f"{name}: moments of no variable" for name in mu if name not in known]
    for field, arrays in others.items():
        wanted = mu if field == "nu" or amsgrad else {}
        problems += [f"{field}/{n}: missing beside mu/{n}" for n in wanted if n not in arrays]
        problems += [
            f"{field}/{name}: not expected beside amsgrad={amsgrad}"
            if name in mu
            else f"{field}/{name}: there is no mu/{name}"
            for name in arrays
            if name not in wanted
        ]
        problems += [
            f"{field}/{n}: expected shape {a.shape} as mu/{n}, found {arrays[n].shape}"
            for n, a in wanted.items()
            if n in arrays and arrays[n].shape != a.shape
        ]
    problems += [
        f"{n}: expected moments of shape {params[n].shape} as the weight, found {a.shape}"
        for n, a in mu.items()
        if n in params and params[n].shape != a.shape
    ]
    if problems:
        raise CheckpointError("\n  ".join(["the moments do not fit together:", *problems]))
