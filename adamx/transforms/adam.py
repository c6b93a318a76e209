"""Adam as pure init/update pairs over trees of parameters, for chains of Optax."""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.adam_state import AdamState, AmsgradState, open_state
from adamx.base.arguments import AdamArguments, AdamWArguments, DirectionArguments, takes
from adamx.base.checks import check_gradients, check_params
from adamx.base.dtypes import first_moment_dtype, second_moment_dtype
from adamx.base.eight_bit import is_eight_bit, moment_keys, wide_like, zero_moments
from adamx.base.errors import InvalidType
from adamx.base.numerics import CONVENTIONS, Convention, Scalars, bias_correction, scalars
from adamx.base.random_bits import fold_in, key_data, leaf_keys
from adamx.base.rounded import check_not_rounded
from adamx.base.storage import CAST, CastAtRandom, Codes, Storage, step_leaf, wide_dtype
from adamx.base.trees import is_none
from adamx.transforms.scaling import add_weight_decay, scale_by_learning_rate

__all__ = ["AdamState", "AmsgradState", "adam", "adamw", "nu_keys", "scale_by_adam"]


@takes(DirectionArguments)
def scale_by_adam(arguments: DirectionArguments) -> optax.GradientTransformationExtraArgs:
    r"""Rescale gradients by Adam: the direction, without the learning rate.

    With gradient :math:`g_t` at step :math:`t = 1, 2, \ldots`, and with ``b1``, ``b2``, ``eps`` and
    ``eps_root`` for :math:`\beta_1, \beta_2, \varepsilon` and :math:`\bar\varepsilon`:

    .. math::

        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t \qquad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2 \qquad
        \hat m_t = \frac{m_t}{1-\beta_1^t} \qquad \hat v_t = \frac{v_t}{1-\beta_2^t}

    ============  =============================================================  ================
    convention    direction                                                      AMSGrad's maximum
    ============  =============================================================  ================
    ``"optax"``   :math:`\hat m_t / (\sqrt{\hat v_t+\bar\varepsilon}             of :math:`\hat v_t`
                  + \varepsilon)`
    ``"torch"``   the same                                                       of :math:`v_t`
    ``"keras"``   :math:`\frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}                  of :math:`v_t`
                  m_t / (\sqrt{v_t+\bar\varepsilon} + \varepsilon)`
    ============  =============================================================  ================

    Unless eps is 0, the two forms cannot be matched by changing eps. The state is Optax's own: you
    can switch between `optax.scale_by_adam` and this transformation at any step.

    Everything is computed in float32 or wider. Python and NumPy numbers keep their double
    precision until they meet an array. `optax.inject_hyperparams` turns them into arrays of the
    dtype of the parameters: name b1, b2, eps and eps_root in its `static_args` unless they are to
    change. In a float32 array, b1 or b2 above 1 - 3e-8 is 1, and an eps below 2.4e-38 is 0. adamx
    cannot detect this: directions are then NaN, with that eps only where gradients were always
    zero.

    Args:
      b1: decay rate of the first moment, in [0, 1). Scalar; may be traced, like the next three.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the square root, at least 0; with 0, gradients that were always zero give NaN.
      eps_root: added inside the square root, at least 0. Not needed to differentiate the update.
      mu_dtype: dtype of the first moment; None for the parameter's. Only its precision counts:
        complex parameters get the complex dtype of that precision.
      nu_dtype: real floating dtype of the second moment; None for that of the parameter's real
        part, but at least float32. In bfloat16 the increments of v are lost in rounding. In
        float16, with b2 = 0.999, those of gradients below 5e-3 are 0, and the direction becomes
        huge; a v above 65,504 is infinite.
      nu_key: a seed or a key, as for `stochastic_round`, to round a second moment in bfloat16 at
        random: its mean is kept and it does not stall. Both may have the same key, but each part
        of an `optax.partition` needs a different one.
        None to round to nearest. AMSGrad's maximum is always rounded to nearest.
      moments: "8bit", or an `EightBit`, for both moments in 8 bits: 2.19 bytes for a parameter.
      nesterov: use Nesterov's look-ahead instead of the first moment (Dozat 2016, algorithm 2 in
        Optax's form). Only with convention "optax": NAdam in Keras and torch differs from it.
      amsgrad: divide by the largest second moment so far (Reddi et al. 2018).
      convention: selects the form in the table. Complex parameters are an exception: torch steps
        their real and imaginary parts separately, each with its own second moment. To do the same,
        wrap the transformation in `optax.contrib.split_real_and_imaginary`.

    Returns:
      A transformation. `init(params)` takes a tree of floating-point or complex arrays and Python
      scalars, None for what is not trained, and returns `AdamState(count, mu, nu)`, with `amsgrad`
      `AmsgradState(count, mu, nu, nu_max)`: count an int32 scalar that stops at its largest value,
      the others trees like `params`. `update(updates, state, params=None)` returns the direction in
      the dtypes of `updates` and the next state in the dtypes of `state`. A leaf of `updates` that
      is None stays None, and its moments do not change.

    Raises:
      ValueError: a Python or NumPy number out of range, an array that is not a scalar, an unknown
        convention, a `nu_key` without `nu_dtype="bfloat16"`; in `update`, gradients whose shapes or
        structure differ from those of the state.
      TypeError: an argument of the wrong type or name; b1, b2, eps or eps_root as an array of less
        precision than float32; in `init`, a parameter that is neither floating-point nor complex;
        in `update`, such a gradient, or a real one for a complex parameter or the reverse.

    Example:
      >>> import adamx, jax.numpy as jnp
      >>> tx = adamx.scale_by_adam(convention="keras")
      >>> state = tx.init({"w": jnp.ones(2)})
      >>> direction, state = tx.update({"w": jnp.array([0.5, -2.0])}, state)
      >>> direction["w"].round(3).tolist()
      [1.0, -1.0]

    Sources: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1 and, for "keras", the
    form at the end of section 2; Reddi et al. 2018, https://arxiv.org/abs/1904.09237.
    """
    return _Direction(arguments).transformation()


@takes(AdamArguments)
def adam(arguments: AdamArguments) -> optax.GradientTransformationExtraArgs:
    r"""Adam: `scale_by_adam`, then multiplication by minus the learning rate.

    It replaces `optax.adam`, with `nesterov=True` `optax.nadam`, and with `amsgrad=True`
    `optax.amsgrad`: same arguments, same state.

    Args:
      learning_rate: the step size :math:`\alpha`, at least 0: a scalar, or a schedule that maps the
        count of steps done (int32) to one; None for the direction as `scale_by_adam` gives it.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nu_key, moments, nesterov, amsgrad, convention:
        see
        `scale_by_adam`.

    Returns:
      A transformation whose updates you add to the parameters (`optax.apply_updates`), with the
      state of an `optax.chain` of the two parts.

    Raises:
      ValueError, TypeError: as `scale_by_adam`, and for a learning rate out of range.

    Example:
      >>> import adamx, jax, jax.numpy as jnp, optax
      >>> tx = adamx.adam(learning_rate=0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     grads = jax.grad(lambda x: jnp.sum(x**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.abs(params).max() < 0.05)
      True
    """
    return optax.chain(
        _Direction(arguments).transformation(),
        scale_by_learning_rate(arguments.learning_rate),
    )


@takes(AdamWArguments)
def adamw(arguments: AdamWArguments) -> optax.GradientTransformationExtraArgs:
    r"""Adam with decoupled weight decay: the parameters also shrink by :math:`\alpha\lambda\theta`.

    It replaces `optax.adamw`, and with `nesterov=True` `optax.nadamw`: same arguments, same state.
    For the weight decay that torch's `Adam(weight_decay=...)` adds to the gradient instead, chain
    `optax.add_decayed_weights` before `adam`.

    Args:
      learning_rate: see `adam`.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nu_key, moments, nesterov, amsgrad, convention:
        see
        `scale_by_adam`.
      weight_decay: :math:`\lambda`, at least 0: a scalar, or a schedule of the count of steps. As
        in torch and Keras it is multiplied by the learning rate.
      mask: a tree like the parameters, or a prefix of it, or a function from parameters to one,
        that is True where weight decay applies; None for everywhere.

    Returns:
      A transformation like that of `adam`; `update` needs `params`.

    Raises:
      ValueError, TypeError: as `adam`, and for a weight decay out of range.

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2, with the
    schedule multiplier in the learning rate.
    """
    return optax.chain(
        _Direction(arguments).transformation(),
        add_weight_decay(arguments.weight_decay, arguments.mask),
        scale_by_learning_rate(arguments.learning_rate),
    )


_Fixed = tuple[float | None, ...]


class _Direction:
    """The arguments of `scale_by_adam`, and the pair of functions that they define."""

    def __init__(self, arguments: DirectionArguments) -> None:
        self.arguments = arguments
        self.convention = CONVENTIONS[arguments.convention]
        self.state_type = AmsgradState if arguments.amsgrad else AdamState

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def init(self, params: optax.Params) -> AdamState | AmsgradState:
        check_params(params)

        def zeros(dtype_of: Any, given: Any) -> Any:
            return jax.tree.map(lambda p: CAST.zeros(p, dtype_of(p, given)), params)

        mu = zeros(first_moment_dtype, self.arguments.mu_dtype)
        nu = [
            zeros(second_moment_dtype, self.arguments.nu_dtype) for _ in self.state_type._fields[2:]
        ]
        if self.arguments.eight_bit is not None:
            mu, nu[0] = zero_moments(self.arguments.eight_bit, params, mu, nu[0])
        return self.state_type(jnp.zeros([], jnp.int32), mu, *nu)

    def update(
        self,
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        if not isinstance(state, self.state_type):
            raise InvalidType(
                where="state",
                expected=(
                    f"{self.state_type.__name__}, as init made it with "
                    f"amsgrad={self.arguments.amsgrad}"
                ),
                found=type(state).__name__,
            )
        open_state(state)
        check_gradients(updates, wide_like(state.mu))
        check_not_rounded(updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        next_count = jnp.asarray(optax.safe_increment(count))
        hyper = self.arguments.hyperparameters

        @functools.cache
        def scalars_in(dtype: np.dtype) -> tuple[_Fixed, list[Any], chex.ArrayDevice | None]:
            s = scalars(count, hyper, dtype)
            fixed = tuple(x if isinstance(x, float) else None for x in s)
            traced = [None if isinstance(x, float) else x for x in s]
            ahead = self.arguments.nesterov
            return fixed, traced, bias_correction(hyper.b1, next_count, dtype) if ahead else None

        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        rows = list(zip(*map(treedef.flatten_up_to, state[1:]), strict=True))
        stepped = []
        for g, stored, storages in zip(leaves, rows, self.storages(count, rows), strict=True):
            if g is None:
                stepped.append((g, *stored))
                continue
            wide = wide_dtype([g], stored, storages)
            fixed, traced, m_correction_next = scalars_in(jnp.finfo(wide).dtype)
            direction, moments = _step_array(
                jnp.asarray(g),
                stored,
                storages,
                traced,
                m_correction_next,
                fixed=fixed,
                wide=wide,
                convention=self.convention,
            )
            stepped.append((direction, *moments))
        columns = zip(*stepped, strict=True) if stepped else [[]] * len(state)
        direction, *moments = map(treedef.unflatten, columns)
        return direction, self.state_type(count, *moments)

    def storages(
        self, count: chex.ArrayDevice, rows: Sequence[Sequence[Any]]
    ) -> Sequence[Sequence[Storage] | Codes]:
        """For each leaf, how its moments are kept after the step that leads to `count`."""
        moments, is_coded = len(self.state_type._fields) - 1, [is_eight_bit(row[0]) for row in rows]
        if any(is_coded):
            keys = moment_keys(self.arguments.eight_bit, count, len(rows))
            pairs = zip(is_coded, keys, strict=True)
            return [Codes(key) if coded else [CAST] * moments for coded, key in pairs]
        if self.arguments.nu_key is None:
            return [[CAST] * moments] * len(rows)
        keys = nu_keys(self.arguments.nu_key, count, len(rows))
        # AMSGrad's maximum is rounded to nearest: at random it would only rise.
        return [[CAST, CastAtRandom(key), *[CAST] * (moments - 2)] for key in keys]


@functools.partial(jax.jit, static_argnames=("fixed", "wide", "convention"))
def _step_array(
    g: chex.ArrayDevice,
    stored: tuple[Any, ...],
    storages: Sequence[Storage] | Codes,
    traced: list[Any],
    m_correction_next: chex.ArrayDevice | None,
    *,
    fixed: _Fixed,
    wide: np.dtype,
    convention: Convention,
) -> tuple[chex.ArrayDevice, list[Any]]:
    """`step_leaf`, compiled once for all leaves of a shape: outside of `jit` one call for each.

    Each scalar is a Python number in `fixed`, or where that is None an array in `traced`.
    """
    known: list[Any] = [f if t is None else t for f, t in zip(fixed, traced, strict=True)]
    direction, moments = step_leaf(
        g.astype(wide), stored, storages, Scalars(*known), convention, m_correction_next
    )
    return direction.astype(g.dtype), moments


def nu_keys(
    nu_key: chex.ArrayDevice | int, count: chex.ArrayDevice, leaves: int
) -> chex.ArrayDevice:
    """The keys of one step's second moments, uint32[leaves, 2].

    They differ from those of `stochastic_round` with the same key.
    """
    key = fold_in(key_data(nu_key), np.uint32(2**32 - 1))  # which no count reaches
    return leaf_keys(key, count, leaves)
