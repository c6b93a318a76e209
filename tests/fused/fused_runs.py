"""One fused step beside `update` and `optax.apply_updates` on the same input, and how far apart."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx

LR = 1e-2


class Case(NamedTuple):
    """The options of a step; the dtypes of parameters, gradients and moments."""

    convention: str = "optax"
    amsgrad: bool = False
    decay: str | None = None  # "gradient" or "decoupled"
    clip: float | None = None
    packed: bool = False
    dtype: str = "float32"
    g_dtype: str = "float32"
    mu_dtype: str | None = None
    nu_dtype: str | None = None

    def fused(self, **others) -> adamx.FusedOptimizer:
        """The fused optimizer."""
        arguments = {
            "learning_rate": LR,
            "mu_dtype": self.mu_dtype,
            "nu_dtype": self.nu_dtype,
            "amsgrad": self.amsgrad,
            "convention": self.convention,
            "weight_decay": 0.1 if self.decay else 0.0,
            "decoupled": self.decay == "decoupled",
            "clip_global_norm": self.clip,
            "packed": self.packed,
        }
        return adamx.fused_adam(**(arguments | others))

    def chain(self) -> optax.GradientTransformationExtraArgs:
        """Optax's chain of the same parts."""
        parts = []
        if self.clip is not None:
            parts.append(optax.clip_by_global_norm(self.clip))
        if self.decay == "gradient":
            parts.append(optax.add_decayed_weights(0.1))
        adam = adamx.scale_by_adam(
            mu_dtype=self.mu_dtype,
            nu_dtype=self.nu_dtype,
            amsgrad=self.amsgrad,
            convention=self.convention,
        )
        parts.append(adam)
        if self.decay == "decoupled":
            parts.append(optax.add_decayed_weights(0.1))
        return optax.chain(*parts, optax.scale_by_learning_rate(LR))


def adam_of(state: Any) -> Any:
    """The Adam state in the state of a chain."""
    return next(part for part in state if hasattr(part, "mu"))


def ulp(x: np.ndarray, dtype: Any) -> np.ndarray:
    """A unit in the last place of numbers of this size, at least of the smallest normal one."""
    info = jnp.finfo(dtype)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.maximum(np.abs(x), float(info.tiny))))
    return np.exp2(exponent) * float(info.eps)


def units(found: Any, expected: Any, scale: np.ndarray, dtype: Any = None) -> float:
    """The largest difference in units in the last place of the largest number that enters.

    NaN equals NaN and infinity itself; where one is and the other is not, it is infinite.
    """
    dtype = dtype or expected.dtype
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.fmax(np.fmax(np.abs(a), np.abs(b)), scale)
        difference = np.where(same, 0, np.abs(a - b) / ulp(size, dtype))
    return float(np.max(np.nan_to_num(difference, nan=np.inf, posinf=np.inf), initial=0))


class Distance(NamedTuple):
    """How far a step and its reference are apart, in units in the last place."""

    p: float
    mu: float
    nu: float
    nu_max: float


class Pair:
    """A fused step and its reference, each compiled once.

    `wide` is the dtype in which the reference gets gradients and parameters, so that it rounds only
    at the end; None for their own, in which Optax's parts round their results as well.
    """

    def __init__(self, case: Case, wide: Any = None) -> None:
        self.case, self.wide, self.tx = case, wide, case.chain()
        step = case.fused().step
        self.step = jax.jit(step)
        self.reference = jax.jit(self._reference)

    def _reference(self, grads, state, params):
        given = params
        if self.wide is not None:
            grads, given = (optax.tree.cast(tree, self.wide) for tree in (grads, params))
        updates, state = self.tx.update(grads, state, given)
        after = optax.apply_updates(given, updates)
        return jax.tree.map(lambda x, p: x.astype(p.dtype), after, params), state, updates

    def compare(self, grads: Any, state: Any, params: Any) -> tuple[Distance, Any, Any]:
        """One step from the same `state` (not packed) both ways.

        Returns:
          The distance, in units of the dtypes in which things are kept or, without `wide`, of the
          narrowest that the reference rounds to; and the reference's parameters and state.
        """
        case = self.case
        before = adamx.pack(state, params) if case.packed else state
        found_params, found = self.step(grads, params, before)
        if case.packed:
            found = adamx.unpack(found, params)
        after, expected, updates = self.reference(grads, state, params)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        dtypes = [
            [x.dtype for x in jax.tree.leaves(t)]
            for t in ((found_params, found), (after, expected))
        ]
        assert dtypes[0] == dtypes[1]
        mine, theirs, old = adam_of(found), adam_of(expected), adam_of(state)
        np.testing.assert_array_equal(mine.count, theirs.count)

        narrow = None
        if self.wide is None:
            narrow = max(case.dtype, case.g_dtype, key=lambda dtype: float(jnp.finfo(dtype).eps))
        g = jax.tree.map(magnitude, grads)
        if case.decay == "gradient":
            g = jax.tree.map(lambda x, p: x + 0.1 * magnitude(p), g, params)
        with np.errstate(over="ignore"):
            squares = jax.tree.map(np.square, g)
        # XLA itself compiles the divisions of `update` in several ways, depending on the tree,
        # whose updates are up to 4 units of their own apart. It shows where parameters are near 0.
        twice = jax.tree.map(lambda u: 2 * magnitude(u), updates)
        distance = Distance(
            worst(narrow, found_params, after, params, twice),
            worst(narrow, mine.mu, theirs.mu, old.mu, g),
            worst(narrow, mine.nu, theirs.nu, old.nu, squares),
            worst(narrow, mine.nu_max, theirs.nu_max, old.nu_max, squares) if case.amsgrad else 0.0,
        )
        return distance, after, expected


def magnitude(x: Any) -> np.ndarray:
    return np.abs(np.asarray(x, np.float64))


def worst(dtype: Any, found: Any, expected: Any, *scales: Any) -> float:
    """The largest `units` over the leaves of trees."""
    rows = zip(*map(jax.tree.leaves, (found, expected, *scales)), strict=True)
    return max(
        units(a, b, np.fmax.reduce([magnitude(scale) for scale in row]), dtype)
        for a, b, *row in rows
    )


REST = "2500"  # the leaf whose gradients make the norm a round number


def tree(rng, dtype, scale=1.0):
    sizes = (1600, 51, 1, int(REST))
    return {str(n): jnp.asarray(scale * rng.standard_normal(n), dtype) for n in sizes}


def gradients(rng, case, params):
    """Small whole numbers over 8, whose norm is 64 in whatever order their squares are added up.

    So clipping to 16 divides by 4, without rounding.
    """
    whole = {name: rng.integers(-16, 17, p.shape) for name, p in params.items()}
    missing = 512**2 - sum(int(np.sum(x**2)) for name, x in whole.items() if name != REST)
    eights, ones = divmod(missing, 64)
    n = whole[REST].size
    assert 0 <= eights <= n - 64
    whole[REST] = np.repeat([8, 1, 0], [eights, ones, n - eights - ones])
    return {name: jnp.asarray(x / 8, case.g_dtype) for name, x in whole.items()}
