"""Convert a checkpoint to the names, order and layout of another file or framework."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.frameworks import FRAMEWORKS, Framework
from adamx.checkpoint.grouping import fit_groups, rename_groups, reorder_groups
from adamx.checkpoint.matching import (
    Order,
    apply_order,
    assign,
    check_pairs,
    check_paths,
)
from adamx.checkpoint.names import match_names, read_role
from adamx.checkpoint.precision import check_losses, find_losses

__all__ = ["fit", "fit_moments", "match_variables"]

_Arrays = Mapping[str, np.ndarray]

# Only torch has this count of batches: the template's is kept.
_TORCHS_OWN = "num_batches_tracked"


def fit(
    checkpoint: Checkpoint,
    target: Checkpoint,
    order: Order | None = None,
    sides: tuple[str, str] = ("the checkpoint", "the template"),
) -> tuple[Checkpoint, list[str]]:
    """`checkpoint` with the names, layouts and dtypes of `target`'s variables.

    Args:
      checkpoint: gives the values.
      target: of the file that is to hold them.
      order: the names in `target` of the checkpoint's weights or variables, in their order; or a
        mapping from names in `target`, of weights and variables, to those in the checkpoint; None
        where they are called the same.
      sides: what the checkpoint and the file are called in an error.

    Returns:
      The checkpoint, with the moments of `target.names` and the weights of `target.params`; and
      what of the checkpoint cannot be put there.

    Raises:
      CheckpointError: it is not clear what goes where; entries are missing, extra or misshapen; a
        value would lose precision.
    """
    carry = _carrier(checkpoint, target)
    _, given_weights = _split_order(order, checkpoint, target)
    moments = match_variables(checkpoint, target, order, sides)
    weights: dict[str, str] = {}
    left = [f"params/{name}" for name in checkpoint.params]
    if target.params:
        if not checkpoint.params:
            raise CheckpointError(
                f"{sides[0]} holds no weights, {sides[1]} has some", where="params"
            )
        order_of_weights = {name: path for path, name in moments.items()} | given_weights
        untrained = [name for name in checkpoint.params if name not in checkpoint.mu]
        has_own = any(
            name.endswith(_TORCHS_OWN) for name in [*checkpoint.params, *given_weights.values()]
        )
        keeps = () if has_own else (_TORCHS_OWN,)
        wanted = {p: a for p, a in target.params.items() if not p.endswith(keeps)}
        weights = _assign(checkpoint.params, wanted, order_of_weights, carry, untrained, sides)
        left = [name for name in left if name.removeprefix("params/") not in weights.values()]

    losses: list[str] = []

    def put(arrays: _Arrays, sources: Mapping[str, str], like: _Arrays) -> dict[str, np.ndarray]:
        result = {}
        for path in like:
            if path in sources and sources[path] in arrays:
                array = carry(arrays[sources[path]], sources[path], path)
                losses.extend(find_losses(path, array, like[path].dtype))
                result[path] = array.astype(like[path].dtype, copy=False)
        return result

    averages = {f"average/{path}": f"average/{name}" for path, name in moments.items()}
    extra = put(checkpoint.extra, averages, target.extra)
    if extra and "ema_momentum" in checkpoint.extra:
        extra["ema_momentum"] = checkpoint.extra["ema_momentum"]
    held = {averages[path] for path in extra if path in averages} | extra.keys()
    left += [name for name in checkpoint.extra if name not in held]
    groups, is_carried = fit_groups(checkpoint.groups, target.groups, moments)
    left += [] if is_carried else ["config"]
    result = dataclasses.replace(
        checkpoint,
        framework=target.framework,
        version=target.version,
        groups=groups,
        naming=target.naming,
        params=put(checkpoint.params, weights, target.params),
        mu=put(checkpoint.mu, moments, target.mu),
        nu=put(checkpoint.nu, moments, target.nu),
        nu_max=put(checkpoint.nu_max, moments, target.nu_max or target.nu),
        extra=extra,
    )
    check_losses(losses)
    return result, left


def match_variables(
    checkpoint: Checkpoint,
    target: Checkpoint,
    order: Order | None = None,
    sides: tuple[str, str] = ("the checkpoint", "the template"),
) -> dict[str, str]:
    """Map each variable's name in the target to its name in the checkpoint; see `fit`."""
    given, _ = _split_order(order, checkpoint, target)
    carry = _carrier(checkpoint, target)
    return _assign(checkpoint.mu, target.mu, given, carry, (), sides)


def _carrier(
    checkpoint: Checkpoint, target: Checkpoint
) -> Callable[[np.ndarray, str, str], np.ndarray]:
    """A function that puts an array in the target's layout, given its old and its new name."""
    keras_is_target = FRAMEWORKS[target.framework].kernel != "out, in"

    def carry(array: np.ndarray, name: str, path: str) -> np.ndarray:
        keras_name = path if keras_is_target else name
        return _lay_out_for(array, keras_name, checkpoint, target.framework)

    return carry


def _split_order(
    order: Order | None, checkpoint: Checkpoint, target: Checkpoint
) -> tuple[dict[str, str], dict[str, str]]:
    """Map names in the checkpoint to names in the target, for variables and for weights."""
    if isinstance(order, Mapping):
        check_pairs(order, [*target.names, *target.params])
        given = {name: path for path, name in order.items() if path in target.mu}
        return given, {name: path for path, name in order.items() if path in target.params}
    both = {} if order is None else _apply_order(order, checkpoint)
    return both, both


def fit_moments(
    checkpoint: Checkpoint, framework: Framework, order: Order | None
) -> tuple[Checkpoint, list[str]]:
    """The moments alone, in a framework's layout and in the order of the model's weights.

    Args:
      checkpoint: gives the values.
      framework: of the file that is to hold them.
      order: as for `fit`; None to keep the names. Where the checkpoint is not in the model's order:
        its names, in that order.

    Returns:
      A checkpoint without weights, whose arrays are views where that is enough; and what it has
      left out.
    """
    names = checkpoint.names
    groups, new = checkpoint.groups, {name: name for name in names}
    if not checkpoint.ordered and len(names) > 1:
        names = _put_in_order(order, names, framework)
        groups = reorder_groups(groups, names)
    else:
        if FRAMEWORKS[checkpoint.framework].kernel == "in, out":  # tf1's files sort variables
            in_model = [name for name in checkpoint.params if name in names]
            names = tuple(in_model) if len(in_model) == len(names) else names
        if order is not None:
            new |= _apply_order(order, checkpoint)

    def put(arrays: _Arrays) -> dict[str, np.ndarray]:
        return {
            new[name]: _lay_out_for(arrays[name], name, checkpoint, framework)
            for name in names
            if name in arrays
        }

    fields = {field: put(getattr(checkpoint, field)) for field in ("mu", "nu", "nu_max")}
    result = dataclasses.replace(
        checkpoint,
        framework=framework,
        groups=rename_groups(groups, names, new),
        naming={new[name]: how for name, how in checkpoint.naming.items()},
        ordered=True,
        params={},
        extra={},
        **fields,
    )
    return result, [f"params/{name}" for name in checkpoint.params] + list(checkpoint.extra)


def _put_in_order(order: Order | None, names: Sequence[str], framework: Framework) -> Sequence[str]:
    """The names in the model's order, which the caller gives."""
    if order is None:
        raise CheckpointError(
            where="order",
            expected=f"the order of the parameters in the model, by which {framework} identifies "
            "them",
            found="that of a tree, which JAX sorts, or of a file that does not store it",
            remedy="pass order=[...], the checkpoint's names in the model's order, or a template",
            argument="order",
        )
    return check_paths(order, names, "variable of the checkpoint")


def _apply_order(order: Order, checkpoint: Checkpoint) -> dict[str, str]:
    of = checkpoint.params or checkpoint.mu
    return apply_order(order, checkpoint.names, checkpoint.mu, of)


def _lay_out_for(
    array: np.ndarray, name: str, checkpoint: Checkpoint, target: Framework
) -> np.ndarray:
    """Convert an array from one framework's layout to another's.

    The kernel of a dense layer in Keras is the transpose of torch's weight, embeddings are the
    same; anything else of two dimensions or more is an error. `name` is Keras's name of the
    variable. How arrays of a JAX program are laid out is for its author to say, by a layout.
    """
    ours, theirs = FRAMEWORKS[checkpoint.framework].kernel, FRAMEWORKS[target].kernel
    is_kernel = read_role(name) == "kernel" and array.ndim >= 2
    is_known = ours != "the author's" or checkpoint.transformed
    if is_kernel and not is_known and theirs == "out, in":
        raise CheckpointError(
            where=name,
            expected="a layout, since torch's weights are the transposes of kernels in Keras and "
            "Flax",
            remedy="pass layout=torch_linear to Checkpoint.from_state, or if yours are as in "
            "torch, layout=lambda path, array: array; for a loaded checkpoint, call "
            "Checkpoint.restore first",
            argument="layout",
        )
    crosses = "the author's" not in (ours, theirs) and ours != theirs
    if not crosses or array.ndim < 2 or read_role(name) == "embeddings":
        return array
    if array.ndim > 2 or not is_kernel:
        raise CheckpointError(
            where=name,
            expected="the kernel of a dense layer, to convert between Keras and torch",
            found=f"shape {array.shape}",
            remedy="adamx does not know the order of its axes in the other framework: convert it "
            "with Checkpoint.restore(layout=...) and Checkpoint.from_state(layout=...)",
            argument="layout",
        )
    return array.T


def _assign(
    found: _Arrays,
    wanted: _Arrays,
    order: Mapping[str, str],
    carry: Callable[[np.ndarray, str, str], np.ndarray],
    optional: Sequence[str],
    sides: tuple[str, str],
) -> dict[str, str]:
    """Map each path to what goes there: by `order`, and by name where it does not say."""
    known = {n: p for n, p in order.items() if n in found and p in wanted}
    if known:
        rest = [name for name in found if name not in order]
        open_paths = [path for path in wanted if path not in known.values()]
        known |= match_names(rest, [], open_paths)
    return assign(
        {name: array.shape for name, array in found.items()},
        {path: array.shape for path, array in wanted.items()},
        order={**order, **known} if known else None,
        shape_at=lambda name, path: carry(found[name], name, path).shape,
        optional=optional,
        sides=sides,
    )
