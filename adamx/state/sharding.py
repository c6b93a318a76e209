"""Where the optimizer's state lives on a mesh of devices."""

import math
import warnings
from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple, Protocol, Self

import chex
import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from adamx.base.blockwise import EightBitMoment, group_size
from adamx.base.dtypes import is_of
from adamx.base.eight_bit import is_eight_bit, wide_like
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.trees import flatten_with_path, is_none, leaf_name
from adamx.fused.layout import PackedAdamState, PackedAmsgradState

__all__ = [
    "Axis",
    "PartSharding",
    "align",
    "axis_names_in",
    "memory_kind",
    "zero_sharding",
]

Axis = str | tuple[str, ...]


class _Owner(NamedTuple):
    """What the shardings of moments depend on: the shape and the sharding of their parameter."""

    shape: tuple[int, ...]
    spec: tuple[tuple[str, ...], ...]  # for each dimension the axes that it is split over
    memory_kind: str | None


class PartSharding(NamedSharding):
    """The sharding of a parameter that is itself split over `axis`, with its whole shape.

    Inside of `jax.shard_map` its gradient is a part already, which only its shape shows.
    """

    owner: _Owner | None = None

    @classmethod
    def of(cls, mesh: Mesh | AbstractMesh, spec: PartitionSpec, owner: _Owner) -> Self:
        """A sharding from the arguments of a `NamedSharding` and the parameter that it is for."""
        sharding = cls(mesh, spec, memory_kind=owner.memory_kind)
        sharding.owner = owner
        return sharding


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
    along; along the others it is split as the parameter is, and it uses the same kind of memory.
    What cannot be split so is replicated, as counts are: `describe_sharding` prints it. If a
    parameter is itself split over `axis`, its moments are split as it is. With several axes, a
    moment is split over those that its parameter is not split over; if no dimension is divided by
    all of these together, over those of them that make the most parts.

    This function moves nothing. JAX's partitioner does, if the state is created with these
    shardings and the compiled step returns it with them, and the parameters with their own::

        state = jax.jit(tx.init, out_shardings=shardings)(params)
        step = jax.jit(step, out_shardings=(param_shardings, shardings), donate_argnums=(0, 1))

    Without `out_shardings` the step would return parameters split as the moments are. With them,
    gradients are summed and split (a reduce-scatter; on CPUs XLA makes an all-reduce and a slice of
    it, unless `reduce_scatter` is used), each device updates its part of the parameters, and the
    parts are gathered. No moment is ever gathered.

    Args:
      params: the tree of parameters: arrays, or their shapes as of `jax.eval_shape`. If they have a
        `NamedSharding` on `mesh`, it is kept. Those without one count as replicated, as do Flax's
        boxed shapes, to which `flax.linen.get_sharding` gives theirs.
      mesh: the devices.
      axis: the axis of `mesh` that the batch is split over, or a tuple of axes.
      transformation: what makes the state: a `GradientTransformation` of Optax or adamx, or a
        `FusedOptimizer`. None for one sharding for each parameter: that of its moments and, under
        `reduce_scatter`, its gradient.

    Returns:
      A tree of `NamedSharding` in the structure of `transformation.init(params)`. A leaf of the
      state belongs to a parameter if its path ends with the parameter's, their shapes are the same
      and it is of floating or complex dtype, or of int8 or int16 as the residuals of
      `residual_params` are; all others are replicated.

    Raises:
      ValueError: the mesh has no such `axis`; a parameter is split on another mesh, or on one with
        the devices in another order; a packed state, whose buffers hold many parameters each.

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
    owners = {path: _lie(path, leaf, mesh) for path, leaf in flatten_with_path(params)[0]}
    state = params if transformation is None else jax.eval_shape(transformation.init, params)
    _check_not_packed(state)

    def sharding(path: KeyPath, leaf: Any) -> Any:
        like = wide_like(leaf)
        # The longest ending first: with a tree of one leaf, () is the ending of every path.
        for start in range(len(path) + 1):
            owner = owners.get(path[start:])
            if owner is not None and owner.shape == np.shape(like) and _is_kept(like):
                if is_eight_bit(leaf):
                    return _share_codes(leaf, owner, axes, mesh)
                spec = _split(owner, axes, mesh)
                if transformation is None and not _names(owner.spec).isdisjoint(axes):
                    return PartSharding.of(mesh, spec, owner)
                return NamedSharding(mesh, spec, memory_kind=owner.memory_kind)
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), leaf)

    keyed, treedef = flatten_with_path(state, is_eight_bit)
    shardings = treedef.unflatten([sharding(path, leaf) for path, leaf in keyed])
    used = {n for s in jax.tree.leaves(shardings) for n in _names(map(axis_names_in, s.spec))}
    leaves = jax.tree.leaves(wide_like(state))
    splittable = any(np.ndim(leaf) and _is_kept(leaf) for leaf in leaves)
    if not used & set(axes) and _size(mesh, axes) > 1 and splittable:
        warnings.warn(
            f"no array of the state could be split over {axis!r}, which has {_size(mesh, axes)} "
            "devices: each device holds the whole state. A moment is split along a dimension that "
            "is divisible by this number, if its path in the state ends with its parameter's path",
            stacklevel=2,
        )
    return shardings


def align(tree: Any, shardings: Any, kind: type) -> tuple[list[Any], list[Any], Any]:
    """The leaves of `tree` with their paths, what `shardings` has for them, and the structure."""
    keyed, treedef = flatten_with_path(tree, is_none)
    try:
        given = treedef.flatten_up_to(shardings)
    except (ValueError, TypeError) as error:
        raise InvalidValue(
            where="shardings",
            expected=f"the structure {treedef}, with one sharding for each leaf",
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


def _names(spec: Iterable[tuple[str, ...]]) -> set[str]:
    return {name for names in spec for name in names}


def _is_kept(leaf: Any) -> bool:
    """Whether a leaf of a state may be kept for a parameter: no counter is, and no random key."""
    return any(is_of(leaf, kind) for kind in (np.inexact, np.int8, np.int16))


def _lie(path: KeyPath, param: Any, mesh: Mesh | AbstractMesh) -> _Owner:
    """The shape of a parameter, and its sharding on `mesh`."""
    sharding = getattr(param, "sharding", None)
    entries: list[Any] = [None] * np.ndim(param)
    if isinstance(sharding, NamedSharding):
        _check_mesh(path, sharding, mesh)
        entries[: len(sharding.spec)] = sharding.spec
    spec = tuple(map(axis_names_in, entries))
    return _Owner(np.shape(param), spec, memory_kind(sharding))


def memory_kind(sharding: Any) -> str | None:
    """The kind of memory of this sharding, if it is not the default of its devices."""
    kind = getattr(sharding, "memory_kind", None)
    if kind is None or isinstance(getattr(sharding, "mesh", None), AbstractMesh):
        return kind
    device = next(iter(sharding.device_set))
    try:
        default = device.default_memory().kind
    except jax.errors.JaxRuntimeError:  # a device of a topology, which is only compiled for
        default = "device"
    return None if kind == default else kind


def _check_mesh(path: KeyPath, sharding: NamedSharding, mesh: Mesh | AbstractMesh) -> None:
    """Raise for a parameter on another mesh; a replicated one may be on other devices."""
    other = sharding.mesh
    is_split = not sharding.is_fully_replicated
    if is_split and list(other.shape.items()) != list(mesh.shape.items()):
        raise InvalidValue(
            where=leaf_name(path),
            expected=f"a parameter on the mesh {dict(mesh.shape)}",
            found=f"one on {dict(other.shape)}",
            remedy="pass the mesh that the parameters are on",
        )
    if isinstance(mesh, Mesh) and isinstance(other, Mesh):
        wanted, found = ([device.id for device in m.devices.flat] for m in (mesh, other))
        if wanted != found and (is_split or sorted(wanted) == sorted(found)):
            raise InvalidValue(
                where=leaf_name(path),
                expected=f"a parameter on a mesh with the devices in the order {wanted}",
                found=f"one with {found}",
                remedy="pass the mesh that the parameters are on, the sharding.mesh of any of them",
            )


def _share_codes(
    moment: EightBitMoment, owner: _Owner, axes: tuple[str, ...], mesh: Mesh | AbstractMesh
) -> EightBitMoment:
    """The shardings of codes and scales: no group of the last axis is divided."""
    group, kind = group_size(moment), owner.memory_kind
    codes = _split(owner, axes, mesh, whole=group)
    entries = [*codes, *[None] * (len(owner.shape) - len(codes))]
    parts = _size(mesh, axis_names_in(entries[-1]))
    if owner.shape[-1] % (parts * group):
        entries[-1] = None  # the parameter's own parts divide groups: each device has all scales
    return EightBitMoment(
        NamedSharding(mesh, codes, memory_kind=kind),
        NamedSharding(mesh, PartitionSpec(*entries), memory_kind=kind),
    )


def _split(
    owner: _Owner, axes: tuple[str, ...], mesh: Mesh | AbstractMesh, whole: int = 1
) -> PartitionSpec:
    """The owner's spec, with one unsplit dimension split over axes that the spec does not use.

    Parts of the last dimension are multiples of `whole`.
    """
    entries: list[tuple[str, ...] | str | None] = [
        names[0] if len(names) == 1 else names or None for names in owner.spec
    ]
    rest = [name for name in axes if name not in _names(owner.spec)]
    choices = [names for n in range(len(rest), 0, -1) for names in combinations(rest, n)]
    for names in sorted(choices, key=lambda names: _size(mesh, names), reverse=True):
        parts = _size(mesh, names)
        free = [
            i
            for i, size in enumerate(owner.shape)
            if not owner.spec[i] and size
            if size % (parts * (whole if i == len(owner.shape) - 1 else 1)) == 0
        ]
        if free:
            largest = max(free, key=lambda i: owner.shape[i])
            entries[largest] = names[0] if len(names) == 1 else names
            break
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
