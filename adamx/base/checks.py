"""Input checks. Each error names the argument, what was expected and found, and the fix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.dtypes import (
    check_not_flushed,
    dtype_of,
    is_known,
    is_number,
    number_kind,
    type_name,
)
from adamx.base.errors import AdamxError, InvalidType, InvalidValue
from adamx.base.jax_seam import is_traced
from adamx.base.trees import describe_difference, flatten_with_path, is_none, leaf_name

__all__ = [
    "check_choice",
    "check_dtype",
    "check_given",
    "check_gradients",
    "check_number",
    "check_params",
    "check_positive",
    "check_precise_number",
    "check_rate",
    "check_scheduled",
    "resolve_mask",
]


def check_number(name: str, value: Any, *, below: float = np.inf) -> Any:
    """A number in [0, below) as a Python float, or a scalar array as it is, whatever its value.

    A NumPy number becomes a Python number, since its dtype would promote the arrays that it meets.
    """
    if is_number(value):
        number = _as_float(value)
        if not 0 <= number < below:
            range_ = "of at least 0" if below == np.inf else f"of at least 0 and below {below:g}"
            expected = f"a finite number {range_}"
            raise InvalidValue(where=name, expected=expected, found=repr(value))
        return number
    dtype = None if isinstance(value, np.generic) else dtype_of(value)
    if dtype is None or not jnp.issubdtype(dtype, jnp.number):
        remedy = "for a schedule wrap the optimizer in optax.inject_hyperparams"
        raise InvalidType(
            where=name,
            expected="a real number or a scalar array",
            found=f"{type_name(value)} {value!r}",
            remedy=remedy if callable(value) else "",
        )
    if value.shape != ():
        found = f"an array of shape {value.shape}"
        raise InvalidValue(where=name, expected="a scalar", found=found)
    return value


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an int may be larger than any float
        return np.inf


def check_positive(name: str, value: Any) -> Any:
    """`check_number`, and raise if `value` is 0 or flushed to 0 (`check_not_flushed`)."""
    number = check_number(name, value)
    if is_number(number) and number == 0:
        raise InvalidValue(where=name, expected="a number above 0 or None", found=repr(value))
    return check_not_flushed(name, number)


def check_rate(name: str, value: Any) -> Any:
    """`check_number`, or a schedule as it is; see `check_scheduled`."""
    return value if callable(value) else check_number(name, value)


def check_scheduled(name: str, value: Any) -> Any:
    """`check_number` of what a schedule for the argument `name` returned."""
    try:
        return check_number(name, value)
    except AdamxError as error:
        raise error.replace(
            expected="a scalar" if isinstance(error, InvalidType) else error.expected,
            remedy="a schedule must return one number for a step count",
        ) from error


def check_precise_number(name: str, value: Any, *, below: float = np.inf) -> Any:
    """`check_number`, and raise if `value` is of a floating dtype narrower than float32."""
    number = check_number(name, value, below=below)
    dtype = dtype_of(value)
    if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4:
        raise InvalidType(
            where=name,
            expected="a number or an array of float32 or wider",
            found=f"{dtype}, which cannot hold 0.999 or 1e-8",
            remedy="optax.inject_hyperparams rounds to the dtype of the parameters, unless given "
            f'hyperparam_dtype="float32" or static_args="{name}"',
        )
    return number


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        expected = f"one of {', '.join(map(repr, choices))}"
        raise InvalidValue(where=name, expected=expected, found=repr(value))


# What other libraries call a dtype.
_DTYPE_NAMES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "fp32": "float32",
    "f32": "float32",
    "fp64": "float64",
    "f64": "float64",
}


def check_dtype(name: str, dtype: Any, kind: type, words: str) -> None:
    """Raise a TypeError unless `dtype` is None or a subtype of `kind`, called `words`."""
    try:
        if dtype is None or (jnp.issubdtype(jnp.dtype(dtype), kind) and is_known(jnp.dtype(dtype))):
            return
    except TypeError:
        pass
    spelling = str(dtype).removeprefix("torch.")
    meant = _DTYPE_NAMES.get(spelling, spelling)
    is_known_name = str(dtype) != meant in _DTYPE_NAMES.values()
    raise InvalidType(
        where=name,
        expected=f"{words} dtype or None",
        found=repr(dtype),
        remedy=f'write "{meant}"' if is_known_name else "",
    )


def check_params(params: optax.Params) -> None:
    """Raise a TypeError unless every leaf of `params` is floating-point or complex."""
    for path, leaf in flatten_with_path(params)[0]:
        kind = number_kind(leaf)
        if kind not in ("real", "complex"):
            raise InvalidType(
                where=leaf_name(path),
                expected="a floating-point or complex parameter",
                found=kind,
                remedy="convert it, or exclude it from the optimizer with optax.masked or "
                "optax.partition",
            )


def check_given(params: optax.Params | None, use: str) -> optax.Params:
    """`params`; raise if they are None in a call of `update` that needs them for `use`."""
    if params is None:
        raise InvalidValue(
            where="params",
            expected=f"the parameters, needed {use}",
            found=None,
            remedy="call update(updates, state, params)",
        )
    return params


def check_gradients(
    updates: optax.Updates, like: optax.Params, name: str = "the optimizer's state"
) -> None:
    """Raise unless `updates` has the structure, shapes and kinds of number of the tree `like`.

    A leaf of `updates` may be None, whatever `like` has there. Errors call `like` by `name`.
    """
    leaves, treedef = flatten_with_path(updates, is_leaf=is_none)
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
                remedy="adamx does not broadcast gradients",
            )


def resolve_mask(mask: Any, tree: Any) -> Any:
    """`mask`, or `mask(tree)`: booleans in the structure of `tree` or in a prefix of it.

    Raises:
      InvalidValue: it has another structure.
      InvalidType: a leaf of it is not a boolean.
    """
    # As in Optax, a tree of booleans may itself be callable.
    functions = jax.tree.leaves(mask)
    is_function = bool(functions) and all(map(callable, functions))
    truths = mask(tree) if is_function else mask
    for path, truth in flatten_with_path(truths)[0]:
        is_array = dtype_of(truth) == np.bool_ and np.shape(truth) == () and not is_traced(truth)
        if not isinstance(truth, bool) and not is_array:
            raise InvalidType(
                where=f"mask: {leaf_name(path)}",
                expected="True or False",
                found=f"{type_name(truth)} {truth!r}",
                remedy="" if not isinstance(truth, str) else "labels are for optax.partition",
            )
    try:
        return jax.tree.map(lambda truth, _: bool(truth), truths, tree)
    except (ValueError, TypeError) as error:
        raise InvalidValue(
            where="mask",
            expected="a tree like the parameters, a prefix of one, or a function that returns one",
            found=f"a different structure; {describe_difference(truths, tree)}",
        ) from error


def _other_structure(updates: optax.Updates, like: optax.Params, name: str) -> InvalidValue:
    return InvalidValue(
        f"the structure of the gradients differs from that of {name}; "
        f"{describe_difference(updates, like)}",
        remedy="Initialise the optimizer with the parameters that you differentiate",
    )
