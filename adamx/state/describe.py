"""What each device holds of a tree of arrays, as a table."""

import math
from typing import Any, NamedTuple, TextIO

import chex
import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from adamx.base.dtypes import result_dtype
from adamx.base.trees import flatten_with_path, path_name
from adamx.state.sharding import align, axis_names_in, memory_kind

__all__ = ["describe_sharding"]


class _Row(NamedTuple):
    """What `describe_sharding` prints of one leaf."""

    name: str
    array: str
    split: str
    held: int  # bytes on each device
    total: int  # bytes of the whole array
    replicated: bool


def describe_sharding(
    tree: chex.ArrayTree, shardings: chex.ArrayTree | None = None, *, file: TextIO | None = None
) -> None:
    """Print what each device holds: the bytes of each leaf, of all, and of what is not split.

    A leaf in another memory than the devices' default, such as `pinned_host`, is marked.

    Args:
      tree: arrays, or their shapes as of `jax.eval_shape`: parameters, a state, or both.
      shardings: a sharding for each leaf, as of `zero_sharding`; None for those that the leaves
        have. A leaf without one counts as replicated.
      file: where to print; None for standard output.

    Raises:
      ValueError: `shardings` of another structure than `tree`; a dimension that the devices do not
        divide.
      TypeError: an entry of `shardings` is not a sharding.

    Example:
      >>> import adamx, jax, jax.numpy as jnp
      >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
      >>> tx, params = adamx.scale_by_adam(), {"w": jnp.ones((30, 64))}
      >>> shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
      >>> adamx.describe_sharding(jax.eval_shape(tx.init, params), shardings)
      leaf   array           split over  bytes per device
      count  int32[]         replicated                 4
      mu/w   float32[30,64]  -, data                  960
      nu/w   float32[30,64]  -, data                  960
      each device holds 1,924 bytes of 15,364; 4 of them are replicated (0.2%)
    """
    if shardings is None:
        keyed, _ = flatten_with_path(tree)
        given = [getattr(leaf, "sharding", None) for _, leaf in keyed]
    else:
        keyed, given, _ = align(tree, shardings, Sharding)
    leaves = zip(keyed, given, strict=True)
    rows = [_row(path, leaf, s) for (path, leaf), s in leaves if leaf is not None]

    titles = ("leaf", "array", "split over", "bytes per device")
    lines = [titles, *((row.name, row.array, row.split, f"{row.held:,}") for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for *words, held in lines:
        cells = [word.ljust(width) for word, width in zip(words, widths[:-1], strict=True)]
        print(*cells, held.rjust(widths[-1]), sep="  ", file=file)
    held, total = sum(row.held for row in rows), sum(row.total for row in rows)
    copies = sum(row.held for row in rows if row.replicated)
    print(
        f"each device holds {held:,} bytes of {total:,}; {copies:,} of them are replicated "
        f"({copies / max(held, 1):.1%})",
        file=file,
    )


def _row(path: jax.tree_util.KeyPath, leaf: Any, sharding: Any) -> _Row:
    shape = np.shape(leaf)
    dtype: Any = result_dtype(leaf)
    held = shape if sharding is None else sharding.shard_shape(shape)
    if sharding is None:
        split = "replicated"
    elif sharding.num_devices == 1:
        split = "one device"
    elif sharding.is_fully_replicated:
        split = "replicated"
    elif isinstance(sharding, NamedSharding):
        split = ", ".join("+".join(axis_names_in(entry)) or "-" for entry in sharding.spec)
    else:
        split = type(sharding).__name__
    kind = memory_kind(sharding)
    return _Row(
        path_name(path) or ".",
        f"{dtype}[{','.join(map(str, shape))}]",
        f"{split} in {kind}" if kind else split,
        math.prod(held) * dtype.itemsize,
        math.prod(shape) * dtype.itemsize,
        split == "replicated",
    )
