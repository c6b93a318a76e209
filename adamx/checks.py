"""What a mistake gets: an error that says where, what was expected, what was found, what to do."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.numerics import is_number

__all__ = [
    "check_choice",
    "check_dtype",
    "check_gradients",
    "check_number",
    "check_params",
    "check_precise_number",
    "explain_renamed_arguments",
    "is_none",
    "path_name",
]

_CHAIN = "a transformation of its own, as in optax.chain({}, adamx.adam(...))"

# What other frameworks call an argument, or have one for, and what to write instead.
_RENAMED = {
    "lr": "learning_rate",
    "alpha": "learning_rate",
    "betas": "b1 and b2",
    "beta1": "b1",
    "beta2": "b2",
    "beta_1": "b1",
    "beta_2": "b2",
    "epsilon": "eps",
    "use_nesterov": "nesterov",
    "decay": "learning_rate=adamx.inverse_time_decay(learning_rate, decay)",
    "weight_decay": "an argument of adamx.adamw",
    "mask": "an argument of adamx.adamw, or optax.masked around the transformation",
    "clipnorm": _CHAIN.format("optax.clip_by_global_norm(...)"),
    "global_clipnorm": _CHAIN.format("optax.clip_by_global_norm(...)"),
    "clipvalue": _CHAIN.format("optax.clip(...)"),
    "maximize": _CHAIN.format("optax.scale(-1.0)"),
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def explain_renamed_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make `function` answer an argument that another framework calls differently with its name."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in kwargs:
            if name not in parameters:
                message = f"{function.__name__}() has no argument {name!r}"
                if name in _RENAMED:
                    message += f"; here it is {_RENAMED[name]}"
                raise TypeError(f"{message}. Its arguments: {', '.join(parameters)}")
        return function(*args, **kwargs)

    return checked


def check_number(name: str, value: object, *, below: float = np.inf) -> None:
    """Raise unless `value` is a number in [0, below), or an array, whose value is not looked at."""
    if is_number(value):
        if not 0 <= value < below:
            end = "infinity" if below == np.inf else f"{below:g}"
            raise ValueError(f"{name}: expected a number from 0 to below {end}, found {value!r}")
    elif not hasattr(value, "dtype") or isinstance(value, np.generic):
        hint = "; for a schedule wrap the optimizer in optax.inject_hyperparams"
        raise TypeError(
            f"{name}: expected a real number or a scalar array, "
            f"found {type(value).__name__} {value!r}{hint if callable(value) else ''}"
        )


def check_precise_number(name: str, value: Any, *, below: float = np.inf) -> None:
    """`check_number`, and raise if `value` is an array of less than float32's precision."""
    check_number(name, value, below=below)
    if not is_number(value) and value.dtype.itemsize < 4:
        raise TypeError(
            f"{name}: expected a number or an array of float32 or wider, found {value.dtype}, "
            "which cannot hold 0.999 or 1e-8. optax.inject_hyperparams rounds to the dtype of the "
            f'parameters, unless given hyperparam_dtype="float32" or static_args="{name}"'
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {expected}, found {value!r}")


def check_dtype(name: str, dtype: Any, kind: type, words: str) -> None:
    """Raise a TypeError unless `dtype` is None or a subtype of `kind`, called `words`."""
    try:
        if dtype is None or jnp.issubdtype(jnp.dtype(dtype), kind):
            return
    except TypeError:
        pass
    raise TypeError(f"{name}: expected {words} dtype or None, found {dtype!r}")


def is_none(x: object) -> bool:
    """Whether `x` is None: a leaf that Optax and Equinox leave out."""
    return x is None


def path_name(path: jax.tree_util.KeyPath) -> str:
    """`dense/kernel` for the leaf under the keys "dense" and "kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _where(path: jax.tree_util.KeyPath) -> str:
    return path_name(path) or "the only leaf of the tree"


def _kind(leaf: object) -> str:
    """The kind of number in a leaf: "real", "complex", or the name of something else."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        dtype = jnp.result_type(leaf) if isinstance(leaf, int | float | complex) else None
    if dtype is None:
        return type(leaf).__name__
    if jnp.issubdtype(dtype, jnp.floating):
        return "real"
    return "complex" if jnp.issubdtype(dtype, jnp.complexfloating) else str(dtype)


def check_params(params: optax.Params) -> None:
    """Raise a TypeError unless every leaf of `params` is floating-point or complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = _kind(leaf)
        if kind not in ("real", "complex"):
            raise TypeError(
                f"{_where(path)}: expected a floating-point or complex parameter, found {kind}; "
                "convert it, or keep it from the optimizer with optax.masked or optax.partition"
            )


def check_gradients(updates: optax.Updates, mu: optax.Updates) -> None:
    """Raise unless `updates` has the structure, shapes and kinds of number of the moments `mu`.

    A leaf of `updates` may be None where `mu` has anything.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_none)
    try:
        moments = treedef.flatten_up_to(mu)
    except (ValueError, TypeError) as error:
        raise ValueError(_structure_message(updates, mu)) from error
    for (path, g), m in zip(leaves, moments, strict=True):
        if g is None:
            continue
        if not hasattr(m, "dtype"):
            raise ValueError(_structure_message(updates, mu))
        if jnp.shape(g) != m.shape:
            raise ValueError(
                f"{_where(path)}: expected a gradient of shape {m.shape}, like the parameter that "
                f"the optimizer was initialised with; found {jnp.shape(g)}. adamx never broadcasts"
            )
        if _kind(g) != _kind(m):
            raise TypeError(
                f"{_where(path)}: expected a {_kind(m)} floating-point gradient, like the "
                f"parameter; found {_kind(g)}"
            )


def _structure_message(updates: optax.Updates, mu: optax.Updates) -> str:
    found, expected = (
        {_where(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (updates, mu)
    )
    message = "the gradients have another structure than the optimizer's state"
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing:
        message += f"; missing: {', '.join(missing)}"
    if unexpected:
        message += f"; unexpected: {', '.join(unexpected)}"
    if not missing and not unexpected:
        message += f"; expected {jax.tree.structure(mu)}, found {jax.tree.structure(updates)}"
    return f"{message}. Initialise the optimizer with the parameters that are differentiated"
