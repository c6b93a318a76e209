"""Put a checkpoint into a tree and an optimizer state."""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.eight_bit import EightBit, check_moments
from adamx.base.errors import AdamxError
from adamx.base.trees import flatten_with_path, listed, path_name
from adamx.checkpoint.consistency import Held
from adamx.checkpoint.errors import CheckpointError, convert_error
from adamx.checkpoint.frameworks import FRAMEWORKS
from adamx.checkpoint.layouts import Layout, lay_out
from adamx.checkpoint.matching import Order, apply_order, check_pairs
from adamx.checkpoint.names import spell_order, split_name
from adamx.checkpoint.precision import check_losses, find_losses
from adamx.checkpoint.trees import (
    MOMENTS,
    assign_to_tree,
    list_leaves,
    name_moment,
)
from adamx.config.groups import ParameterGroup, combine_groups, list_unlike, restore_parts
from adamx.state.arrays import from_numpy
from adamx.state.find import named_arrays

__all__ = [
    "assign_moments",
    "assign_variables",
    "choose_moments",
    "fill_tree",
    "restore_state",
]

_Arrays = Mapping[str, np.ndarray]

_WITHOUT_FROZEN = (
    "To freeze them, restore without transformation=, and put the arrays of the others into a "
    "fresh state: arrays = adamx.to_numpy(state), fresh = transformation.init(params), "
    "adamx.from_numpy(fresh, {name: arrays[name] for name in adamx.to_numpy(fresh)})"
)


def assign_moments(
    found: Held,
    params: optax.Params,
    order: Order | None,
    layout: Layout | None,
    transformation: optax.GradientTransformation | None,
) -> dict[str, str]:
    """Map each path of a tree that is trained to the name of the variable whose moments it gets.

    Args:
      found: the checkpoint.
      params: the tree of parameters.
      order: as for `assign_variables`.
      layout: rearranges the axes of an array.
      transformation: has moments for what it trains; None to train every leaf.
    """
    leaves = list_leaves(params)
    trained = leaves
    if transformation is not None:
        like = named_arrays(transformation.init(params))
        trained = {path: leaf for path, leaf in leaves.items() if name_moment("mu", path) in like}
    try:
        return assign_variables(found, trained, order, layout, are_weights=False)
    except CheckpointError as error:
        known = {split_name(name) for name in (*found.names, *found.params) if name not in found.mu}
        fitting = {p: x for p, x in leaves.items() if p in trained or split_name(p) not in known}
        frozen: list[str] = []
        with contextlib.suppress(AdamxError):
            whole = assign_variables(found, fitting, order, layout, are_weights=False)
            frozen = [path for path in whole if path not in trained]
        if not frozen:
            raise
        raise CheckpointError(
            where="transformation",
            expected="one with moments for all parameters that have them in the file",
            found=f"none for {listed(frozen)} (frozen)",
            remedy=_WITHOUT_FROZEN,
            argument="transformation",
        ) from error


def assign_variables(
    found: Held,
    leaves: Mapping[str, Any],
    order: Order | None,
    layout: Layout | None,
    *,
    are_weights: bool,
) -> dict[str, str]:
    """Map each path of a tree to the name of the weight or the moment that goes there.

    Args:
      found: the checkpoint.
      leaves: of the tree, by path.
      order: the user's paths in the order of the names, or mapping from names to paths.
      layout: rearranges the axes of an array.
      are_weights: whether weights go there, and not moments.
    """
    names, weights, moments = found.names, found.params, found.mu
    is_named = found.is_named
    arrays, listed_names = (weights, list(weights)) if are_weights else (moments, list(names))
    given: Mapping[str, str] | None = None
    order = spell_order(order, leaves, [*names, *weights])
    are_linked = is_named or all(name in weights for name in names)
    if isinstance(order, Mapping):
        check_pairs(order, [*names, *weights])
        given = order
    elif (
        order is not None
        and are_weights
        and not are_linked
        and len(order) in (len(names), len(moments))
    ):
        raise CheckpointError(
            f"expected a mapping such as {{{next(iter(arrays))!r}: path, ...}}, since the file "
            "does not store the order in which its optimizer has the weights "
            f"{listed(arrays, most=1000)}",
            where="order",
            argument="order",
        )
    elif order is not None:
        given = apply_order(order, names, moments, arrays)
    return assign_to_tree(
        {name: arrays[name] for name in listed_names if name in arrays},
        leaves,
        order=given,
        layout=layout,
        is_transposed=FRAMEWORKS[found.framework].kernel == "out, in",
        # Where the optimizer's variables have no names, any of the weights may be one.
        optional=[name for name in weights if name not in moments] if are_weights else (),
        frozen=[name for name in [*weights, *names] if name not in arrays],
        named=is_named or are_weights,
    )


def choose_moments(
    moments: EightBit | Literal["8bit"] | None,
    transformation: optax.GradientTransformation | None,
) -> EightBit | None:
    """The argument `moments` of `restore`; an error beside a transformation, which has its own."""
    if moments is not None and transformation is not None:
        raise CheckpointError(
            where="moments",
            expected="None with transformation=",
            found=repr(moments),
            remedy="make the transformation with moments=",
            argument="moments",
        )
    return check_moments(moments)


def restore_state(
    params: optax.Params,
    groups: Sequence[ParameterGroup],
    moments: Mapping[str, _Arrays],
    sources: Mapping[str, str],
    transformation: optax.GradientTransformation | None,
    eight_bit: EightBit | None,
    layout: Layout | None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation that the groups describe, unless it is given, and its state.

    Args:
      params: the tree of parameters.
      groups: the optimizer's.
      moments: by field and name.
      sources: by path of the tree, the name of what goes there.
      transformation: instead of that of the groups.
      eight_bit: which moments that of the groups keeps in 8 bits.
      layout: rearranges the axes of an array.
    """
    moved = set(sources.values())
    groups = [group for group in groups if moved.intersection(group.names)] or list(groups[:1])
    groups = _join_alike(groups)
    group_of = {name: index for index, group in enumerate(groups) for name in group.names}
    labels = {path: group_of[name] for path, name in sources.items()}
    given = transformation
    try:
        transformation = combine_groups(groups, labels, eight_bit) if given is None else given
    except AdamxError as error:
        raise convert_error(error, argument="config") from error
    transformation = optax.with_extra_args_support(transformation)
    state = transformation.init(params)
    like = named_arrays(state)
    _check_amsgrad(like, groups, labels)
    arrays: dict[str, np.ndarray] = {}
    losses: list[str] = []
    for path, name in sources.items():
        for field in MOMENTS:
            key = name_moment(field, path)
            if key in like:
                arrays[key] = lay_out(path, moments[field][name], layout)
                losses += find_losses(key, arrays[key], like[key].dtype)
    check_losses(losses)
    if "count" not in list_unlike(groups):
        return transformation, from_numpy(state, {"count": _count(groups[0]), **arrays})
    if given is not None:
        raise CheckpointError(
            where="transformation",
            expected="none, since groups are at different steps",
            found=f"counts of {listed(str(group.count) for group in groups)} steps",
            remedy="restore(params) makes an optax.partition with a count for each",
            argument="transformation",
        )

    def fill(index: int, part: optax.OptState) -> optax.OptState:
        paths = [path for path in labels if labels[path] == index]
        keys = {name_moment(field, path) for path in paths for field in MOMENTS}
        own = {key: array for key, array in arrays.items() if key in keys}
        return from_numpy(part, {"count": _count(groups[index]), **own})

    return transformation, restore_parts(state, fill)


def _join_alike(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """Merge groups with the same hyperparameters and count, adjacent or not."""
    joined: list[ParameterGroup] = []
    for group in groups:
        for index, other in enumerate(joined):
            if not list_unlike([other, group]):
                joined[index] = dataclasses.replace(other, names=other.names + group.names)
                break
        else:
            joined.append(group)
    return joined


def fill_tree(
    params: optax.Params,
    leaves: Mapping[str, Any],
    weights: _Arrays,
    sources: Mapping[str, str],
    layout: Layout | None,
) -> Any:
    """A tree like `params`, with these weights in the dtypes of its leaves."""
    losses: list[str] = []
    filled = {}
    for path, name in sources.items():
        array = lay_out(path, weights[name], layout)
        losses += find_losses(path, array, leaves[path].dtype)
        filled[path] = jnp.asarray(array.astype(leaves[path].dtype))
    check_losses(losses)
    keyed, treedef = flatten_with_path(params)
    return treedef.unflatten([filled.get(path_name(path), leaf) for path, leaf in keyed])


def _count(group: ParameterGroup) -> np.ndarray:
    return np.asarray(group.count)


def _check_amsgrad(
    like: Collection[str], groups: Sequence[ParameterGroup], labels: Mapping[str, int]
) -> None:
    """Raise unless the state has AMSGrad's maxima where the checkpoint has them."""
    for path, index in labels.items():
        amsgrad = groups[index].config.amsgrad
        if (name_moment("nu_max", path) in like) != amsgrad:
            raise CheckpointError(
                f"expected one with amsgrad={amsgrad}, as in the checkpoint; found one with "
                f"amsgrad={not amsgrad}",
                where="transformation",
                argument="transformation",
            )
