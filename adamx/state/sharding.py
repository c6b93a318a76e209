"""Where the optimizer's state lives on a mesh of devices."""

import math
import warnings
from collections.abc import Iterable
from typing import Any, Protocol

import chex
import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.jax_seam import varies_over
from adamx.base.trees import is_none, leaf_name, listed
from adamx.fused.packed import PackedAdamState, PackedAmsgradState

__all__ = ["align", "axis_names_in", "dtype_of", "reduce_scatter", "zero_sharding"]

Axis = str | tuple[str, ...]


class _HasInit(Protocol):
    @property
    def init(self) -> Any: ...


def zero_sharding(
    params: optax.Params,
    mesh: Mesh | AbstractMesh,
    axis: Axis,
    *,
    transformation: _HasInit | None = None,
) -> chex.ArrayTree:
    """Shardings that split the optimizer's state over the data-parallel devices (ZeRO, stage 1).

    Each device along `axis` holds one part of every moment instead of all of it. A moment is split
    along the largest of its dimensions that the axis divides and that its parameter is not split
    along; along the others it lies as the parameter does. What cannot be split so is replicated, as
    counts are: `describe_sharding` prints it. A parameter that is split over `axis` itself has
    moments that lie as it does.

    Nothing moves here. JAX's partitioner does the rest, if the state is created with these
    shardings and the compiled step returns it with them, and the parameters with their own::

        state = jax.jit(tx.init, out_shardings=shardings)(params)
        step = jax.jit(step, out_shardings=(param_shardings, shardings), donate_argnums=(0, 1))

    Without `out_shardings` the step would return parameters split as the moments are. With them,
    gradients are summed and split (a reduce-scatter; on CPUs XLA makes an all-reduce and a slice of
    it, unless `reduce_scatter` is used), each device updates its part of the parameters, and the
    parts are gathered. No moment is ever gathered.

    Args:
      params: the tree of parameters: arrays, or their shapes as of `jax.eval_shape`. A
        `NamedSharding` of theirs on `mesh` is kept; those without one count as replicated, as do
        Flax's boxed shapes, to which `flax.linen.get_sharding` gives theirs.
      mesh: the devices.
      axis: the axis of `mesh` that the batch is split over, or a tuple of axes.
      transformation: what makes the state: a `GradientTransformation` of Optax or adamx, or a
        `FusedOptimizer`. None for one sharding for each parameter: that of its moments and, under
        `reduce_scatter`, its gradient.

    Returns:
      A tree of `NamedSharding` in the structure of `transformation.init(params)`. A leaf of the
      state belongs to a parameter if its path ends with the parameter's, their shapes are the same
      and it is of floating or complex dtype; all others are replicated.

    Raises:
      ValueError: `axis` is not of the mesh; a parameter is split on another mesh; a packed state,
        whose buffers hold many parameters each.

    Warns:
      UserWarning: nothing of the state could be split, so that each device holds all of it.

    Example:
      >>> import adamx, jax, jax.numpy as jnp
      >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
      >>> params = {"kernel": jnp.ones((30, 64)), "bias": jnp.ones(30)}
      >>> shardings = adamx.zero_sharding(params, mesh, "data", transformation=adamx.adam(1e-3))
      >>> list(shardings[0].mu["kernel"].spec), list(shardings[0].mu["bias"].spec)
      ([None, 'data'], [])

    Source: Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5.1.
    """
    axes = _axes(mesh, axis)
    specs = {
        path: (np.shape(leaf), _spec(path, leaf, mesh))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    state = params if transformation is None else jax.eval_shape(transformation.init, params)
    _check_not_packed(state)

    def sharding(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
        # The longest ending first: with a tree of one leaf, () is the ending of every path.
        for start in range(len(path) + 1):
            owner = specs.get(path[start:])
            if owner is not None and owner[0] == np.shape(leaf) and _is_inexact(leaf):
                return NamedSharding(mesh, _split(*owner, axes, mesh))
        return NamedSharding(mesh, PartitionSpec())

    shardings = jax.tree_util.tree_map_with_path(sharding, state)
    used = {n for s in jax.tree.leaves(shardings) for entry in s.spec for n in axis_names_in(entry)}
    splittable = any(np.ndim(leaf) and _is_inexact(leaf) for leaf in jax.tree.leaves(state))
    if not used & set(axes) and _size(mesh, axes) > 1 and splittable:
        warnings.warn(
            f"nothing of the state could be split over {axis!r}, which has {_size(mesh, axes)} "
            "devices: each of them holds all of it. A moment is split along a dimension that this "
            "number divides, if its path in the state ends with its parameter's",
            stacklevel=2,
        )
    return shardings


def reduce_scatter(grads: optax.Updates, shardings: chex.ArrayTree, axis: Axis) -> chex.ArrayTree:
    """The mean of gradients over devices, of which each device gets the part that it updates.

    For use inside of `jax.shard_map`, which leaves nothing to the compiler's choice::

        shardings = adamx.zero_sharding(params, mesh, "data")

        def local(params, batch):  # of one device
            params = jax.lax.pcast(params, "data", to="varying")
            value, grads = jax.value_and_grad(loss)(params, batch)
            return jax.lax.pmean(value, "data"), adamx.reduce_scatter(grads, shardings, "data")

        specs = jax.tree.map(lambda s: s.spec, shardings)
        value_and_grad = jax.shard_map(
            local, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), specs)
        )

    The gradients that come out are split as the moments are, and go into `update` or `step`.

    Args:
      grads: the gradients of the loss of this device's part of the batch.
      shardings: for each, from `zero_sharding` without a transformation.
      axis: every axis of the mesh that the batch is split over, and that `pcast` is given: those
        over which the moments are not split are averaged over. Over an axis that is not named here
        JAX has summed the gradients, which cannot be told.

    Returns:
      For each gradient this device's part of the mean, or the whole mean where it is replicated;
      None for None.

    Raises:
      ValueError: gradients that were summed over `axis`, or one of its axes, already, since the
        parameters were not varying over it; `shardings` of another structure.
      TypeError: something else than a `NamedSharding` among `shardings`.
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    tracked = varies_over(jax.lax.axis_index(axes), axes[0])

    def part(path: jax.tree_util.KeyPath, g: Any, sharding: NamedSharding) -> Any:
        if g is None:
            return None
        if tracked and (summed := [name for name in axes if not varies_over(g, name)]):
            raise InvalidValue(
                where=leaf_name(path),
                expected="a gradient that differs from device to device",
                found=f"one that was summed over {listed(summed)} already",
                remedy="differentiate with respect to "
                f'jax.lax.pcast(params, {axis!r}, to="varying")',
            )
        whole = list(axes)
        for dimension, entry in enumerate(sharding.spec):
            split = tuple(name for name in axis_names_in(entry) if name in axes)
            if split:
                g = jax.lax.psum_scatter(g, split, scatter_dimension=dimension, tiled=True)
                g = g / jax.lax.axis_size(split)
                whole = [name for name in whole if name not in split]
        return jax.lax.pmean(g, tuple(whole)) if whole else g

    keyed, given, treedef = align(grads, shardings, NamedSharding)
    return treedef.unflatten(
        part(path, g, sharding) for (path, g), sharding in zip(keyed, given, strict=True)
    )


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array, or that which JAX gives to a number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jax.numpy.result_type(leaf)


def _is_inexact(leaf: Any) -> bool:
    """Whether it may be a moment: a count, a key or a mask is of another dtype."""
    return jax.numpy.issubdtype(dtype_of(leaf), np.inexact)


def align(tree: Any, shardings: Any, kind: type) -> tuple[list[Any], list[Any], Any]:
    """The leaves of `tree` with their paths, what `shardings` has for them, and the structure."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    try:
        given = treedef.flatten_up_to(shardings)
    except (ValueError, TypeError) as error:
        raise InvalidValue(
            where="shardings",
            expected=f"the structure {treedef}, with one for each leaf",
            found=jax.tree.structure(shardings),
        ) from error
    for (path, leaf), sharding in zip(keyed, given, strict=True):
        if leaf is not None and not isinstance(sharding, kind):
            raise InvalidType(
                where=f"shardings: {leaf_name(path)}",
                expected=f"a {kind.__name__}, as zero_sharding gives it",
                found=repr(sharding),
            )
    return keyed, given, treedef


def _axes(mesh: Mesh | AbstractMesh, axis: Axis) -> tuple[str, ...]:
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    unknown = [name for name in axes if name not in mesh.axis_names]
    if unknown or not axes:
        raise InvalidValue(
            where="axis",
            expected=f"one or several of the mesh's axes {mesh.axis_names}",
            found=repr(axis),
        )
    return axes


def _size(mesh: Mesh | AbstractMesh, axes: Iterable[str]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def axis_names_in(entry: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _spec(
    path: jax.tree_util.KeyPath, param: Any, mesh: Mesh | AbstractMesh
) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that each dimension of a parameter is split over."""
    sharding = getattr(param, "sharding", None)
    entries: list[Any] = [None] * np.ndim(param)
    if isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated:
        if list(sharding.mesh.shape.items()) != list(mesh.shape.items()):
            raise InvalidValue(
                where=leaf_name(path),
                expected=f"a parameter on the mesh {dict(mesh.shape)}",
                found=f"one on {dict(sharding.mesh.shape)}",
                remedy="give the mesh that the parameters are on",
            )
        entries[: len(sharding.spec)] = sharding.spec
    return tuple(map(axis_names_in, entries))


def _split(
    shape: tuple[int, ...],
    spec: tuple[tuple[str, ...], ...],
    axes: tuple[str, ...],
    mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
    """`spec`, with one of the free dimensions split over `axes` where that is possible."""
    entries: list[tuple[str, ...] | str | None] = [
        names[0] if len(names) == 1 else names or None for names in spec
    ]
    parts = _size(mesh, axes)
    free = [i for i, names in enumerate(spec) if not names and shape[i] and shape[i] % parts == 0]
    if free and not any(name in names for names in spec for name in axes):
        largest = max(free, key=lambda i: shape[i])
        entries[largest] = axes[0] if len(axes) == 1 else axes
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _check_not_packed(state: Any) -> None:
    kinds = (PackedAdamState, PackedAmsgradState)
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, kinds):
            raise InvalidValue(
                expected="a state with an array for each parameter",
                found=f"a {type(node).__name__}, whose buffers hold many parameters each and are "
                "not split",
                remedy="use packed=False",
            )
