"""Gradients for moments that are split over the devices."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.tree_util import KeyPath

from adamx.base.errors import InvalidValue
from adamx.base.jax_seam import varies_over
from adamx.base.trees import leaf_name, listed
from adamx.state.sharding import Axis, PartSharding, align, axis_names_in

__all__ = ["reduce_scatter"]


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

    The resulting gradients are split as the moments are. Pass them to `update` or `step`.

    A parameter that is itself split over `axis` enters `jax.shard_map` in parts. Its gradient from
    `jax.grad` is then in parts too, summed where the parts were gathered. It is divided by the
    number of devices, and not scattered again.

    Args:
      grads: the gradients of the loss of this device's part of the batch.
      shardings: one for each gradient, from `zero_sharding` without a transformation. With any
        other `NamedSharding` the gradient is taken to be whole.
      axis: every axis of the mesh that the batch is split over, and that `pcast` is given.
        Gradients are averaged over those of them that their moments are not split over. Over an
        axis that is missing here JAX has summed the gradients, which cannot be detected.

    Returns:
      For each gradient this device's part of the mean, or the whole mean where it is replicated;
      None for None.

    Raises:
      ValueError: gradients that were summed over `axis`, or one of its axes, already, since the
        parameters were not varying over it; `shardings` of another structure; a dimension that the
        devices do not divide.
      TypeError: an entry of `shardings` is not a `NamedSharding`.
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    tracked = varies_over(jax.lax.axis_index(axes), axes[0])

    def part(path: KeyPath, g: Any, sharding: NamedSharding) -> Any:
        if g is None:
            return None
        if tracked and (summed := [name for name in axes if not varies_over(g, name)]):
            raise InvalidValue(
                where=leaf_name(path),
                expected="a gradient that differs from device to device",
                found=f"one already summed over {listed(summed)}",
                remedy="differentiate with respect to "
                f'jax.lax.pcast(params, {axis!r}, to="varying")',
            )
        whole = list(axes)
        for dimension, entry in enumerate(sharding.spec):
            split = tuple(name for name in axis_names_in(entry) if name in axes)
            if split and _is_part(jnp.shape(g), sharding, dimension, split):
                g = g / jax.lax.axis_size(split)
                whole = [name for name in whole if name not in split]
            elif split:
                if jnp.shape(g)[dimension] % jax.lax.axis_size(split):
                    raise InvalidValue(
                        where=leaf_name(path),
                        expected=f"a full gradient whose dimension {dimension} is divisible by the "
                        f"{jax.lax.axis_size(split)} devices along {listed(split)}",
                        found=f"shape {jnp.shape(g)}",
                        remedy="pass shardings=zero_sharding(params, mesh, axis), with params "
                        "sharded as in training",
                    )
                g = jax.lax.psum_scatter(g, split, scatter_dimension=dimension, tiled=True)
                g = g / jax.lax.axis_size(split)
                whole = [name for name in whole if name not in split]
        return jax.lax.pmean(g, tuple(whole)) if whole else g

    keyed, given, treedef = align(grads, shardings, NamedSharding)
    return treedef.unflatten(
        part(path, g, sharding) for (path, g), sharding in zip(keyed, given, strict=True)
    )


def _is_part(
    shape: tuple[int, ...], sharding: NamedSharding, dimension: int, split: tuple[str, ...]
) -> bool:
    """Whether a gradient of this shape is that of a part of a parameter split over `split`."""
    owner = sharding.owner if isinstance(sharding, PartSharding) else None
    if owner is None or not set(split) <= set(owner.spec[dimension]):
        return False
    others = [name for name in owner.spec[dimension] if name not in split]
    size = owner.shape[dimension] // jax.lax.axis_size(split)
    # Other axes, such as those of a model, may be split by hand or by the compiler.
    return shape[dimension] in (size, size // math.prod(sharding.mesh.shape[n] for n in others))
