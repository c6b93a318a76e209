"""A whole step by calls of the compiled kernel, on one CPU device."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx import native
from adamx.base.trees import split_list
from adamx.fused.plan import Plan

__all__ = ["CODES", "DTYPES", "RESIDUALS", "run"]

DTYPES = ("float32", "float64", "bfloat16", "float16")
CODES = ("int8", "uint8", "uint32")  # and scales, of moments in 8 bits
RESIDUALS = ("int8", "int16")
_LEAVES_OF_A_CALL = 128


def run(*operands: chex.ArrayDevice, plan: Plan) -> list[chex.ArrayDevice]:
    """The next moments and parameters; see `adamx.fused.step.step_leaves` for the operands.

    One call, or several for trees of hundreds of leaves: XLA's compile time grows with the third
    power of the number of a call's results that reuse the memory of its operands. A thousand leaves
    take a minute in one call, and two seconds in calls of 128.
    """
    leaves = len(plan.rows)
    floats, doubles, keys, *buffers = operands
    *columns, grads, params = split_list(buffers, plan.operand_counts())
    coded = [i for i, row in enumerate(plan.rows) if row.group]
    with_residual = [i for i, row in enumerate(plan.rows) if row.residual_bits]
    norm = jnp.zeros([], (doubles if doubles.size else floats).dtype)
    if plan.clip:
        norm = jax.ffi.ffi_call(native.NORM, jax.ShapeDtypeStruct((), norm.dtype))(*grads)
    for start in range(0, leaves, _LEAVES_OF_A_CALL):
        group = range(start, min(start + _LEAVES_OF_A_CALL, leaves))
        rows = [plan.rows[i] for i in group]
        # The buffers that this call needs; nu_max is laid out like nu.
        mu_used = sorted({row.mu_buffer for row in rows})
        nu_used = sorted({row.nu_buffer for row in rows})
        scales_used = [n for n, i in enumerate(coded) if i in group]
        residuals_used = [n for n, i in enumerate(with_residual) if i in group]
        used = [mu_used, nu_used, nu_used if plan.amsgrad else [], scales_used, scales_used]
        used.append(residuals_used)
        moments = [column[n] for column, row in zip(columns, used, strict=True) for n in row]
        table = [
            row._replace(
                mu_buffer=mu_used.index(row.mu_buffer), nu_buffer=nu_used.index(row.nu_buffer)
            )
            for row in rows
        ]
        changed = [*moments, *(params[i] for i in group)]
        first_param = 4 + len(moments) + len(group)
        indices = [*range(4, 4 + len(moments)), *range(first_param, first_param + len(group))]
        call = jax.ffi.ffi_call(
            native.STEP,
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed],
            input_output_aliases={operand: n for n, operand in enumerate(indices)},
        )
        results = iter(
            call(
                *(floats, doubles, norm, keys[start : start + len(group)], *moments),
                *(grads[i] for i in group),
                *(params[i] for i in group),
                eps_beside_corrected=np.bool_(plan.convention.eps_beside_corrected),
                maximum_of_corrected=np.bool_(plan.convention.maximum_of_corrected),
                amsgrad=np.bool_(plan.amsgrad),
                decoupled=np.bool_(plan.decoupled),
                clip=np.bool_(plan.clip),
                mu_buffers=np.int64(len(mu_used)),
                nu_buffers=np.int64(len(nu_used)),
                table=np.array(table, np.int64).reshape(-1),
            )
        )
        for column, row in zip([*columns, params], [*used, group], strict=True):
            for n in row:
                column[n] = next(results)
    return [*itertools.chain(*columns), *params]
