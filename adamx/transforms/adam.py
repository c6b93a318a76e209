"""Adam as pure init/update pairs over trees of parameters, to be chained with Optax's own."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base import numerics
from adamx.base.checks import (
    check_choice,
    check_dtype,
    check_gradients,
    check_learning_rate,
    check_number,
    check_params,
    check_precise_number,
    explain_renamed_arguments,
    is_none,
)
from adamx.base.numerics import (
    CONVENTIONS,
    Coefficients,
    Convention,
    Hyperparameters,
    coefficients,
    complex_dtype,
    compute_dtype,
    first_moment_dtype,
    second_moment_dtype,
)
from adamx.transforms.rounding import check_key, fold_in, key_data, leaf_keys, round_at_random

__all__ = ["AdamState", "AmsgradState", "adam", "adamw", "scale_by_adam"]

AdamState = optax.ScaleByAdamState
AmsgradState = optax.ScaleByAmsgradState


@explain_renamed_arguments
def scale_by_adam(
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    eps_root: chex.Numeric = 0.0,
    mu_dtype: Any | None = None,
    *,
    nu_dtype: Any | None = None,
    nu_key: chex.ArrayDevice | int | None = None,
    nesterov: bool = False,
    amsgrad: bool = False,
    convention: Convention = "optax",
) -> optax.GradientTransformationExtraArgs:
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

    No constant eps above 0 turns one form into the other. The state is Optax's own, so that a run
    may change between `optax.scale_by_adam` and this one at any step.

    Everything is computed in float32 or wider. Numbers of Python and NumPy keep their double
    precision until they meet an array. `optax.inject_hyperparams` makes arrays of them, in the
    dtype of the parameters: name b1, b2, eps and eps_root in its `static_args` unless they are to
    change.

    Args:
      b1: decay rate of the first moment, in [0, 1). Scalar; may be traced, like the next three.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the square root, at least 0; with 0, gradients that were always zero give NaN.
      eps_root: added inside the square root, at least 0. Not needed to differentiate the update.
      mu_dtype: dtype of the first moment; None for the parameter's. The precision counts: complex
        parameters get the complex dtype of that precision.
      nu_dtype: real floating dtype of the second moment; None for that of the parameter's real
        part, but at least float32. In bfloat16 the increments of v round away. In float16, with b2
        = 0.999, those of gradients below 5e-3 are 0, whereupon the direction is huge; a v above
        65,504 is infinite.
      nu_key: rounds a second moment in bfloat16 at random, so that its mean is right and it does
        not stall: a seed, or a key as for `stochastic_round`, which may have the same one.
        Each part of an `optax.partition` needs its own.
        None to round it to nearest. AMSGrad's maximum is always rounded to nearest. `fused_adam`
        does not have this.
      nesterov: Nesterov's look ahead in place of the first moment (Dozat 2016, algorithm 2 in
        Optax's form). Only with convention "optax": NAdam in Keras and torch differs from it.
      amsgrad: divide by the largest second moment so far (Reddi et al. 2018).
      convention: whose Adam, see the table. Not so for complex parameters: torch steps their real
        and imaginary parts apart, each with a second moment of its own, as the transformation does
        within `optax.contrib.split_real_and_imaginary`.

    Returns:
      A transformation. `init(params)` takes a tree of floating-point or complex arrays and Python
      scalars, None for what does not train, and returns `AdamState(count, mu, nu)`, with `amsgrad`
      `AmsgradState(count, mu, nu, nu_max)`: count an int32 scalar that stops at its largest value,
      the others trees like `params`. `update(updates, state, params=None)` returns the direction in
      the dtypes of `updates` and the next state in the dtypes of `state`. A leaf of `updates` that
      is None comes back as None, and its moments as they were.

    Raises:
      ValueError: a number out of range (when it is one of Python or NumPy), an array that is not a
        scalar, an unknown convention, a `nu_key` without `nu_dtype="bfloat16"`; in
        `update`, gradients whose shapes or structure are not those of the state.
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
    check_precise_number("b1", b1, below=1)
    check_precise_number("b2", b2, below=1)
    check_precise_number("eps", eps)
    check_precise_number("eps_root", eps_root)
    check_dtype("mu_dtype", mu_dtype, jnp.inexact, "a floating-point")
    check_dtype("nu_dtype", nu_dtype, jnp.floating, "a real floating-point")
    check_choice("convention", convention, CONVENTIONS)
    if nu_key is not None:
        check_key("nu_key", nu_key)
        if nu_dtype is None or jnp.dtype(nu_dtype) != jnp.bfloat16:
            raise ValueError(
                f'nu_key: expected nu_dtype="bfloat16" beside it, found {nu_dtype!r}; give that or '
                "leave nu_key out: float32 needs none, and float16 has no room for the squares of "
                "small gradients, however they are rounded"
            )
    if nesterov and convention != "optax":
        raise ValueError(
            f'nesterov: expected convention "optax" beside it, found {convention!r}: NAdam in '
            "Keras and torch has a schedule for its momentum, and is another algorithm"
        )
    hyper = Hyperparameters(b1, b2, eps, eps_root)
    state_type = AmsgradState if amsgrad else AdamState

    def init(params: optax.Params) -> AdamState | AmsgradState:
        check_params(params)
        count = jnp.zeros([], jnp.int32)
        mu = jax.tree.map(
            lambda p: jnp.zeros_like(p, dtype=first_moment_dtype(p, mu_dtype)), params
        )
        nu = jax.tree.map(
            lambda p: jnp.zeros_like(p, dtype=second_moment_dtype(p, nu_dtype)), params
        )
        return state_type(count, mu, nu, *([jax.tree.map(jnp.zeros_like, nu)] if amsgrad else []))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        if not isinstance(state, state_type):
            raise TypeError(
                f"state: expected {state_type.__name__}, as init made it with amsgrad={amsgrad}; "
                f"found {type(state).__name__}"
            )
        check_gradients(updates, state.mu)
        count = jnp.asarray(optax.safe_increment(state.count))
        next_count = jnp.asarray(optax.safe_increment(count))

        @functools.cache
        def coefficients_in(dtype: np.dtype) -> Coefficients:
            return coefficients(count, next_count, hyper, dtype)

        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        rows = zip(leaves, *map(treedef.flatten_up_to, state[1:]), strict=True)
        keys = [None] * len(leaves) if nu_key is None else _nu_keys(nu_key, count, len(leaves))
        stepped = [
            _step_leaf(
                *row,
                coefficients=coefficients_in,
                convention=convention,
                nesterov=nesterov,
                nu_key=key,
            )
            for row, key in zip(rows, keys, strict=True)
        ]
        columns = zip(*stepped, strict=True) if stepped else [[]] * len(state)
        direction, *moments = map(treedef.unflatten, columns)
        return direction, state_type(count, *moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _step_leaf(
    g: chex.ArrayTree,
    *moments: chex.ArrayTree,
    coefficients: Callable[[np.dtype], Coefficients],
    convention: Convention,
    nesterov: bool,
    nu_key: chex.ArrayDevice | None,
) -> tuple[chex.ArrayTree, ...]:
    """`numerics.step` in a dtype wide enough; the results come back in the dtypes given."""
    if g is None:
        return g, *moments
    g, m, *v = map(jnp.asarray, (g, *moments))
    real = compute_dtype(g.dtype, m.dtype, *(x.dtype for x in v))
    wide = complex_dtype(real) if jnp.iscomplexobj(g) else real
    # Optax keeps the second moment of complex parameters as complex numbers.
    operands = (m.astype(wide), *(jnp.real(x).astype(real) for x in v))
    c = coefficients(real)
    direction, results = numerics.step(g.astype(wide), operands, c, convention, nesterov)
    direction = direction.astype(g.dtype)
    new = [x.astype(before.dtype) for x, before in zip(results, (m, *v), strict=True)]
    if nu_key is not None and v[0].dtype == jnp.bfloat16:
        new[1] = round_at_random(results[1].astype(jnp.float32), nu_key, v[0].dtype)
    return direction, *new


def _nu_keys(
    nu_key: chex.ArrayDevice | int, count: chex.ArrayDevice, leaves: int
) -> list[chex.ArrayDevice]:
    """The keys of one step's second moments; `stochastic_round` with the same key has others."""
    key = fold_in(key_data(nu_key), np.uint32(2**32 - 1))  # which no count reaches
    return list(leaf_keys(key, count, leaves))


@explain_renamed_arguments
def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    eps_root: chex.Numeric = 0.0,
    mu_dtype: Any | None = None,
    *,
    nu_dtype: Any | None = None,
    nu_key: chex.ArrayDevice | int | None = None,
    nesterov: bool = False,
    amsgrad: bool = False,
    convention: Convention = "optax",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam: `scale_by_adam`, then multiplication by minus the learning rate.

    It stands in for `optax.adam`, for `optax.nadam` with `nesterov=True` and for `optax.amsgrad`
    with `amsgrad=True`: same arguments, same state.

    Args:
      learning_rate: the step size :math:`\alpha`, at least 0: a scalar, or a schedule that maps the
        count of steps done (int32) to one; None for the direction as `scale_by_adam` gives it.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nu_key, nesterov, amsgrad, convention: see
        `scale_by_adam`.

    Returns:
      A transformation whose updates are to be added to the parameters (`optax.apply_updates`), with
      the state of an `optax.chain` of the two parts.

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
    check_learning_rate(learning_rate)
    return optax.chain(
        scale_by_adam(
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            nu_dtype=nu_dtype,
            nu_key=nu_key,
            nesterov=nesterov,
            amsgrad=amsgrad,
            convention=convention,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


@explain_renamed_arguments
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: chex.Numeric = 0.9,
    b2: chex.Numeric = 0.999,
    eps: chex.Numeric = 1e-8,
    eps_root: chex.Numeric = 0.0,
    mu_dtype: Any | None = None,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    nu_dtype: Any | None = None,
    nu_key: chex.ArrayDevice | int | None = None,
    nesterov: bool = False,
    amsgrad: bool = False,
    convention: Convention = "optax",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with decoupled weight decay: the parameters also shrink by :math:`\alpha\lambda\theta`.

    It stands in for `optax.adamw`, and for `optax.nadamw` with `nesterov=True`: same arguments,
    same state. For the decay that torch's `Adam(weight_decay=...)` adds to the gradient instead,
    chain `optax.add_decayed_weights` before `adam`.

    Args:
      learning_rate: see `adam`.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nu_key, nesterov, amsgrad, convention: see
        `scale_by_adam`.
      weight_decay: :math:`\lambda`, at least 0: a scalar, or a schedule of the count of steps. As
        in torch and Keras it is multiplied by the learning rate.
      mask: a tree like the parameters, or a prefix of it, or a function from parameters to one,
        that is True where weights decay; None for everywhere.

    Returns:
      A transformation like that of `adam`; `update` needs `params`.

    Raises:
      ValueError, TypeError: as `adam`, and for a weight decay out of range.

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2, with the
    schedule multiplier in the learning rate.
    """
    check_learning_rate(learning_rate)
    if not callable(weight_decay):
        check_number("weight_decay", weight_decay)
    return optax.chain(
        scale_by_adam(
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            nu_dtype=nu_dtype,
            nu_key=nu_key,
            nesterov=nesterov,
            amsgrad=amsgrad,
            convention=convention,
        ),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
