"""Input checks. Each error names the argument, what was expected and found, and the fix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.dtypes import is_number, number_kind
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.trees import describe_difference, is_none, leaf_name

__all__ = [
    "check_choice",
    "check_dtype",
    "check_gradients",
    "check_learning_rate",
    "check_number",
    "check_params",
    "check_positive",
    "check_precise_number",
]


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


def check_params(params: optax.Params) -> None:
    """Raise a TypeError unless every leaf of `params` is floating-point or complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = number_kind(leaf)
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
        if number_kind(g) != number_kind(m):
            expected = f"a {number_kind(m)} floating-point gradient, like the parameter"
            raise InvalidType(where=leaf_name(path), expected=expected, found=number_kind(g))
        if jnp.shape(g) != jnp.shape(m):
            raise InvalidValue(
                where=leaf_name(path),
                expected=f"a gradient of shape {jnp.shape(m)}, like the parameter that the "
                "optimizer was initialised with",
                found=jnp.shape(g),
                remedy="adamx never broadcasts",
            )


def _other_structure(updates: optax.Updates, like: optax.Params, name: str) -> InvalidValue:
    return InvalidValue(
        f"the structure of the gradients differs from that of {name}; "
        f"{describe_difference(updates, like)}",
        remedy="Initialise the optimizer with the parameters that are differentiated",
    )
