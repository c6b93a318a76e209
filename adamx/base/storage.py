"""How a moment is kept between steps, and one step of one leaf.

A moment is computed in float32 or wider. Between steps it may be kept in fewer bits: a step knows
this only through `Storage`. A new way of keeping moments is one more class here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import chex
import jax.numpy as jnp
import numpy as np

from adamx.base import numerics
from adamx.base.blockwise import step_codes
from adamx.base.dtypes import complex_dtype, compute_dtype
from adamx.base.numerics import Convention, Scalars
from adamx.base.random_bits import round_at_random

__all__ = ["CAST", "Cast", "CastAtRandom", "Codes", "Storage", "step_leaf", "wide_dtype"]


class Storage(Protocol):
    """How one moment is kept. `stored` is what a state holds for it: an array or a tree of arrays.

    Where possible, a storage depends on `stored` alone, so that a state that was made elsewhere,
    with other dtypes, continues in them.
    """

    def zeros(self, param: Any, dtype: np.dtype) -> Any:
        """The stored form of a moment of zeros: the shape of `param`, the precision of `dtype`."""
        ...

    def dtype(self, stored: Any) -> np.dtype:
        """The floating-point or complex dtype whose precision `stored` has."""
        ...

    def load(self, stored: Any, dtype: np.dtype) -> chex.ArrayDevice:
        """The moment as an array of `dtype`, which is as wide as `self.dtype(stored)` or wider."""
        ...

    def store(self, moment: chex.ArrayDevice, stored: Any) -> Any:
        """`moment` in the form and dtypes of `stored`, which it replaces in the state."""
        ...


class Cast(NamedTuple):
    """An array of any floating-point dtype: as it is, or rounded to nearest."""

    def zeros(self, param: Any, dtype: np.dtype) -> chex.ArrayDevice:
        """See `Storage`."""
        return jnp.zeros_like(param, dtype=dtype)

    def dtype(self, stored: Any) -> np.dtype:
        """See `Storage`."""
        return jnp.result_type(stored)

    def load(self, stored: Any, dtype: np.dtype) -> chex.ArrayDevice:
        """See `Storage`; of a complex array and a real dtype, the real part."""
        array = jnp.asarray(stored)
        if jnp.iscomplexobj(array) and not jnp.issubdtype(dtype, jnp.complexfloating):
            # Optax keeps the second moment of complex parameters as complex numbers.
            array = jnp.real(array)
        return array.astype(dtype)

    def store(self, moment: chex.ArrayDevice, stored: Any) -> chex.ArrayDevice:
        """See `Storage`."""
        return moment.astype(jnp.result_type(stored))


class CastAtRandom(NamedTuple):
    """`Cast`, but rounding to bfloat16 is at random and keeps the mean; others to nearest.

    Attributes:
      key: uint32[2], one for each leaf and step.
    """

    key: chex.ArrayDevice

    zeros, dtype, load = Cast.zeros, Cast.dtype, Cast.load

    def store(self, moment: chex.ArrayDevice, stored: Any) -> chex.ArrayDevice:
        """See `Storage`."""
        dtype = jnp.result_type(stored)
        if dtype != jnp.bfloat16:
            return moment.astype(dtype)
        return round_at_random(moment.astype(jnp.float32), self.key, dtype)


class Codes(NamedTuple):
    """Both moments of a leaf in 8 bits, which are loaded and stored together; see `blockwise`.

    Attributes:
      key: uint32[2], one for each leaf and step.
    """

    key: chex.ArrayDevice


CAST = Cast()


def wide_dtype(
    arrays: Sequence[Any], stored: Sequence[Any], storages: Sequence[Storage] | Codes
) -> np.dtype:
    """The dtype in which to step a leaf with these arrays and moments.

    That of the widest precision among them, float32 at least; complex if the first array is.
    """
    dtypes = [jnp.result_type(x) for x in arrays]
    if not isinstance(storages, Codes):
        dtypes += [storage.dtype(x) for storage, x in zip(storages, stored, strict=True)]
    real = compute_dtype(*dtypes)
    return complex_dtype(real) if jnp.issubdtype(dtypes[0], jnp.complexfloating) else real


def step_leaf(
    g: chex.ArrayDevice,
    stored: Sequence[Any],
    storages: Sequence[Storage] | Codes,
    scalars: Scalars,
    convention: Convention,
    m_correction_next: chex.ArrayDevice | None = None,
) -> tuple[chex.ArrayDevice, list[Any]]:
    """One step of Adam on one leaf: load its moments, update them, store them.

    Args:
      g: the gradient in the dtype to compute in, `wide_dtype`.
      stored: what the state holds of m, v and, with AMSGrad, v_max.
      storages: how each of them is kept, or how both are.
      scalars: in g's real dtype.
      convention, m_correction_next: see `numerics.step`.

    Returns:
      The direction, in g's dtype; and what the next state holds.
    """
    if isinstance(storages, Codes):
        direction, *coded = step_codes(
            g, stored[0], stored[1], scalars, convention, m_correction_next, storages.key
        )
        return direction.astype(g.dtype), coded
    real = jnp.finfo(g.dtype).dtype
    dtypes = [g.dtype, *([real] * (len(stored) - 1))]
    rows = list(zip(storages, stored, strict=True))
    moments = [s.load(x, dtype) for (s, x), dtype in zip(rows, dtypes, strict=True)]
    direction, moved = numerics.step(g, tuple(moments), scalars, convention, m_correction_next)
    return direction, [s.store(x, old) for (s, old), x in zip(rows, moved, strict=True)]
