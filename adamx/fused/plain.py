"""A whole step in JAX's own operations, with the operands and results of the compiled kernel."""

import itertools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adamx.base.blockwise import EightBitMoment
from adamx.base.clipping import clip_to_norm, global_norm
from adamx.base.numerics import Scalars, by_parts
from adamx.base.residual import join, split
from adamx.base.storage import CAST, CastAtRandom, Codes, Storage, step_leaf, wide_dtype
from adamx.base.trees import split_list
from adamx.fused.plan import Plan

__all__ = ["run"]


def run(*operands: chex.ArrayDevice, plan: Plan) -> list[chex.ArrayDevice]:
    """The next moments and parameters; see `adamx.fused.step.step_leaves` for the operands."""
    vectors, keys, buffers = operands[:2], operands[2], operands[3:]
    mu, nu, nu_max, *scales, residuals, grads, params = split_list(buffers, plan.operand_counts())
    numbers = {vector.dtype: list(vector) for vector in vectors if vector.size}
    norm = global_norm(grads) if plan.clip else None
    # The parts of each buffer that change, and where they begin.
    columns = [mu, nu, nu_max][: 3 if plan.amsgrad else 2]
    changed = [[[] for _ in column] for column in columns]
    with_residual = [i for i, row in enumerate(plan.rows) if row.residual_bits]
    dtypes = [p.dtype for p in params]
    for i, r in zip(with_residual, residuals, strict=True):
        params[i] = join(params[i], r)
    coded = 0
    for i, row in enumerate(plan.rows):
        if row.group:
            buffer = row.mu_buffer, row.nu_buffer
            moments = [
                EightBitMoment(column[b], scale[coded])
                for column, b, scale in zip(columns, buffer, scales, strict=True)
            ]
            params[i], moments = _step_parameter(
                *(grads[i], moments, Codes(keys[i, :2]), params[i], numbers, norm, plan, row.decays)
            )
            for column, b, scale, moment in zip(changed, buffer, scales, moments, strict=True):
                column[b].append((0, moment.codes))
                scale[coded] = moment.scales
            coded += 1
            continue
        of_nu = row.nu_buffer, row.nu_element
        spots = [(row.mu_buffer, row.mu_element), of_nu, of_nu][: len(columns)]
        g, p, shape = grads[i], params[i], params[i].shape
        if any(column[b].shape != shape for column, (b, _) in zip(columns, spots, strict=True)):
            # A part of a flat buffer is quick to address only in its flat shape.
            g, p = g.reshape(-1), p.reshape(-1)
        moments = [
            column[buffer].reshape(p.shape)
            if column[buffer].size == p.size
            else jax.lax.slice(column[buffer], [at], [at + p.size])
            for column, (buffer, at) in zip(columns, spots, strict=True)
        ]
        storages: list[Storage] = [CAST] * len(moments)
        if plan.rounds_nu_at_random:
            storages[1] = CastAtRandom(keys[i, :2])
        p, moments = _step_parameter(g, moments, storages, p, numbers, norm, plan, row.decays)
        params[i] = p.reshape(shape)
        for column, (buffer, at), moment in zip(changed, spots, moments, strict=True):
            column[buffer].append((at, moment))
    after = [
        _replace_parts(buffer, parts)
        for column, rows in zip(columns, changed, strict=True)
        for buffer, parts in zip(column, rows, strict=True)
    ]
    for n, i in enumerate(with_residual):
        bits: Any = plan.rows[i].residual_bits
        weights = params[i].astype(jnp.float32)
        params[i], residuals[n] = split(weights, dtypes[i], bits, keys[i, -2:])
    return [*after, *itertools.chain(*scales), *residuals, *params]


def _step_parameter(
    g: chex.ArrayDevice,
    moments: Sequence[Any],
    storages: Sequence[Storage] | Codes,
    p: chex.ArrayDevice,
    numbers: dict[np.dtype, list[chex.ArrayDevice]],
    norm: chex.ArrayDevice | None,
    plan: Plan,
    decays: bool,
) -> tuple[chex.ArrayDevice, list[Any]]:
    wide = wide_dtype([g, p], moments, storages)
    x, theta = g.astype(wide), p.astype(wide)
    row = numbers[jnp.finfo(wide).dtype]
    s, ahead = Scalars(*row[: len(Scalars._fields)]), row[-1] if plan.nesterov else None
    decay = by_parts(jnp.multiply, theta, s.weight_decay)
    if norm is not None:
        x = clip_to_norm(x, norm, s.max_norm)
    if decays and not plan.decoupled:
        x = x + decay
    direction, stepped = step_leaf(x, moments, storages, s, plan.convention, ahead)
    if decays and plan.decoupled:
        direction = direction + decay
    theta = theta + by_parts(jnp.multiply, direction, s.rate)
    return theta.astype(p.dtype), stepped


def _replace_parts(
    buffer: chex.ArrayDevice, parts: Sequence[tuple[int, chex.ArrayDevice]]
) -> chex.ArrayDevice:
    """The buffer with these parts replaced; they are in rising order of their first element."""
    if len(parts) == 1 and parts[0][1].shape == buffer.shape:
        return parts[0][1]
    # The barrier makes XLA compute the parts before it joins them. Within the concatenation it
    # would choose among all of them for each element.
    arrays = jax.lax.optimization_barrier([part.reshape(-1) for _, part in parts])
    pieces, end = [], 0
    for (at, _), part in zip(parts, arrays, strict=True):
        pieces += [buffer[end:at], part]
        end = at + part.size
    return jnp.concatenate([*pieces, buffer[end:]])
