"""Put the arrays of a file into a tree of parameters."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import optax

from adamx.base.dtypes import dtype_of, is_of, type_name
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.trees import flatten_with_path, path_name
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.layouts import AS_IN_TORCH, Layout, lay_out
from adamx.checkpoint.matching import assign
from adamx.checkpoint.names import is_transpose, read_role

__all__ = [
    "MOMENTS",
    "assign_to_tree",
    "copy_to_host",
    "holds",
    "list_leaves",
    "name_moment",
    "read_count",
    "split_moments",
]

MOMENTS = ("mu", "nu", "nu_max")


def name_moment(field: str, path: str) -> str:
    """The key of `adamx.to_numpy`: `mu/<path>`; `mu` of a tree that is one array."""
    return f"{field}/{path}" if path else field


def split_moments(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """What `adamx.to_numpy` returned, by field and path, without the count."""
    moments: dict[str, dict[str, np.ndarray]] = {field: {} for field in MOMENTS}
    for key, array in arrays.items():
        field, _, path = key.partition("/")
        if field in moments:
            moments[field][path] = array
    return moments


def read_count(arrays: Mapping[str, np.ndarray]) -> int:
    """The number of steps in what `adamx.to_numpy` returned; an error for several."""
    count = arrays["count"]
    if count.shape != ():
        raise InvalidValue(
            where="state: count",
            expected="the state of one model",
            found=f"counts of shape {count.shape}, as of an ensemble (jax.vmap) or of replicas "
            "(jax.pmap)",
            remedy="pass one member of params and of state: jax.tree.map(lambda x: x[0], state)",
        )
    return int(count)


def holds(state: optax.OptState, kind: type) -> bool:
    """Whether a state of the class `kind` is within a state."""

    def is_it(node: object) -> bool:
        return isinstance(node, kind)

    return any(map(is_it, jax.tree.leaves(state, is_leaf=is_it)))


def list_leaves(params: optax.Params) -> dict[str, Any]:
    """The leaves of a tree by path, except random keys, such as a dropout's."""
    leaves: dict[str, Any] = {}
    for path, leaf in flatten_with_path(params)[0]:
        name = path_name(path)
        if is_random_key(leaf):
            continue
        if dtype_of(leaf) is None:
            raise InvalidType(where=name, expected="an array", found=type_name(leaf))
        if name in leaves:
            raise CheckpointError("two parameters have this path; rename one of them", where=name)
        leaves[name] = leaf
    return leaves


def is_random_key(leaf: Any) -> bool:
    """Whether it is a key of `jax.random.key`, which has no numbers to save."""
    return is_of(leaf, jax.dtypes.prng_key)


def copy_to_host(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Host copies; bfloat16 as float32."""
    arrays = {path: np.array(leaf) for path, leaf in leaves.items()}
    return {
        path: array if array.dtype.isbuiltin == 1 else array.astype(np.float32)
        for path, array in arrays.items()
    }


def assign_to_tree(
    arrays: Mapping[str, np.ndarray],
    leaves: Mapping[str, Any],
    *,
    order: Mapping[str, str] | None,
    layout: Layout | None,
    is_transposed: bool,
    optional: Collection[str],
    frozen: Collection[str],
    named: bool,
) -> dict[str, str]:
    """Map each path of the tree to the name of the one of `arrays` that goes there.

    Args:
      arrays: of the file, by name, in its order.
      leaves: of the tree, by path.
      order: the paths that the user gave, by name of the array.
      layout: rearranges the axes of an array.
      is_transposed: whether kernels in the file have torch's layout.
      optional: names that need not be in the tree.
      frozen: names of the file that have none of these arrays.
      named: whether the names are more than numbers in an order.
    """

    def find_fault(name: str, path: str) -> str | None:
        shape = arrays[name].shape
        from_torch = is_transposed and read_role(path) not in AS_IN_TORCH
        from_keras = not is_transposed and is_transpose(name, path, shape)
        if layout is not None or len(shape) < 2 or not (from_torch or from_keras):
            return None
        return f"{name} of shape {shape} may have another layout: pass layout="

    try:
        return assign(
            {name: array.shape for name, array in arrays.items()},
            {path: leaf.shape for path, leaf in leaves.items()},
            order=order,
            shape_at=lambda name, path: lay_out(path, arrays[name], layout).shape,
            optional=optional,
            known=dict.fromkeys(frozen, _FROZEN),
            find_fault=find_fault,
            named=named,
        )
    except CheckpointError as error:
        if not is_transposed or layout is not None:
            raise
        remedy = ". ".join(filter(None, [error.remedy, _TRANSPOSED]))
        argument = error.argument or "layout"
        raise error.replace(remedy=remedy, argument=argument) from error.__cause__


_FROZEN = (
    "has no moments in the file (it was frozen): put None there, or exclude it from the optimizer "
    "with optax.masked or optax.partition"
)
_TRANSPOSED = (
    "The weights of torch's layers are the transposes of kernels in Keras and Flax: pass "
    "layout=adamx.checkpoint.torch_linear, or if yours are as in torch, "
    "layout=lambda path, array: array"
)
