"""A whole step of Adam, parameters included, as one operation of JAX in several forms.

`_FORMS` lists them; `choose` takes the first that applies, and says why those before it do not. At
level DEBUG, the logger "adamx.fused" reports the choice at each compilation.
"""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx import native
from adamx.base.errors import InvalidValue
from adamx.base.jax_seam import Target, define_operation
from adamx.base.trees import split_list
from adamx.fused import cpu, plain
from adamx.fused.plan import Plan

__all__ = ["choose", "step_leaves"]

_logger = logging.getLogger("adamx.fused")


class _Form(NamedTuple):
    name: str
    run: Callable[..., list[chex.ArrayDevice]]
    refuse: Callable[[Target, Sequence[Any], Plan], str | None]  # why it does not apply, or None


def _refuse_kernel(target: Target, arrays: Sequence[Any], plan: Plan) -> str | None:
    if plan.nesterov or plan.rounds_nu_at_random:
        return "the kernel supports neither nesterov nor nu_key"
    dtypes = {str(x.dtype) for x in arrays}
    is_coded = any(row.group for row in plan.rows)
    has_residuals = any(row.residual_bits for row in plan.rows)
    known = {*cpu.DTYPES, *(cpu.CODES if is_coded else ())}
    if unknown := sorted(dtypes - known - {*(cpu.RESIDUALS if has_residuals else ())}):
        return f"the kernel does not support {', '.join(unknown)}"
    if is_coded and "float64" in dtypes:
        return "the kernel does not support float64 beside moments in 8 bits"
    if (is_coded or has_residuals) and any(math.prod(x.shape) >= 2**32 for x in arrays):
        return "the kernel supports neither moments in 8 bits nor residuals of huge leaves"
    if target.devices != 1:
        return "the step is compiled for several devices, or for parts of a mesh"
    if target.platform != "cpu":
        return "the step is not compiled for a CPU"
    if target.is_export:
        return "the program is exported"
    # Checked last, since it loads the library.
    return None if native.is_registered() else native.status().reason


_FORMS = (
    _Form("the compiled kernel", cpu.run, _refuse_kernel),
    _Form("JAX's own operations", plain.run, lambda _target, _arrays, _plan: None),
)


def choose(target: Target, arrays: Sequence[Any], plan: Plan) -> tuple[_Form, dict[str, str]]:
    """The form of a step on these arrays, and by name why each form before it does not apply."""
    reasons: dict[str, str] = {}
    for form in _FORMS:
        reason = form.refuse(target, arrays, plan)
        if reason is None:
            _logger.debug("a step in %s %s", form.name, reasons or "")
            return form, reasons
        reasons[form.name] = reason
    raise AssertionError("the last form takes every step")


def step_leaves(
    numbers: Callable[[np.dtype], Sequence[chex.Numeric]],
    keys: chex.ArrayDevice | None,
    moments: Sequence[Sequence[chex.ArrayDevice]],
    grads: Sequence[chex.ArrayDevice],
    params: Sequence[chex.ArrayDevice],
    plan: Plan,
) -> tuple[list[list[chex.ArrayDevice]], list[chex.ArrayDevice]]:
    """One step on all leaves: clipping by global norm, weight decay, Adam, and the parameters.

    Args:
      numbers: the `Scalars` of the step in a dtype, float32, and float64 where an array has that
        precision; then 1 - b1^(t+1) with Nesterov's momentum.
      keys: a row of uint32 for each leaf. It begins with the two to round its second moment or its
        codes at random, without which they are rounded to nearest; it ends with the two to round
        its weights where parameters have residuals. None without either.
      moments: the buffers of mu, of nu and, with AMSGrad, of nu_max: an array like the parameter
        for each leaf, or flat ones with many leaves in them. Then the scales of moments in 8 bits,
        of mu and of nu, then the residuals.
      grads, params: an array for each leaf.
      plan: says where in the buffers a leaf's moments are, and what is computed.

    Returns:
      The next moments (and scales, and residuals) and parameters, in the shapes and dtypes given.
      Each leaf is computed in the widest precision of its arrays, float32 at least, and rounded
      once to what it is kept in.
    """
    arrays = [*itertools.chain(*moments), *grads, *params]
    is_double = any(
        jnp.issubdtype(x.dtype, jnp.inexact) and jnp.finfo(x.dtype).dtype == np.float64
        for x in arrays
    )
    if is_double and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise InvalidValue(
            expected="jax_enable_x64 for arrays of float64 or complex128",
            found="it disabled",
            remedy="enable it, or convert the parameters and the state",
        )
    operands = [_vector(numbers, np.dtype("float32"))]
    operands.append(_vector(numbers, np.dtype("float64")) if is_double else jnp.zeros(0))
    operands.append(jnp.zeros((0, 2), jnp.uint32) if keys is None else keys)
    operands += arrays
    run = _operation
    if jax.sharding.get_abstract_mesh().size > 1:
        # The operation has no rule for mesh axes that are explicit or split by hand. There, the
        # form in JAX's own operations goes straight into the program.
        run = choose(Target("cpu", None, is_export=False), arrays, plan)[0].run
    results = run(*operands, plan=plan)
    *new_moments, new_params = split_list(results, [*map(len, moments), len(params)])
    return new_moments, new_params


def _vector(
    numbers: Callable[[np.dtype], Sequence[chex.Numeric]], dtype: np.dtype
) -> chex.ArrayDevice:
    return jnp.stack([jnp.asarray(x, dtype) for x in numbers(dtype)])


def _abstract(*operands: Any, plan: Plan) -> list[Any]:
    leaves = len(plan.rows)
    buffers = operands[3:]
    return [*buffers[: -2 * leaves], *buffers[-leaves:]]  # all but the gradients


def _choose_form(target: Target, operands: Sequence[Any], plan: Plan) -> Any:
    return choose(target, operands[3:], plan)[0].run


_operation = define_operation("adamx_step", plain.run, _abstract, _choose_form)
