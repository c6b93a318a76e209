"""A checkpoint in the names, the order and the layout of another file."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint, Framework, Order
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.matching import assign, by_name, check_pairs, precision_problems, role

__all__ = ["fitted", "in_layout"]

_Arrays = Mapping[str, np.ndarray]


def in_layout(
    array: np.ndarray, name: str, checkpoint: Checkpoint, target: Framework
) -> np.ndarray:
    """An array of one framework as another one lays it out.

    The kernel of a dense layer in Keras is the transpose of torch's weight, embeddings are the
    same; anything else of two dimensions or more is an error. `name` is Keras's name of the
    variable. How arrays of a JAX program are laid out is for its author to say, by a transform.
    """
    source = checkpoint.framework
    is_kernel = role(name) == "kernel" and array.ndim >= 2
    if is_kernel and source == "jax" and target == "torch" and not checkpoint.transformed:
        raise CheckpointError(
            f"{name}: expected a transform, since torch's weights are transposed against the "
            "kernels of Keras and Flax; give Checkpoint.from_state transform=torch_linear, or "
            "lambda path, array: array if yours are not"
        )
    crosses = "jax" not in (source, target) and (source == "torch") != (target == "torch")
    if not crosses or array.ndim < 2 or role(name) == "embeddings":
        return array
    if array.ndim > 2 or not is_kernel:
        raise CheckpointError(
            f"{name}: expected the kernel of a dense layer between Keras and torch, found shape "
            f"{array.shape}; how its axes stand in the other framework is not known here: bring it "
            "over with Checkpoint.restore(transform=...) and Checkpoint.from_state(transform=...)"
        )
    return array.T


def fitted(
    checkpoint: Checkpoint, target: Checkpoint, order: Order | None = None
) -> tuple[Checkpoint, list[str]]:
    """`checkpoint` with the names, layouts and dtypes of `target`'s variables.

    Args:
      checkpoint: gives the values.
      target: of the file that is to hold them.
      order: the names in `target` of the checkpoint's weights or variables, in their order; or a
        mapping from names in `target`, of weights and variables, to those in the checkpoint; None
        where they are called the same.

    Returns:
      The checkpoint, with the moments of `target.names` and the weights of `target.params`; and
      what of the checkpoint has no place there.

    Raises:
      CheckpointError: it is not clear what goes where; entries are missing, extra or misshapen; a
        value would lose precision.
    """
    keras_is_target = target.framework != "torch"

    def carried(array: np.ndarray, name: str, path: str) -> np.ndarray:
        keras_name = path if keras_is_target else name
        return in_layout(array, keras_name, checkpoint, target.framework)

    given: dict[str, str] = {}
    given_weights: dict[str, str] = {}
    if isinstance(order, Mapping):
        check_pairs(order, [*target.names, *target.params])
        given = {name: path for path, name in order.items() if path in target.mu}
        given_weights = {name: path for path, name in order.items() if path in target.params}
    elif order is not None:
        given = given_weights = checkpoint.ordered(order, checkpoint.params or checkpoint.mu)
    moments = _assigned(checkpoint.mu, target.mu, given, carried, ())
    weights: dict[str, str] = {}
    left = [f"params/{name}" for name in checkpoint.params]
    if target.params:
        if not checkpoint.params:
            raise CheckpointError("params: the checkpoint holds no weights, the file has some")
        order_of_weights = {name: path for path, name in moments.items()} | given_weights
        untrained = [name for name in checkpoint.params if name not in checkpoint.mu]
        has_own = any(
            name.endswith(_TORCHS_OWN) for name in [*checkpoint.params, *given_weights.values()]
        )
        keeps = () if has_own else (_TORCHS_OWN,)
        wanted = {p: a for p, a in target.params.items() if not p.endswith(keeps)}
        weights = _assigned(checkpoint.params, wanted, order_of_weights, carried, untrained)
        left = [name for name in left if name.removeprefix("params/") not in weights.values()]

    problems: list[str] = []

    def put(arrays: _Arrays, sources: Mapping[str, str], like: _Arrays) -> dict[str, np.ndarray]:
        result = {}
        for path in like:
            if path in sources and sources[path] in arrays:
                array = carried(arrays[sources[path]], sources[path], path)
                problems.extend(precision_problems(path, array, like[path].dtype))
                result[path] = array.astype(like[path].dtype, copy=False)
        return result

    averages = {f"average/{path}": f"average/{name}" for path, name in moments.items()}
    extra = put(checkpoint.extra, averages, target.extra)
    if extra and "ema_momentum" in checkpoint.extra:
        extra["ema_momentum"] = checkpoint.extra["ema_momentum"]
    elif not extra:
        left += list(checkpoint.extra)
    result = dataclasses.replace(
        checkpoint,
        framework=target.framework,
        version=target.version,
        names=target.names,
        params=put(checkpoint.params, weights, target.params),
        mu=put(checkpoint.mu, moments, target.mu),
        nu=put(checkpoint.nu, moments, target.nu),
        nu_max=put(checkpoint.nu_max, moments, target.nu_max or target.nu),
        extra=extra,
    )
    if problems:
        raise CheckpointError("\n  ".join(["values would lose precision:", *problems]))
    return result, left


# A count of batches that torch alone has: the template's stays.
_TORCHS_OWN = "num_batches_tracked"


def _assigned(
    found: _Arrays,
    wanted: _Arrays,
    order: Mapping[str, str],
    carried: Callable[[np.ndarray, str, str], np.ndarray],
    optional: Sequence[str],
) -> dict[str, str]:
    """By path what goes there: as `order` says, and by name what it does not speak of."""
    known = {n: p for n, p in order.items() if n in found and p in wanted}
    if known:
        rest = [name for name in found if name not in order]
        open_paths = [path for path in wanted if path not in known.values()]
        known |= by_name(rest, [], open_paths)
    return assign(
        {name: array.shape for name, array in found.items()},
        {path: array.shape for path, array in wanted.items()},
        order={**order, **known} if known else None,
        shape_at=lambda name, path: carried(found[name], name, path).shape,
        optional=optional,
        sides=("checkpoint", "other file"),
    )
