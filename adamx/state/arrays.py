"""The Adam state within any Optax state as NumPy arrays, by order and by path."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.coded import CodedArray, CodedLeaf
from adamx.base.dtypes import type_name
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.trees import listed
from adamx.state.find import named_arrays, replace_arrays

__all__ = ["from_numpy", "get_weights", "set_weights", "to_numpy"]

_UNCHANGED = "The state is unchanged"
_LEAVE_OUT = f"Leave out the unknown ones. {_UNCHANGED}"
_BEGIN_ANEW = (
    "If these parameters were frozen, begin their moments anew, with fresh = tx.init(params): "
    f"from_numpy(fresh, {{**to_numpy(fresh), **arrays}}). {_UNCHANGED}"
)
_OF_MEMBERS = (
    "If the weights are those of an ensemble or of replicas, take one member: array[0] of each",
    "The state is that of an ensemble: stack the weights of its members",
)
_ML_DTYPE = 2  # what `isbuiltin` is for the dtypes of ml_dtypes: bfloat16, float8


def get_weights(state: optax.OptState) -> list[np.ndarray]:
    """The Adam state within `state` as a list of arrays, in Keras's order.

    Args:
      state: any Optax state that holds an Adam state: of a chain, `inject_hyperparams`,
        `MultiSteps`, or a partition, whose parts are merged.

    Returns:
      [count, every mu, every nu], with AMSGrad then every maximum of nu: copies, leaves in the
      order of the parameters' tree, None and masked leaves left out. Shapes and dtypes are the
      state's, but bfloat16 and float8, which NumPy lacks, become float32 without loss. So do
      moments in 8 bits: these arrays remember their codes until they are copied or changed.

    Raises:
      ValueError: there is no Adam state, or there are several for one parameter, or they are at
        different steps; two parameters have the same path; an array was deleted, or has parts that
        only another process holds.
    """
    return list(to_numpy(state).values())


def set_weights(state: optax.OptState, weights: Iterable[np.ndarray]) -> optax.OptState:
    """A copy of `state` whose Adam state has these weights: the inverse of `get_weights`.

    Counters of the same steps as Adam's (in `optax.scale_by_schedule`, scheduled weight decay,
    `inject_hyperparams`, `stochastic_round`) change by as many steps as Adam's count, so that a
    learning rate continues where it was. Everything else in `state` is kept: an average of the
    parameters, gradients that `MultiSteps` has accumulated, a learning rate that was set by hand,
    the key of `stochastic_round`, the residuals of `residual_params`. To continue a run exactly,
    build its transformation with the same seeds: `nu_key` is in no state.

    Args:
      state: as for `get_weights`; gives the structure, dtypes and shardings. It is not changed.
      weights: as `get_weights` returns them. Converted to the dtypes of `state`. For moments in 8
        bits, arrays that remember codes of the same group give these; others are rounded at random.

    Returns:
      The new state.

    Raises:
      ValueError: the number of arrays or a shape differs; a count is not a whole number from 0 to
        the largest of its dtype; a second moment is negative; a value is not a number, too large
        for the dtype, masked, or an object that NumPy cannot read; a schedule counts the calls of a
        wrapper such as `MultiSteps`, of which only some reach Adam. The message names the array.
      TypeError: `weights` is not a list; for a mapping see `from_numpy`.
    """
    try:
        iterator = None if isinstance(weights, str | bytes | Mapping | Set) else iter(weights)
    except TypeError:
        iterator = None
    if iterator is None:
        is_mapping = isinstance(weights, Mapping)
        raise InvalidType(
            where="weights",
            expected="a list of arrays, as get_weights returns it",
            found="a mapping" if is_mapping else _describe(weights),
            remedy="use from_numpy" if is_mapping else _UNCHANGED,
        )
    leaves, values = named_arrays(state), list(iterator)
    if len(values) != len(leaves):
        raise InvalidValue(
            expected=f"{len(leaves)} arrays ({listed(leaves)})",
            found=len(values),
            remedy=_UNCHANGED,
        )
    return _replace(state, leaves, dict(zip(leaves, values, strict=True)))


def to_numpy(state: optax.OptState) -> dict[str, np.ndarray]:
    """The Adam state within `state` by path, ready for `np.savez`.

    Flax's boxes are not part of a path: it is the same for a model of NNX, its pure state and a
    tree without boxes. `nnx.state(optimizer)` and other mappings with the fields of a state count
    as one.

    Args:
      state: as for `get_weights`.

    Returns:
      A dictionary with the keys `count`, `mu/<path>`, `nu/<path>` and with AMSGrad
      `nu_max/<path>`, where the path is that of the parameter, such as `dense/kernel`; of a tree
      that is one array, `mu` and `nu`. Order, shapes and dtypes as for `get_weights`.

    Raises:
      ValueError: as `get_weights`.

    Example:
      >>> import adamx, jax.numpy as jnp
      >>> state = adamx.adam(1e-3).init({"dense": {"kernel": jnp.ones((2, 3))}})
      >>> {path: array.shape for path, array in adamx.to_numpy(state).items()}
      {'count': (), 'mu/dense/kernel': (2, 3), 'nu/dense/kernel': (2, 3)}
    """
    return {name: _to_host(name, leaf) for name, leaf in named_arrays(state).items()}


def from_numpy(state: optax.OptState, arrays: Mapping[str, np.ndarray]) -> optax.OptState:
    """A copy of `state` whose Adam state has these arrays: the inverse of `to_numpy`.

    It also converts a state to another form of the same tree. An `nnx.Optimizer` cannot take a
    state of arrays without boxes, but takes the result of this::

        arrays = adamx.to_numpy(state)  # that `Checkpoint.restore` returned, say
        optimizer.opt_state = adamx.from_numpy(optimizer.opt_state, arrays)

    Args:
      state: as for `set_weights`, which also says what happens to everything else in it.
      arrays: as `to_numpy` returns them, or as `np.load` reads them back. `mu/kernel/value`, as
        files may call an array of Flax NNX, means `mu/kernel`.

    Returns:
      The new state.

    Raises:
      ValueError: a name is missing or unknown, or as `set_weights`.
      TypeError: `arrays` is not a mapping; see `set_weights`.
    """
    if not isinstance(arrays, Mapping):
        raise InvalidType(
            where="arrays",
            expected="a mapping from names, as to_numpy returns it",
            found=_describe(arrays),
            remedy="for a list use set_weights" if isinstance(arrays, list | tuple) else _UNCHANGED,
        )
    leaves = named_arrays(state)
    names = {_drop_box(name, leaves, arrays): name for name in arrays}
    missing = sorted(leaves.keys() - names.keys())
    unknown = sorted(map(str, names.keys() - leaves.keys()))
    if missing or unknown:
        raise InvalidValue(
            f"expected the arrays {listed(leaves)}; missing: {listed(missing) or 'none'}; "
            f"unknown: {listed(unknown) or 'none'}",
            remedy=_advise(missing, unknown),
        )
    return _replace(state, leaves, {name: arrays[names[name]] for name in leaves})


def _advise(missing: Sequence[str], unknown: Sequence[str]) -> str:
    """What to do about names that are missing or unknown."""
    if not missing:
        return _LEAVE_OUT
    fields = {name.partition("/")[0] for name in missing}
    return _BEGIN_ANEW if not unknown and "mu" in fields and "count" not in fields else _UNCHANGED


def _drop_box(name: Any, leaves: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """`mu/kernel` for `mu/kernel/value`: what older files call the arrays of Flax NNX."""
    if not isinstance(name, str) or name in leaves:
        return name
    short = name.removesuffix("/value")
    return short if short in leaves and short not in arrays else name


def _replace(
    state: optax.OptState, leaves: Mapping[str, Any], arrays: Mapping[str, Any]
) -> optax.OptState:
    converted = {name: _convert(name, leaf, arrays[name]) for name, leaf in leaves.items()}
    return replace_arrays(state, converted, _copy_like)


def _to_host(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, CodedLeaf):
        for part in jax.tree.leaves(leaf.coded):
            _check_whole(name, part)
        return leaf.read()
    _check_whole(name, leaf)
    array = np.array(leaf)  # a copy, which outlives a donated state
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


def _check_whole(name: str, leaf: Any) -> None:
    whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    if not whole:
        raise InvalidValue(
            where=name,
            expected="an array that is entirely on this process",
            found="one with shards on other processes",
            remedy="gather it with jax.experimental.multihost_utils.process_allgather",
        )


def _convert(name: str, leaf: Any, value: Any) -> np.ndarray:
    """`value`, or a copy with `leaf`'s dtype; with its codes, if `leaf` is in 8 bits."""
    given, dtype = value, np.dtype(leaf.dtype)

    def fail(expected: str, found: object, remedy: str = "") -> InvalidValue:
        remedy = f"{remedy}. {_UNCHANGED}" if remedy else _UNCHANGED
        return InvalidValue(where=name, expected=expected, found=found, remedy=remedy)

    value = _read(value, dtype, fail)
    if value.shape != leaf.shape:
        is_of_members = name == "count" and () in (value.shape, leaf.shape)
        remedy = _OF_MEMBERS[value.shape == ()] if is_of_members else ""
        raise fail(f"shape {leaf.shape}", value.shape, remedy)
    if name == "count":
        last = np.iinfo(dtype).max
        wrong = ~((value >= 0) & (value <= last) & (value == np.floor(value)))
        if np.any(wrong):
            raise fail(f"whole numbers from 0 to {last}", value[wrong].flat[0])
    elif name.startswith("nu") and np.any(value < 0):
        raise fail("a second moment of at least 0", value[value < 0].flat[0])
    with np.errstate(over="ignore"):
        array = value.astype(dtype, copy=False)
    if dtype.kind != "i":
        wrong = np.isfinite(value) & ~np.isfinite(array)
        if np.any(wrong):
            raise fail(f"numbers in the range of {dtype}", value[wrong].flat[0])
    is_coded = isinstance(leaf, CodedLeaf) and isinstance(given, CodedArray)
    return given if is_coded and given.dtype == dtype else array


def _read(value: Any, dtype: np.dtype, fail: Callable[..., InvalidValue]) -> np.ndarray:
    """`value` as an array of numbers that may become ones of `dtype`."""
    if np.ma.is_masked(value):
        raise fail("an array without masked entries", f"{np.ma.count_masked(value)} masked")
    if getattr(value, "is_meta", False):
        raise fail("an array", "a tensor on torch's meta device, which has no values")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise fail("an array", "rows of unequal length") from error
    except (TypeError, RuntimeError) as error:  # a tensor of torch, an array that was deleted
        found = f"a {type_name(value)} that NumPy cannot read"
        remedy = "Pass tensor.detach().cpu().float().numpy()" if hasattr(value, "detach") else ""
        raise fail("an array", found, remedy) from error
    if array.dtype.kind == "c" and dtype.kind != "c" and not np.any(np.imag(array)):
        array = np.real(array)  # Optax's second moment of complex parameters
    kinds = "biufc" if dtype.kind == "c" else "biuf"
    if array.dtype.kind not in kinds and array.dtype.isbuiltin != _ML_DTYPE:
        is_array = isinstance(value, np.ndarray) or array.ndim
        raise fail(
            f"{'complex' if dtype.kind == 'c' else 'real'} numbers",
            f"an array of {array.dtype}" if is_array else _describe(value),
        )
    return array


def _describe(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _copy_like(leaf: Any, array: np.ndarray) -> Any:
    """A copy of `array` with the dtype, and on the devices, of `leaf`."""
    if isinstance(leaf, CodedLeaf):
        return array
    array = array.astype(leaf.dtype)
    if not isinstance(leaf, jax.Array):
        return array
    if leaf.committed:
        return jax.device_put(array, leaf.sharding, may_alias=False)
    return jnp.array(array)
