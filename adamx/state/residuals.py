"""The float32 weights of narrow parameters whose lost bits are in an optimizer's state."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath

from adamx.base.dtypes import dtype_of, number_kind, result_dtype, type_name
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.residual import DTYPES, join, split
from adamx.base.trees import (
    describe_difference,
    flatten_with_path,
    leaf_name,
    listed,
    path_name,
    put_like,
)
from adamx.transforms.narrow import is_narrow
from adamx.transforms.residual import ResidualState

__all__ = ["full_params", "split_params"]


def full_params(params: optax.Params, state: optax.OptState) -> optax.Params:
    """The weights that `residual_params` trains, for evaluation, export and saving.

    Args:
      params: the parameters that came with `state`. May be traced, as may be the state.
      state: any Optax state, or an object of Flax, that holds one `ResidualState`; not changed.

    Returns:
      A tree like `params`, in float32 where they are narrower: bit for bit what the next step adds
      its update to. A narrow parameter without a residual, which `optax.masked` leaves out, is
      cast; all others are those given. The derivative by `params` is 1.

    Raises:
      ValueError: there is no `ResidualState`, or there are several, as in the parts of an
        `optax.partition`; a residual belongs to none of the parameters, or has another shape.
      TypeError: a parameter with a residual is not in bfloat16 or float16.

    Example:
      >>> import adamx, jax.numpy as jnp
      >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
      >>> adamx.full_params(params, adamx.residual_params().init(params))
      {'w': Array([1., 1.], dtype=float32)}
    """
    residuals = _align(params, _find(state)[1])
    keyed, treedef = flatten_with_path(params)
    return treedef.unflatten([_widen(p, residuals.get(path_name(path))) for path, p in keyed])


def split_params(
    weights: optax.Params, params: optax.Params, state: optax.OptState
) -> tuple[optax.Params, optax.OptState]:
    """Parameters and a state with the given weights: the inverse of `full_params`.

    Use it to begin with float32 weights, and after you have changed or loaded weights::

        params = optax.tree.cast(weights, "bfloat16")
        params, state = adamx.split_params(weights, params, tx.init(params))

    Args:
      weights: a tree with the paths and shapes of `params`; its dtypes may be wider.
      params: the present parameters, of which only dtypes, structure and devices are used.
      state: as for `full_params`; only its residuals will differ.

    Returns:
      The parameters, which are the numbers of their dtype nearest to the weights, and the state,
      whose residuals hold the rest. With 8 bits weights are rounded to nearest, here alone: those
      of `full_params` come back exactly.

    Raises:
      ValueError: as `full_params`; weights of other paths or shapes.
      TypeError: as `full_params`; weights that are not numbers of the kind of the parameters.

    Example:
      >>> import adamx, jax.numpy as jnp, optax
      >>> weights, tx = jnp.array([0.1, 0.7]), adamx.residual_params(bits=16)
      >>> params = weights.astype("bfloat16")
      >>> params, state = adamx.split_params(weights, params, tx.init(params))
      >>> bool((adamx.full_params(params, state) == weights).all())
      True
    """
    path, found = _find(state)
    residuals = _align(params, found)
    keyed, treedef = flatten_with_path(params)
    given = {path_name(at): w for at, w in flatten_with_path(weights)[0]}
    if given.keys() != {path_name(at) for at, _ in keyed}:
        raise InvalidValue(
            where="weights",
            problem="the structure differs from that of params; "
            f"{describe_difference(weights, params)}",
        )
    new: dict[str, Any] = {}
    for at, p in keyed:
        name = path_name(at)
        w = _check_weight(leaf_name(at), given[name], p)
        if (r := residuals.get(name)) is None:
            new[name] = put_like(p, w.astype(jnp.result_type(p)))
        else:
            bits: Any = 8 * r.dtype.itemsize
            pair = split(w.astype(jnp.float32), p.dtype, bits, None)
            new[name], residuals[name] = map(put_like, (p, r), pair)
    leaves, structure = flatten_with_path(state)
    names = [_name_residual(at, path) for at, _ in leaves]
    pairs = zip(names, leaves, strict=True)
    replaced = [leaf if name is None else residuals[name] for name, (_, leaf) in pairs]
    return treedef.unflatten([new[path_name(at)] for at, _ in keyed]), structure.unflatten(replaced)


def _find(state: optax.OptState) -> tuple[KeyPath, dict[str, Any]]:
    """The path of the only `ResidualState` within `state`, and its residuals by name."""
    keyed, _ = flatten_with_path(state, _is_residual)
    found = [(path, node) for path, node in keyed if _is_residual(node)]
    if len(found) != 1:
        raise InvalidValue(
            where="state",
            expected="one ResidualState, as residual_params makes it",
            found=f"{len(found)} of them" if found else f"none in {type(state).__name__}",
            remedy="chain one residual_params after the optax.partition, not one within each part"
            if found
            else "pass the state of the chain that ends in residual_params",
        )
    [(path, node)] = found
    leaves, _ = flatten_with_path(node)
    named = [(_name_residual(at, ()), r) for at, r in leaves]
    return path, {name: r for name, r in named if name is not None}


def _is_residual(node: object) -> bool:
    """Whether it is a `ResidualState`, or a mapping with its fields.

    `nnx.state` and checkpoints that are restored without a target turn named tuples into mappings.
    """
    if isinstance(node, Mapping):
        return {"count", "key", "residual"} <= set(node) <= set(ResidualState._fields)
    return isinstance(node, ResidualState)


def _name_residual(path: KeyPath, within: KeyPath) -> str | None:
    """The path of the parameter whose residual is at `path`; None if another leaf is there.

    Args:
      path: of a leaf of a state.
      within: of the `ResidualState`.
    """
    rest = path[len(within) :]
    is_residual = path[: len(within)] == within and path_name(rest[:1]) == "residual"
    return path_name(rest[1:]) if is_residual else None


def _align(params: optax.Params, residuals: dict[str, Any]) -> dict[str, Any]:
    """The residuals; raise unless each belongs to a parameter, and each path to one parameter."""
    keyed, _ = flatten_with_path(params)
    named = {path_name(path): p for path, p in keyed}
    if len(named) < len(keyed):
        counts = Counter(path_name(path) for path, _ in keyed)
        twice = listed(name for name, count in counts.items() if count > 1)
        raise InvalidValue("two parameters have this path", where=twice, remedy="rename one")
    if unknown := sorted(residuals.keys() - named.keys()):
        raise InvalidValue(
            where="params",
            expected="the parameters that the state belongs to",
            found=f"none for the residuals of {listed(unknown)}",
        )
    for name, r in residuals.items():
        p = named[name]
        if result_dtype(p) not in DTYPES:
            raise InvalidType(
                where=name,
                expected="a parameter in bfloat16 or float16, to which the residual in the state "
                "belongs",
                found=result_dtype(p) or type_name(p),
                remedy="optax.apply_updates keeps the parameters' dtypes, equinox.apply_updates "
                "does not",
            )
        if str(dtype_of(r)) not in ("int8", "int16") or jnp.shape(r) != jnp.shape(p):
            raise InvalidValue(
                where=f"state: residual: {name}",
                expected=f"int8 or int16 of shape {jnp.shape(p)}, like the parameter",
                found=f"{dtype_of(r) or type_name(r)} of shape {np.shape(r)}",
            )
    return residuals


def _widen(p: Any, r: Any) -> Any:
    if r is not None:
        return join(jnp.asarray(p), jnp.asarray(r))
    return jnp.asarray(p, jnp.float32) if is_narrow(p) else p


def _check_weight(name: str, w: Any, p: Any) -> Any:
    """The weight for a parameter, as an array."""
    if number_kind(w) != number_kind(p):
        expected = f"a {number_kind(p)} weight, like the parameter"
        raise InvalidType(where=f"weights: {name}", expected=expected, found=number_kind(w))
    if jnp.shape(w) != jnp.shape(p):
        expected = f"shape {jnp.shape(p)}, like the parameter"
        raise InvalidValue(where=f"weights: {name}", expected=expected, found=jnp.shape(w))
    return jnp.asarray(w)
