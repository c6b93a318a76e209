"""Which part of a step's functions and arguments is traced, and which is compiled in.

What is compiled in must not change, or a later step would silently use its old value. So a function
is taken apart like a tree: arrays within a bound method's object, a `partial` or a frozen dataclass
are traced, other values are compared at each step, and an object that can change undetected is an
error.
"""

import dataclasses
import enum
import functools
import inspect
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from adamx.base.dtypes import type_name
from adamx.base.errors import InvalidType
from adamx.base.trees import flatten_with_path, path_name

__all__ = ["ARRAYS", "TRACEABLE", "Static", "check_array", "merge", "split"]

# These are traced in what a function holds. A NumPy scalar, like a Python number, may be a size.
ARRAYS = (jax.Array, np.ndarray)
TRACEABLE = (*ARRAYS, np.generic, int, float, complex)

_OTHER_DTYPES = (np.dtype(np.bool_), jax.dtypes.float0)

# What is assumed not to change as long as it is the same object.
_FIXED = (FunctionType, BuiltinFunctionType, np.ufunc, type, ModuleType, enum.Enum)

# What changes with each use, though it has no attributes.
_USED_UP = (Iterator, np.random.Generator, np.random.RandomState)


class Static(NamedTuple):
    """The part of a tree that is compiled in.

    One of `parts` is None for a traced leaf, an `_Opened`, or a leaf with its type (1 == True).
    """

    treedef: Any
    parts: tuple[Any, ...]


class _Opened(NamedTuple):
    """A leaf that was taken apart: its class and its contents."""

    cls: type
    contents: Static


def split(tree: Any, kinds: tuple[type, ...]) -> tuple[list[Any], Static]:
    """The leaves of `tree` that are traced, and the rest.

    Args:
      tree: functions are leaves of it, or it is one.
      kinds: the types of leaves to trace. In what a function holds, arrays are traced.

    Raises:
      InvalidType: a leaf is an array of another library than JAX and NumPy, has a dtype that JAX
        lacks, or can change undetected. The message names its path.
    """
    traced, parts = [], []
    # JAX takes a Partial for a tree, and does not look into its function.
    is_leaf = _is_partial if kinds else None  # without kinds, the tree keeps its structure
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_leaf)
    for i, leaf in enumerate(leaves):
        try:
            arrays, part = _split_leaf(leaf, kinds)
        except InvalidType as error:  # paths take time, so only on an error
            path, _ = flatten_with_path(tree, is_leaf=is_leaf)[0][i]
            raise error.within(path_name(path)) if path else error from None
        traced += arrays
        parts.append(part)
    return traced, Static(treedef, tuple(parts))


def _split_leaf(leaf: Any, kinds: tuple[type, ...]) -> tuple[list[Any], Any]:
    """The traced values in the leaf, and its part in a `Static`."""
    check_array(leaf)
    if isinstance(leaf, kinds) and not isinstance(leaf, bool):
        return [leaf], None
    opened = _take_apart(leaf)
    if opened is None:
        _check_fixed(leaf)
        return [], (type(leaf), leaf)
    arrays, contents = split(opened, kinds if isinstance(leaf, Partial) else ARRAYS)
    return arrays, _Opened(type(leaf), contents)


def merge(traced: Iterator[Any], static: Static) -> Any:
    """The inverse of `split`: takes from `traced` what it has to put into the tree."""
    leaves = []
    for part in static.parts:
        if part is None:
            leaves.append(next(traced))
        elif isinstance(part, _Opened):
            leaves.append(_put_together(part.cls, merge(traced, part.contents)))
        else:
            leaves.append(part[1])
    return static.treedef.unflatten(leaves)


def check_array(x: Any) -> None:
    """Raise if `x` is an array, but not one that JAX takes."""
    if isinstance(x, jax.Array):
        return
    if isinstance(x, np.ma.MaskedArray):
        raise InvalidType(
            expected="an array without a mask",
            found="a masked array",
            remedy="fill it with x.filled(value)",
        )
    if isinstance(x, np.ndarray | np.generic):
        dtype = np.dtype(x.dtype)
        is_known = jnp.issubdtype(dtype, np.number) or dtype in _OTHER_DTYPES
        if not is_known or dtype.char in "gG" or not dtype.isnative:
            raise InvalidType(
                expected="an array of a dtype that JAX supports",
                found=f"one of {dtype}",
                remedy="convert it, for example with x.astype(numpy.float32)",
            )
    elif isinstance(x, jax.ShapeDtypeStruct):
        raise InvalidType(expected="an array with values", found="a ShapeDtypeStruct")
    elif hasattr(type(x), "__array__") or hasattr(type(x), "__dlpack__"):
        package = type(x).__module__.partition(".")[0]
        conversion = "x.detach().cpu().numpy()" if package == "torch" else "numpy.asarray(x)"
        raise InvalidType(
            expected="an array of JAX or NumPy",
            found=f"a {type_name(x)}",
            remedy=f"convert it with {conversion}",
        )


def _is_partial(x: Any) -> bool:
    return isinstance(x, Partial)


def _is_frozen_dataclass(x: Any) -> bool:
    cls = type(x)
    return dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]


def _take_apart(x: Any) -> Any:
    """The tree that `x`, a leaf, is made of; None if it is not taken apart."""
    if isinstance(x, functools.partial):
        return {"function": x.func, "arguments": x.args, "keywords": x.keywords}
    if isinstance(x, MethodType):
        return {"function": x.__func__, "self": x.__self__}
    return _attributes(x) if _is_frozen_dataclass(x) else None


def _put_together(cls: type, contents: Any) -> Any:
    """The inverse of `_take_apart`."""
    if issubclass(cls, functools.partial):
        return cls(contents["function"], *contents["arguments"], **contents["keywords"])
    if cls is MethodType:
        return MethodType(contents["function"], contents["self"])
    x = object.__new__(cls)
    for name, value in contents.items():
        object.__setattr__(x, name, value)
    return x


def _attributes(x: Any) -> dict[str, Any]:
    """What is set in an object, in its `__dict__` and in slots."""
    state: Any = object.__getstate__(x)
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {**(own or {}), **(slots or {})}


def _check_fixed(x: Any) -> None:
    """Raise unless `x` cannot change, or comparing its value with the compiled one detects it."""
    if callable(x) and hasattr(x, "__wrapped__"):
        x = inspect.unwrap(x)  # what decorators such as jax.jit wrap
    if isinstance(x, _FIXED) or type(x).__module__.partition(".")[0] in ("jax", "jaxlib"):
        return
    if isinstance(x, MethodType | functools.partial):  # only within a decorator
        split(x, ARRAYS)
        return
    try:
        hash(x)
    except TypeError as error:
        raise _changeable(x) from error
    # Without an `__eq__` of its class an object equals only itself, whatever its attributes.
    if isinstance(x, _USED_UP) or (type(x).__eq__ is object.__eq__ and _attributes(x)):
        raise _changeable(x)


def _changeable(x: Any) -> InvalidType:
    name = type(x).__name__
    return InvalidType(
        expected="a function, or an object that is immutable or compared by value",
        found=f"{_with_article(name)}, whose later changes a compiled step would not see",
        remedy="Pass the arrays and numbers that change as arguments after the loss, or use a "
        "function, a frozen dataclass or a pytree instead",
    )


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
