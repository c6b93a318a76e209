"""Input checks. Each error names the argument, what was expected and found, and the fix."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.numerics import is_number

__all__ = [
    "check_choice",
    "check_dtype",
    "check_gradients",
    "check_learning_rate",
    "check_number",
    "check_params",
    "check_positive",
    "check_precise_number",
    "explain_renamed_arguments",
    "is_none",
    "leaf_name",
    "listed",
    "path_name",
]

# The names that other frameworks have for an argument.
_RENAMED = {
    "lr": "learning_rate",
    "alpha": "learning_rate",
    "beta1": "b1",
    "beta2": "b2",
    "beta_1": "b1",
    "beta_2": "b2",
    "epsilon": "eps",
    "clip_norm": "clip_global_norm",
    "global_clipnorm": "clip_global_norm",
    "max_grad_norm": "clip_global_norm",
    "use_nesterov": "nesterov",
}

# Arguments of other frameworks for which there is something else.
_ELSEWHERE = {
    "lr": "the learning rate is an argument of adamx.adam and adamx.adamw",
    "learning_rate": "it is an argument of adamx.adam and adamx.adamw",
    "betas": "b1 and b2 are two arguments",
    "decay": "as learning rate, give adamx.inverse_time_decay(learning_rate, decay)",
    "weight_decay": (
        "for decoupled decay use adamx.adamw; for that of torch.optim.Adam chain "
        "optax.add_decayed_weights before adamx.adam"
    ),
    "mask": "wrap the transformation in optax.masked",
    "clipnorm": (
        "in TensorFlow 1.1 this is the norm of all gradients: chain optax.clip_by_global_norm "
        "before; later Keras clips each variable by its own norm, which Optax does not have"
    ),
    "global_clipnorm": "chain optax.clip_by_global_norm before",
    "clipvalue": "chain optax.clip before",
    "maximize": "chain optax.scale(-1.0) before",
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def explain_renamed_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Raise a TypeError that gives the right name for an argument of another framework."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in kwargs:
            if name not in parameters:
                new = _RENAMED.get(name)
                hint = f"here it is {new}" if new in parameters else _ELSEWHERE.get(name)
                raise TypeError(
                    f"{function.__name__}() has no argument {name!r}{f': {hint}' if hint else ''}. "
                    f"Its arguments are {', '.join(parameters)}"
                )
        return function(*args, **kwargs)

    return checked


def check_number(name: str, value: Any, *, below: float = np.inf) -> None:
    """Raise unless `value` is a number in [0, below), or a scalar array, whatever its value."""
    if is_number(value):
        if not 0 <= value < below:
            range_ = "of at least 0" if below == np.inf else f"from 0 to below {below:g}"
            expected = f"a finite number {range_}"
            raise InvalidValue(where=name, expected=expected, found=repr(value))
        return
    dtype = None if isinstance(value, np.generic) else getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.number):
        remedy = "for a schedule wrap the optimizer in optax.inject_hyperparams"
        raise InvalidType(
            where=name,
            expected="a real number or a scalar array",
            found=f"{type(value).__name__} {value!r}",
            remedy=remedy if callable(value) else "",
        )
    if value.shape != ():
        found = f"an array of shape {value.shape}"
        raise InvalidValue(where=name, expected="a scalar", found=found)


def check_positive(name: str, value: Any) -> None:
    """`check_number`, and raise if `value` is 0."""
    check_number(name, value)
    if is_number(value) and value == 0:
        raise InvalidValue(where=name, expected="a number above 0 or None", found=repr(value))


def check_learning_rate(learning_rate: optax.ScalarOrSchedule | None) -> None:
    """`check_number` unless it is a schedule, or None: Optax's word for a direction not scaled."""
    if learning_rate is not None and not callable(learning_rate):
        check_number("learning_rate", learning_rate)


def check_precise_number(name: str, value: Any, *, below: float = np.inf) -> None:
    """`check_number`, and raise if `value` is an array of less than float32's precision."""
    check_number(name, value, below=below)
    if is_number(value) or not jnp.issubdtype(value.dtype, jnp.floating):
        return
    if value.dtype.itemsize < 4:
        raise InvalidType(
            where=name,
            expected="a number or an array of float32 or wider",
            found=f"{value.dtype}, which cannot hold 0.999 or 1e-8",
            remedy="optax.inject_hyperparams rounds to the dtype of the parameters, unless given "
            f'hyperparam_dtype="float32" or static_args="{name}"',
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        expected = f"one of {', '.join(map(repr, choices))}"
        raise InvalidValue(where=name, expected=expected, found=repr(value))


def check_dtype(name: str, dtype: Any, kind: type, words: str) -> None:
    """Raise a TypeError unless `dtype` is None or a subtype of `kind`, called `words`."""
    try:
        if dtype is None or jnp.issubdtype(jnp.dtype(dtype), kind):
            return
    except TypeError:
        pass
    raise InvalidType(where=name, expected=f"{words} dtype or None", found=repr(dtype))


def is_none(x: object) -> bool:
    """Whether `x` is None: a leaf that Optax and Equinox leave out."""
    return x is None


def path_name(path: jax.tree_util.KeyPath) -> str:
    """`dense/kernel` for the leaf under the keys "dense" and "kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def listed(names: Iterable[str], most: int = 10) -> str:
    """The names with commas between them; the first few of many."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def leaf_name(path: jax.tree_util.KeyPath) -> str:
    """`path_name`, or words for the path of a tree that is one leaf."""
    return path_name(path) or "the only leaf of the tree"


def _kind(leaf: object) -> str:
    """The kind of number in a leaf: "real", "complex", or the name of something else."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None and isinstance(leaf, int | float | complex):
        dtype = jnp.result_type(leaf)
    if dtype is None:
        return type(leaf).__name__
    if dtype == jax.dtypes.float0:
        return "float0, the gradient of an integer"
    if jnp.issubdtype(dtype, jnp.floating):
        return "real"
    return "complex" if jnp.issubdtype(dtype, jnp.complexfloating) else str(dtype)


def check_params(params: optax.Params) -> None:
    """Raise a TypeError unless every leaf of `params` is floating-point or complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = _kind(leaf)
        if kind not in ("real", "complex"):
            raise InvalidType(
                where=leaf_name(path),
                expected="a floating-point or complex parameter",
                found=kind,
                remedy="convert it, or keep it from the optimizer with optax.masked or "
                "optax.partition",
            )


def check_gradients(
    updates: optax.Updates, like: optax.Params, name: str = "the optimizer's state"
) -> None:
    """Raise unless `updates` has the structure, shapes and kinds of number of the tree `like`.

    A leaf of `updates` may be None where `like` has anything. `name` is what `like` is called.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_none)
    try:
        expected = treedef.flatten_up_to(like)
    except (ValueError, TypeError) as error:
        raise _other_structure(updates, like, name) from error
    for (path, g), m in zip(leaves, expected, strict=True):
        if g is None:
            continue
        if not jax.tree_util.all_leaves([m]):
            raise _other_structure(updates, like, name)
        if _kind(g) != _kind(m):
            expected = f"a {_kind(m)} floating-point gradient, like the parameter"
            raise InvalidType(where=leaf_name(path), expected=expected, found=_kind(g))
        if jnp.shape(g) != jnp.shape(m):
            raise InvalidValue(
                where=leaf_name(path),
                expected=f"a gradient of shape {jnp.shape(m)}, like the parameter that the "
                "optimizer was initialised with",
                found=jnp.shape(g),
                remedy="adamx never broadcasts",
            )


def _other_structure(updates: optax.Updates, like: optax.Params, name: str) -> InvalidValue:
    found, expected = (
        {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (updates, like)
    )
    problem = f"the structure of the gradients differs from that of {name}"
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing:
        problem += f"; missing: {listed(missing)}"
    if unexpected:
        problem += f"; unexpected: {listed(unexpected)}"
    if not missing and not unexpected:
        problem += f"; expected {jax.tree.structure(like)}, found {jax.tree.structure(updates)}"
    remedy = "Initialise the optimizer with the parameters that are differentiated"
    return InvalidValue(problem, remedy=remedy)
