"""Which moments are kept in 8 bits, and the trees of a state that holds such moments."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.blockwise import EightBitMoment, decode, encode, group_size, zeros
from adamx.base.coded import Coded, CodedLeaf, find_codes
from adamx.base.dtypes import number_kind, type_name
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.random_bits import check_key, fold_in, key_data, leaf_keys
from adamx.base.trees import flatten_with_path, path_name

__all__ = [
    "GROUPS",
    "EightBit",
    "check_moments",
    "decode_moments",
    "encode_like",
    "encode_moments",
    "expected_forms",
    "is_eight_bit",
    "mark_moments",
    "moment_keys",
    "wide_like",
    "zero_moments",
]

GROUPS = tuple(2**n for n in range(3, 11))


@dataclasses.dataclass(frozen=True, eq=False)
class EightBit:
    """Keep both moments in 8 bits, with a scale for each group: 2.19 bytes for a parameter.

    `moments="8bit"` is `moments=EightBit()`. A parameter whose last axis is shorter than `group`,
    that is complex or wider than float32, or that `min_size` or `keep` excludes, has plain arrays.

    An update can be differentiated by its gradients. Through the next state no derivative passes:
    codes are integers. Under `jax.shard_map`, parts of the last axis must be whole groups.

    Attributes:
      group: how many elements along the last axis share their scales: a power of two from 8 to
        1024. A group has 48 bits of scales: 48 / group bits for a parameter.
      key: a seed or a key, as for `stochastic_round`, from which moments are rounded at random.
      min_size: the number of elements of the smallest parameter whose moments are in 8 bits.
      keep: which parameters keep float32 moments: a function of a path such as
        `"embed/embedding"`, or names. A name is that of a path or of one key in it.

    Raises:
      ValueError, TypeError: an attribute is out of range or of the wrong type.

    Example:
      >>> import adamx, jax, jax.numpy as jnp
      >>> tx = adamx.adam(1e-3, moments=adamx.EightBit(keep=["embed"]))
      >>> state = tx.init({"embed": jnp.ones((64, 64)), "dense": jnp.ones((64, 64))})
      >>> [x.dtype.name for x in jax.tree.leaves(state[0].nu)]
      ['uint8', 'uint32', 'float32']
    """

    __module__ = "adamx"

    group: int = 32
    key: chex.ArrayDevice | int = 0
    min_size: int = 4096
    keep: Callable[[str], bool] | Collection[str] = ()

    def __post_init__(self) -> None:
        """See `Raises`."""
        if self.group not in GROUPS:
            raise InvalidValue(
                where="group",
                expected=f"a power of two from {GROUPS[0]} to {GROUPS[-1]}",
                found=repr(self.group),
            )
        check_key("key", self.key)
        if not isinstance(self.min_size, int) or self.min_size < 0:
            raise InvalidValue(
                where="min_size", expected="a number of elements", found=repr(self.min_size)
            )
        if not isinstance(self.keep, str) and isinstance(self.keep, Iterable):
            object.__setattr__(self, "keep", tuple(self.keep))
        if isinstance(self.keep, str) or not (
            callable(self.keep) or all(isinstance(name, str) for name in self.keep)
        ):
            raise InvalidType(
                where="keep",
                expected="a function of a path, or a list of names",
                found=type_name(self.keep),
            )

    def takes(self, path: jax.tree_util.KeyPath, param: Any) -> bool:
        """Whether the moments of this parameter are in 8 bits."""
        shape, name = jnp.shape(param), path_name(path)
        if not shape or shape[-1] < self.group or math.prod(shape) < max(self.min_size, 1):
            return False
        if number_kind(param) != "real" or jnp.result_type(param).itemsize > 4:
            return False
        if callable(self.keep):
            return not self.keep(name)
        return {name, *name.split("/")}.isdisjoint(self.keep)


def check_moments(moments: EightBit | Literal["8bit"] | None) -> EightBit | None:
    """The argument `moments` in one form; raise for anything else."""
    if moments == "8bit":
        return EightBit()
    if moments is not None and not isinstance(moments, EightBit):
        raise InvalidType(
            where="moments",
            expected='None, "8bit" or an EightBit',
            found=repr(moments) if isinstance(moments, str) else type_name(moments),
        )
    return moments


def is_eight_bit(node: object) -> bool:
    """Whether `node` is a moment in 8 bits, and not an array.

    A mapping with its fields counts as one: `nnx.state` and checkpoints that are restored without a
    target turn named tuples into mappings.
    """
    if not isinstance(node, Mapping):
        return isinstance(node, EightBitMoment)
    if node.keys() != {"codes", "scales"}:
        return False
    dtypes = [str(getattr(x, "dtype", "")) for x in jax.tree.leaves(node)]
    return dtypes in (["int8", "bfloat16"], ["uint8", "uint32"])


def zero_moments(how: EightBit, params: Any, mu: Any, nu: Any) -> tuple[Any, Any]:
    """The trees `mu` and `nu` of zeros, with the moments in 8 bits that `how` takes."""
    return _replace(how, params, mu, nu, lambda p, _m, _v, _i: zeros(p, how.group))


def encode_moments(how: EightBit, count: Any, mu: Any, nu: Any) -> tuple[Any, Any]:
    """The trees `mu` and `nu` with the leaves in 8 bits that `how` takes; those that are stay."""
    keys = moment_keys(how, count, len(jax.tree.leaves(mu, is_leaf=is_eight_bit)))
    return _replace(how, mu, mu, nu, lambda _, m, v, i: _encode(m, v, group=how.group, key=keys[i]))


def _replace(
    how: EightBit,
    params: Any,
    mu: Any,
    nu: Any,
    make: Callable[[Any, Any, Any, int], tuple[EightBitMoment, EightBitMoment]],
) -> tuple[Any, Any]:
    keyed, treedef = flatten_with_path(params, is_eight_bit)
    rows = list(zip(treedef.flatten_up_to(mu), treedef.flatten_up_to(nu), strict=True))
    for i, (path, param) in enumerate(keyed):
        if not is_eight_bit(param) and how.takes(path, param):
            rows[i] = make(param, *rows[i], i)
    m, v = zip(*rows, strict=True) if rows else ((), ())
    return treedef.unflatten(m), treedef.unflatten(v)


def decode_moments(tree: Any) -> Any:
    """A state, or another tree, with float32 arrays in place of its moments in 8 bits."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_eight_bit)
    for i, k in _pair(leaves):
        leaves[i], leaves[k] = _decode(_open(leaves[i]), _open(leaves[k]))
    return treedef.unflatten(leaves)


def mark_moments(tree: Any) -> Any:
    """A state, or another tree, with a `CodedLeaf` in place of each of its moments in 8 bits."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_eight_bit)
    for i, k in _pair(leaves):
        leaves[i], leaves[k] = CodedLeaf.of(Coded(_open(leaves[i]), _open(leaves[k])))
    return treedef.unflatten(leaves)


def encode_like(tree: Any, wide: Any) -> Any:
    """`wide`, with moments in 8 bits where `tree` has them, on the devices where it has them.

    Args:
      tree: a state, or another tree.
      wide: has arrays of NumPy in place of its moments in 8 bits. They are rounded at random,
        unless they have codes of this form. One leaf after the other is in float32 on a device.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_eight_bit)
    new, keys = treedef.flatten_up_to(wide), leaf_keys(key_data(0), 0, len(leaves))
    for i, k in _pair(leaves):
        old, moments = Coded(_open(leaves[i]), _open(leaves[k])), find_codes(new[i], new[k])
        if moments is None or moments.forms != old.forms:
            m, v = (_put_like(old.nu.codes, np.asarray(x)) for x in (new[i], new[k]))
            moments = _encode(m, v, group=group_size(old.nu), key=keys[i])
        for at, moment in zip((i, k), moments, strict=True):
            arrays, structure = jax.tree.flatten(leaves[at])
            new[at] = structure.unflatten(map(_put_like, arrays, moment))
    return treedef.unflatten(new)


_encode, _decode = jax.jit(encode, static_argnames="group"), jax.jit(decode)


@functools.cache
def expected_forms(shape: tuple[int, ...], group: int) -> Coded:
    """The shapes and dtypes of the codes and scales of a parameter, as `jax.ShapeDtypeStruct`."""
    param = jax.ShapeDtypeStruct(shape, jnp.float32)
    return Coded(*jax.eval_shape(lambda p: zeros(p, group), param))


def _pair(leaves: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Where the two moments of each leaf are: within a state they are in the same order."""
    of_kind: dict[str, list[int]] = {"int8": [], "uint8": []}
    for i, leaf in enumerate(leaves):
        if is_eight_bit(leaf):
            of_kind[_open(leaf).codes.dtype.name].append(i)
    return zip(of_kind["int8"], of_kind["uint8"], strict=True)


def _open(node: Any) -> EightBitMoment:
    """The arrays of a moment, without Flax's boxes."""
    return EightBitMoment(*jax.tree.leaves(node))


def _put_like(old: Any, new: Any) -> Any:
    """A copy of `new` on the devices of `old`."""
    if not isinstance(old, jax.Array):
        return np.array(new)
    if old.committed:
        return jax.device_put(new, old.sharding, may_alias=False)
    return jnp.array(new)


def wide_like(tree: Any) -> Any:
    """The tree, with the shape and dtype of float32 arrays in place of moments in 8 bits."""

    def widen(x: Any) -> Any:
        return jax.ShapeDtypeStruct(_open(x).codes.shape, jnp.float32) if is_eight_bit(x) else x

    return jax.tree.map(widen, tree, is_leaf=is_eight_bit)


def moment_keys(how: EightBit | None, count: chex.Numeric, leaves: int) -> chex.ArrayDevice:
    """The keys of one step's moments, uint32[leaves, 2]; raise if nobody has asked for 8 bits.

    They differ from those of `stochastic_round` and of `nu_key` with the same key.
    """
    if how is None:
        raise InvalidType(
            where="state",
            expected="moments that are arrays",
            found="moments in 8 bits",
            remedy='pass moments="8bit" to continue in 8 bits, or adamx.dequantize_moments(state)',
        )
    return leaf_keys(fold_in(key_data(how.key), np.uint32(2**32 - 2)), count, leaves)
