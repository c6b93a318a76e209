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
from adamx.base.trees import flatten_with_path, is_none, listed, path_name
from adamx.config.adam_config import AdamConfig
from adamx.keras.static import ARRAYS, TRACEABLE, Static, check_array, merge, split

__all__ = [
    "Call",
    "Constraint",
    "Loss",
    "Program",
    "check_trainable",
    "clipped_gradients",
    "combine",
    "make_call",
    "placed_like",
    "step",
    "take_trained",
    "with_numbers",
]

Loss = Callable[..., Any]
Constraint = Callable[[Any], Any]


class Program(NamedTuple):
    """What a compiled step depends on, besides shapes and dtypes."""

    config: AdamConfig
    paths: tuple[str, ...]  # those of the constraints
    # Of the loss, of each constraint, of the parameters, of the arguments.
    parts: tuple[Static, ...]

    def fill(self, traced: list[Any]) -> tuple[Loss, dict[str, Constraint], Any, Any]:
        """The loss, the constraints, the parameters' leaves that are not arrays, the arguments."""
        rest = iter(traced)
        loss, *constraints, others, args = (merge(rest, part) for part in self.parts)
        return loss, dict(zip(self.paths, constraints, strict=True)), others, args


class Call(NamedTuple):
    """A program and what it is called with."""

    program: Program
    arrays: Any  # the parameters that are trained
    others: Any  # what else is in their tree; None if there is nothing
    traced: list[Any]


def make_call(
    form: str,
    config: AdamConfig,
    loss: Loss | None,
    constraints: Mapping[str, Constraint] | None,
    params: Any,
    args: tuple[Any, ...],
) -> Call:
    """The program and what it is called with. `form` shows in errors how to write the call."""
    if constraints is not None and not isinstance(constraints, Mapping):
        raise InvalidType(
            where="constraints",
            expected="a mapping from parameter paths to functions, or None",
            found=type(constraints).__name__,
            remedy=f"the constraints come before the loss: write {form}",
        )
    if not callable(loss):
        found = "none" if loss is None else type(loss).__name__
        remedy = f"write {form}"
        raise InvalidType(where="loss", expected="a function", found=found, remedy=remedy)
    ordered = sorted((constraints or {}).items(), key=lambda item: str(item[0]))
    for path, constraint in ordered:
        if not callable(constraint):
            where, found = f"constraints: {path}", type(constraint).__name__
            raise InvalidType(where=where, expected="a function", found=found)
    arrays, others = _split_params(params)
    named = {
        "loss": (loss, ARRAYS),
        **{f"constraints: {path}": (constraint, ARRAYS) for path, constraint in ordered},
        "params": (others, ()),
        "args": (args, TRACEABLE),
    }
    traced, parts = [], []
    for name, (tree, kinds) in named.items():
        arrays_within, part = _split_named(name, tree, kinds)
        traced += arrays_within
        parts.append(part)
    program = Program(config, tuple(path for path, _ in ordered), tuple(parts))
    return Call(program, arrays, others, traced)


@functools.partial(jax.jit, static_argnums=0)
def step(
    program: Program, params: Any, state: Any, numbers: dict[str, Any], traced: list[Any]
) -> tuple[Any, Any]:
    """One step: the new parameters and state."""
    tx = with_numbers(program.config, numbers).transformation()
    updates, state = tx.update(_gradients(program, params, traced), state, params)
    params = optax.apply_updates(params, updates)
    return _constrained(params, program.fill(traced)[1]), state


@functools.partial(jax.jit, static_argnums=0)
def clipped_gradients(program: Program, params: Any, traced: list[Any]) -> Any:
    """The gradients of the program's loss, clipped as its configuration says."""
    clipping = optax.chain(optax.identity(), *program.config.clipping())
    gradients = _gradients(program, params, traced)
    return clipping.update(gradients, clipping.init(params), params)[0]


def _gradients(program: Program, params: Any, traced: list[Any]) -> Any:
    check_trainable(params)

    def loss(params: Any) -> jax.Array:
        function, _, others, args = program.fill(traced)
        value = function(combine(params, others), *args)
        _check_returned("loss", value)
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
    keyed, treedef = flatten_with_path(params)
    paths, leaves = [path_name(path) for path, _ in keyed], [leaf for _, leaf in keyed]
    unknown = [path for path in constraints if path not in paths]
    if unknown:
        raise InvalidValue(
            where=f"constraints: {listed(map(repr, unknown))}",
            expected=f"paths of parameters that are arrays: {listed(map(repr, paths), most=50)}",
        )
    for path, constraint in constraints.items():
        if paths.count(path) > 1:
            problem, remedy = "two parameters have this path", "rename one of them"
            raise InvalidValue(problem, where=path, remedy=remedy)
        place = paths.index(path)
        before, after = leaves[place], constraint(leaves[place])
        _check_returned(f"constraints: {path}", after)
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
    """`config` with other numbers, as arrays, so that state and program do not depend on them."""
    return dataclasses.replace(config, **{k: jnp.asarray(v) for k, v in numbers.items()})


def _split_params(params: Any) -> tuple[Any, Any]:
    """The arrays in `params`, with None in place of the rest; and the rest, None if there is none.

    Raises:
      InvalidType: there is no array, or one that JAX does not take.
    """
    leaves, treedef = jax.tree.flatten(params)
    if leaves and all(isinstance(x, jax.Array) for x in leaves):  # the usual case, and quick
        return treedef.unflatten(map(strip_weak_type, leaves)), None
    for path, leaf in flatten_with_path(params)[0]:
        try:
            check_array(leaf)
        except InvalidType as error:
            raise error.within(path_name(path) if path else "params") from None
    trained = [isinstance(x, (*ARRAYS, np.generic)) for x in leaves]
    if not any(trained):
        expected = "a tree with arrays to train"
        kinds = sorted({type(x).__name__ for x in leaves})
        found = f"only {listed(kinds)}" if kinds else "an empty tree"
        raise InvalidType(where="params", expected=expected, found=found)
    pairs = list(zip(leaves, trained, strict=True))
    arrays = treedef.unflatten([_as_jax_array(x) if is_ else None for x, is_ in pairs])
    if all(trained):
        return arrays, None
    return arrays, treedef.unflatten([None if is_ else x for x, is_ in pairs])


def take_trained(params: Any) -> Any:
    """The arrays in `params`, with None in place of the rest, which is checked."""
    arrays, others = _split_params(params)
    _split_named("params", others, ())
    return arrays


def check_trainable(arrays: Any) -> None:
    """Raise a TypeError unless every array is floating-point or complex."""
    try:
        check_params(arrays)
    except InvalidType as error:
        remedy = "convert it, or pass it as an argument after the loss"
        raise error.replace(remedy=remedy) from None


def _split_named(name: str, tree: Any, kinds: tuple[type, ...]) -> tuple[list[Any], Static]:
    try:
        return split(tree, kinds)
    except InvalidType as error:
        raise error.within(name) from None


def combine(arrays: Any, others: Any) -> Any:
    """The inverse of `_split_params`."""
    if others is None:
        return arrays
    return jax.tree.map(lambda x, y: y if x is None else x, arrays, others, is_leaf=is_none)


def _as_jax_array(x: Any) -> Any:
    """`x` as a step returns it, so that the second step is not compiled again."""
    return strip_weak_type(x if isinstance(x, jax.Array) else jnp.asarray(x))


def _check_returned(name: str, x: Any) -> None:
    """Raise if a function returned an array that JAX does not take."""
    try:
        check_array(x)
    except InvalidType as error:
        raise error.replace(where=name, remedy="compute it with jax.numpy") from None


def placed_like(arrays: Any, state: Any) -> Any:
    """`state`, its uncommitted arrays put on the devices of `arrays`, where steps leave them."""
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
