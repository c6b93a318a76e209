"""One step of `adamx.keras.Adam`: what is compiled, and what of its arguments is traced."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.checks import check_params
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.jax_seam import is_traced, strip_weak_type
from adamx.base.trees import listed, path_name
from adamx.config.adam_config import AdamConfig

__all__ = [
    "Constraint",
    "Loss",
    "Program",
    "clipped_gradients",
    "make_program",
    "merge",
    "placed_like",
    "split_params",
    "step",
    "with_numbers",
]

Loss = Callable[..., Any]
Constraint = Callable[[Any], Any]

_ARRAYS = (jax.Array, np.ndarray, np.generic)
TRACEABLE = (*_ARRAYS, int, float, complex)


class Static(NamedTuple):
    """The leaves of a tree that are not traced, with their types (1 == True); None for the rest."""

    treedef: Any
    leaves: tuple[tuple[type, Any] | None, ...]


class Program(NamedTuple):
    """What a compiled step depends on, besides shapes and dtypes."""

    loss: Loss
    constraints: tuple[tuple[str, Constraint], ...]
    config: AdamConfig
    params: Static | None
    args: Static | None


def make_program(
    config: AdamConfig,
    loss: Loss,
    constraints: Mapping[str, Constraint] | None,
    params: Any,
    args: Any,
) -> tuple[Program, Any, Any]:
    """What is compiled, and the arrays in `params` and `args`."""
    if not callable(loss):
        raise InvalidType(where="loss", expected="a function", found=type(loss).__name__)
    if constraints is None:
        constraints = {}
    elif not isinstance(constraints, Mapping):
        raise InvalidType(
            where="constraints",
            expected="a mapping from paths of parameters to functions, or None",
            found=type(constraints).__name__,
        )
    for path, constraint in constraints.items():
        if not callable(constraint):
            where, found = f"constraints: {path}", type(constraint).__name__
            raise InvalidType(where=where, expected="a function", found=found)
    arrays, static_params = split_params(params)
    traced, static_args = split("args", args, TRACEABLE)
    ordered = tuple(sorted(constraints.items(), key=lambda item: str(item[0])))
    for name, function in (("loss", loss), *ordered):
        check_hashable(name, function)
    return Program(loss, ordered, config, static_params, static_args), arrays, traced


@functools.partial(jax.jit, static_argnums=0)
def step(
    program: Program, params: Any, state: Any, numbers: dict[str, jax.Array], args: Any
) -> tuple[Any, Any]:
    """One step: the new parameters and state."""
    tx = with_numbers(program.config, numbers).transformation()
    updates, state = tx.update(_gradients(program, params, args), state, params)
    params = optax.apply_updates(params, updates)
    return _constrained(params, dict(program.constraints)), state


@functools.partial(jax.jit, static_argnums=0)
def clipped_gradients(program: Program, params: Any, args: Any) -> Any:
    """The gradients of the program's loss, clipped as its configuration says."""
    clipping = optax.chain(optax.identity(), *program.config.clipping())
    gradients = _gradients(program, params, args)
    return clipping.update(gradients, clipping.init(params), params)[0]


def _gradients(program: Program, params: Any, args: Any) -> Any:
    check_params(params)

    def loss(params: Any) -> jax.Array:
        args_of_loss = merge(args, program.args)
        value = program.loss(merge(params, program.params), *args_of_loss)
        if not isinstance(value, TRACEABLE):
            raise InvalidType(where="loss", expected="a real scalar", found=type(value).__name__)
        value = jnp.asarray(value)  # pyright: ignore[reportArgumentType]
        if value.shape:
            raise InvalidValue(
                where="loss",
                expected="a scalar",
                found=f"an array of shape {value.shape}",
                remedy="take its mean or its sum",
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            expected = "a real floating-point scalar"
            raise InvalidType(where="loss", expected=expected, found=value.dtype)
        return value

    return jax.tree.map(jnp.conj, jax.grad(loss)(params))


def _constrained(params: Any, constraints: dict[str, Constraint]) -> Any:
    if not constraints:
        return params
    keyed, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths, leaves = [path_name(path) for path, _ in keyed], [leaf for _, leaf in keyed]
    unknown = [path for path in constraints if path not in paths]
    if unknown:
        raise InvalidValue(
            where=f"constraints: {listed(map(repr, unknown))}",
            expected="paths of parameters that are arrays, which are "
            f"{listed(map(repr, paths), most=50)}",
        )
    for path, constraint in constraints.items():
        if paths.count(path) > 1:
            problem, remedy = "two parameters have this path", "rename one of them"
            raise InvalidValue(problem, where=path, remedy=remedy)
        place = paths.index(path)
        before, after = leaves[place], constraint(leaves[place])
        if not isinstance(after, TRACEABLE):
            expected = f"an array of shape {before.shape} and {before.dtype}"
            raise InvalidValue(
                where=path,
                expected=f"its constraint to return {expected}",
                found=type(after).__name__,
            )
        after = jnp.asarray(after)
        if (after.shape, after.dtype) != (before.shape, before.dtype):
            raise InvalidValue(
                where=path,
                expected=f"its constraint to keep shape {before.shape} and {before.dtype}",
                found=f"shape {after.shape} and {after.dtype}",
            )
        leaves[place] = after
    return treedef.unflatten(leaves)


def with_numbers(config: AdamConfig, numbers: Mapping[str, Any]) -> AdamConfig:
    """`config` with other numbers: as arrays, so that state and program are the same for all."""
    return dataclasses.replace(config, **{k: jnp.asarray(v) for k, v in numbers.items()})


def split_params(params: Any) -> tuple[Any, Static | None]:
    """The arrays in `params`, with None in place of the rest; and the rest."""
    arrays, static = split("params", params, _ARRAYS)
    if static is not None and all(static.leaves):
        expected = "a tree with arrays to train"
        raise InvalidType(where="params", expected=expected, found="none in it")
    return jax.tree.map(_as_jax_array, arrays), static


def _as_jax_array(x: Any) -> Any:
    """`x` as steps return it, so that the second one need not be compiled for other arguments."""
    if isinstance(x, jax.Array):
        return strip_weak_type(x)
    return jnp.asarray(x) if jnp.issubdtype(x.dtype, jnp.number) else x


def split(name: str, tree: Any, kinds: tuple[type, ...]) -> tuple[Any, Static | None]:
    """`tree` with None in place of leaves that are not of `kinds`, and those leaves, if any."""
    leaves, treedef = jax.tree.flatten(tree)
    traced = [isinstance(x, kinds) and not isinstance(x, bool) for x in leaves]
    static = tuple(None if is_ else (type(x), x) for x, is_ in zip(leaves, traced, strict=True))
    if not any(static):
        return tree, None
    for (path, leaf), kept in zip(jax.tree_util.tree_leaves_with_path(tree), static, strict=True):
        if kept:
            check_hashable(f"{name}: {path_name(path)}", leaf)
    rest = [x if is_ else None for x, is_ in zip(leaves, traced, strict=True)]
    return treedef.unflatten(rest), Static(treedef, static)


def merge(tree: Any, static: Static | None) -> Any:
    """The inverse of `split`."""
    if static is None:
        return tree
    traced = iter(jax.tree.leaves(tree))
    return static.treedef.unflatten([kept[1] if kept else next(traced) for kept in static.leaves])


def placed_like(arrays: Any, state: Any) -> Any:
    """`state`, and what of it is tied to no device on those of `arrays`, where steps leave it."""
    leaves = jax.tree.leaves(arrays)
    tied = [x for x in leaves if not is_traced(x) and x.committed]
    if not tied:
        return state
    sharding = tied[0].sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    elif not isinstance(sharding, jax.sharding.SingleDeviceSharding):
        return state
    return jax.tree.map(lambda x: x if x.committed else jax.device_put(x, sharding), state)


def check_hashable(name: str, x: Any) -> None:
    """Raise a TypeError unless `x` can be hashed."""
    try:
        hash(x)
    except TypeError as error:
        raise InvalidType(
            where=name,
            expected="something hashable, by which its compiled step is found again",
            found=type(x).__name__,
            remedy="Pass arrays as arguments after the loss",
        ) from error
