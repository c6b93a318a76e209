"""A whole step of Adam, parameters included, as one operation of JAX.

On one CPU device it is a call of the compiled kernel. Everywhere else it is the plain form, whose
mathematics is in `numerics`: on other platforms, over several devices, under vmap and
differentiation, and where a program is exported.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from adamx import native, numerics
from adamx.numerics import CONVENTIONS, Convention, by_parts, complex_dtype, compute_dtype

__all__ = ["DECAYS", "Numbers", "Place", "Plan", "WeightDecay", "whole_step"]

# Where weight decay goes: to the gradient, as in torch's Adam, or past Adam, as in AdamW.
WeightDecay = Literal["none", "gradient", "decoupled"]
DECAYS: tuple[WeightDecay, ...] = ("none", "gradient", "decoupled")

_KERNEL_DTYPES = ("float32", "float64", "bfloat16", "float16")


class Place(NamedTuple):
    """Where the moments of one leaf begin, and whether its parameter decays."""

    mu_buffer: int
    mu_element: int
    nu_buffer: int
    nu_element: int
    decays: bool


class Plan(NamedTuple):
    """What is fixed about a step when it is compiled."""

    places: tuple[Place, ...]  # one for each leaf; parts of one buffer in rising order
    mu_buffers: int
    nu_buffers: int
    convention: Convention
    amsgrad: bool
    weight_decay: WeightDecay
    clip: bool  # by global norm


class Numbers(NamedTuple):
    """The scalars of a step, in the order in which the kernel reads them."""

    b1: chex.Numeric
    one_minus_b1: chex.Numeric
    b2: chex.Numeric
    one_minus_b2: chex.Numeric
    eps: chex.Numeric
    eps_root: chex.Numeric
    m_correction: chex.ArrayDevice
    v_correction: chex.ArrayDevice
    rate: chex.Numeric  # what the direction is multiplied by: minus the learning rate
    weight_decay: chex.Numeric
    max_norm: chex.Numeric

    def coefficients(self) -> numerics.Coefficients:
        """The part of them that `numerics.step` needs."""
        return numerics.Coefficients(
            numerics.Decay(self.b1, self.one_minus_b1),
            numerics.Decay(self.b2, self.one_minus_b2),
            self.eps,
            self.eps_root,
            # There is no Nesterov's momentum here, which alone looks at the next step.
            numerics.BiasCorrection(self.m_correction, self.m_correction, self.v_correction),
        )


def whole_step(
    numbers: Callable[[np.dtype], Numbers],
    moments: Sequence[Sequence[chex.ArrayDevice]],
    grads: Sequence[chex.ArrayDevice],
    params: Sequence[chex.ArrayDevice],
    plan: Plan,
) -> tuple[list[list[chex.ArrayDevice]], list[chex.ArrayDevice]]:
    """One step on all leaves: clipping by global norm, weight decay, Adam, and the parameters.

    Args:
      numbers: the scalars in a dtype: float32, and float64 where an array has that precision.
      moments: the buffers of mu, of nu and, with AMSGrad, of nu_max: an array like the parameter
        for each leaf, or flat ones with many leaves in them.
      grads, params: an array for each leaf.
      plan: says where in the buffers a leaf's moments are, and what is computed.

    Returns:
      The next moments and parameters, in the shapes and dtypes given. Each leaf is computed in the
      widest precision of its arrays, float32 at least, and rounded once to what it is kept in.
    """
    arrays = [*itertools.chain(*moments), *grads, *params]
    is_double = any(jnp.finfo(x.dtype).dtype == np.float64 for x in arrays)
    operands = [_vector(numbers, np.dtype("float32"))]
    operands.append(_vector(numbers, np.dtype("float64")) if is_double else jnp.zeros(0))
    operands += arrays
    several_devices = jax.sharding.get_abstract_mesh().size > 1
    if several_devices or any(x.dtype.name not in _KERNEL_DTYPES for x in arrays):
        results = _plain(*operands, plan=plan)
    else:
        results = _primitive.bind(*operands, plan=plan)
    *new_moments, new_params = _split(results, [*map(len, moments), len(params)])
    return new_moments, new_params


def _vector(numbers: Callable[[np.dtype], Numbers], dtype: np.dtype) -> chex.ArrayDevice:
    return jnp.stack([jnp.asarray(x, dtype) for x in numbers(dtype)])


def _split(arrays: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    rest = iter(arrays)
    return [[next(rest) for _ in range(count)] for count in counts]


# ---- The plain form ------------------------------------------------------------------------------


def _plain(*operands: chex.ArrayDevice, plan: Plan) -> list[chex.ArrayDevice]:
    """The step in JAX's own operations, from and to the operands of the kernel."""
    leaves, nu_maxs = len(plan.places), plan.nu_buffers if plan.amsgrad else 0
    counts = (plan.mu_buffers, plan.nu_buffers, nu_maxs, leaves, leaves)
    vectors, buffers = operands[:2], operands[2:]
    mu, nu, nu_max, grads, params = _split(buffers, counts)
    numbers = {vector.dtype: Numbers(*vector) for vector in vectors if vector.size}

    norm = jnp.zeros([], jnp.float32)
    if plan.clip:
        norm = optax.tree.norm([g.astype(_wide(g)) for g in grads])
    for i, place in enumerate(plan.places):
        # nu_max lies as nu does.
        columns = [(mu, place.mu_buffer, place.mu_element), (nu, place.nu_buffer, place.nu_element)]
        if plan.amsgrad:
            columns.append((nu_max, place.nu_buffer, place.nu_element))
        shape = params[i].shape
        moments = [_part(column[index], at, shape) for column, index, at in columns]
        params[i], moments = _plain_leaf(
            grads[i], moments, params[i], numbers, norm, plan, place.decays
        )
        for (column, index, at), moment in zip(columns, moments, strict=True):
            column[index] = _with_part(column[index], at, moment)
    return [*mu, *nu, *nu_max, *params]


def _wide(*arrays: chex.ArrayDevice) -> np.dtype:
    """The dtype to compute these in; complex if the first is."""
    real = compute_dtype(*(x.dtype for x in arrays))
    return complex_dtype(real) if jnp.iscomplexobj(arrays[0]) else real


def _plain_leaf(
    g: chex.ArrayDevice,
    moments: Sequence[chex.ArrayDevice],
    p: chex.ArrayDevice,
    numbers: dict[np.dtype, Numbers],
    norm: chex.ArrayDevice,
    plan: Plan,
    decays: bool,
) -> tuple[chex.ArrayDevice, list[chex.ArrayDevice]]:
    wide = _wide(g, *moments, p)
    real = jnp.finfo(wide).dtype
    x, m, theta = (array.astype(wide) for array in (g, moments[0], p))
    # Optax keeps the second moment of complex parameters as complex numbers.
    v = [jnp.real(array).astype(real) for array in moments[1:]]
    n = numbers[real]
    decay = by_parts(jnp.multiply, theta, n.weight_decay)
    if plan.clip:
        norm = norm.astype(real)
        clipped = by_parts(jnp.multiply, by_parts(jnp.divide, x, norm), n.max_norm)
        x = jnp.where(norm < n.max_norm, x, clipped)
    if decays and plan.weight_decay == "gradient":
        x = x + decay
    direction, stepped = numerics.step(x, (m, *v), n.coefficients(), plan.convention)
    if decays and plan.weight_decay == "decoupled":
        direction = direction + decay
    theta = theta + by_parts(jnp.multiply, direction, n.rate)
    results = [new.astype(old.dtype) for new, old in zip(stepped, moments, strict=True)]
    return theta.astype(p.dtype), results


def _part(buffer: chex.ArrayDevice, at: int, shape: tuple[int, ...]) -> chex.ArrayDevice:
    if buffer.shape == shape:
        return buffer
    return jax.lax.slice(buffer, [at], [at + int(np.prod(shape))]).reshape(shape)


def _with_part(buffer: chex.ArrayDevice, at: int, part: chex.ArrayDevice) -> chex.ArrayDevice:
    if buffer.shape == part.shape:
        return part
    return jax.lax.dynamic_update_slice(buffer, part.reshape(-1), [at])


# ---- The operation -------------------------------------------------------------------------------

_primitive = Primitive("adamx_step")
_primitive.multiple_results = True


@functools.partial(jax.jit, static_argnames="plan")
def _compiled(*operands: chex.ArrayDevice, plan: Plan) -> list[chex.ArrayDevice]:
    return _primitive.bind(*operands, plan=plan)


@_primitive.def_impl
def _impl(*operands: chex.ArrayDevice, plan: Plan) -> list[chex.ArrayDevice]:
    with jax.disable_jit(False):
        return _compiled(*operands, plan=plan)


def _updated(operands: Sequence[Any], plan: Plan) -> dict[int, int]:
    """Which operands come back, changed, as which results: all but numbers and gradients."""
    leaves = len(plan.places)
    grads_end = len(operands) - leaves
    moments = range(2, grads_end - leaves)
    return {i: n for n, i in enumerate([*moments, *range(grads_end, len(operands))])}


@_primitive.def_abstract_eval
def _abstract_eval(*operands: Any, plan: Plan) -> list[Any]:
    return [operands[i].update(weak_type=False) for i in _updated(operands, plan)]


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, plan: Plan) -> Any:
    given = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
    return jax.jvp(functools.partial(_plain, plan=plan), tuple(primals), given)


def _batch(operands: Sequence[Any], dims: Sequence[Any], *, plan: Plan) -> Any:
    results = jax.vmap(functools.partial(_plain, plan=plan), in_axes=tuple(dims))(*operands)
    return results, [0] * len(results)


_lower_plain = mlir.lower_fun(_plain, multiple_results=True)


def _lower_for_cpu(ctx: mlir.LoweringRuleContext, *operands: Any, plan: Plan) -> Any:
    context = ctx.module_context
    exporting = context.lowering_parameters.for_export
    if exporting or getattr(context.axis_context, "num_devices", None) != 1:
        return _lower_plain(ctx, *operands, plan=plan)
    if not native.is_registered():
        return _lower_plain(ctx, *operands, plan=plan)
    call = jax.ffi.ffi_lowering(native.TARGET, operand_output_aliases=_updated(operands, plan))
    return call(
        ctx,
        *operands,
        convention=np.int64(CONVENTIONS.index(plan.convention)),
        decay=np.int64(DECAYS.index(plan.weight_decay)),
        amsgrad=np.bool_(plan.amsgrad),
        clip=np.bool_(plan.clip),
        mu_buffers=np.int64(plan.mu_buffers),
        nu_buffers=np.int64(plan.nu_buffers),
        table=np.array(plan.places, np.int64).reshape(-1),
    )


ad.primitive_jvps[_primitive] = _jvp
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, _lower_plain)
mlir.register_lowering(_primitive, _lower_for_cpu, platform="cpu")
