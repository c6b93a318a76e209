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

from adamx import native
from adamx.base import numerics
from adamx.base.numerics import CONVENTIONS, Convention, by_parts, complex_dtype, compute_dtype

__all__ = ["DECAYS", "Numbers", "Place", "Plan", "WeightDecay", "whole_step"]

# Where weight decay goes: to the gradient, as in torch's Adam, or past Adam, as in AdamW.
WeightDecay = Literal["none", "gradient", "decoupled"]
DECAYS: tuple[WeightDecay, ...] = ("none", "gradient", "decoupled")

_LEAVES_OF_A_CALL = 128
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
    if is_double and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError(
            "expected jax_enable_x64 beside arrays of float64 or complex128, found it off; turn it "
            "on, or convert parameters and state"
        )
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
    # The parts of each buffer that change, and where they begin.
    columns = [mu, nu, nu_max][: 3 if plan.amsgrad else 2]
    changed = [[[] for _ in column] for column in columns]
    for i, place in enumerate(plan.places):
        at_nu = place.nu_buffer, place.nu_element  # nu_max lies as nu does
        spots = [(place.mu_buffer, place.mu_element), at_nu, at_nu][: len(columns)]
        g, p, shape = grads[i], params[i], params[i].shape
        if any(column[b].shape != shape for column, (b, _) in zip(columns, spots, strict=True)):
            # A part of a flat buffer is quick to address only in its own, flat shape.
            g, p = g.reshape(-1), p.reshape(-1)
        moments = [
            column[buffer].reshape(p.shape)
            if column[buffer].size == p.size
            else jax.lax.slice(column[buffer], [at], [at + p.size])
            for column, (buffer, at) in zip(columns, spots, strict=True)
        ]
        p, moments = _plain_leaf(g, moments, p, numbers, norm, plan, place.decays)
        params[i] = p.reshape(shape)
        for column, (buffer, at), moment in zip(changed, spots, moments, strict=True):
            column[buffer].append((at, moment))
    after = [
        _with_parts(buffer, parts)
        for column, rows in zip(columns, changed, strict=True)
        for buffer, parts in zip(column, rows, strict=True)
    ]
    return [*after, *params]


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


def _with_parts(
    buffer: chex.ArrayDevice, parts: Sequence[tuple[int, chex.ArrayDevice]]
) -> chex.ArrayDevice:
    """The buffer with these parts, which begin at rising elements, in place of its own."""
    if len(parts) == 1 and parts[0][1].shape == buffer.shape:
        return parts[0][1]
    # Computed before they are put together: XLA would compute them within the concatenation, with
    # a choice among all of them for each element.
    arrays = jax.lax.optimization_barrier([part.reshape(-1) for _, part in parts])
    pieces, end = [], 0
    for (at, _), part in zip(parts, arrays, strict=True):
        pieces += [buffer[end:at], part]
        end = at + part.size
    return jnp.concatenate([*pieces, buffer[end:]])


# ---- The kernel ----------------------------------------------------------------------------------


def _native(*operands: chex.ArrayDevice, plan: Plan) -> list[chex.ArrayDevice]:
    """The step by calls of the kernel: one, but for trees of hundreds of leaves.

    XLA's compile time grows with the third power of a call's results that lie in the memory of its
    operands: a minute for a thousand leaves in one call, two seconds in calls of 128.
    """
    leaves = len(plan.places)
    floats, doubles, *buffers = operands
    nu_maxs = plan.nu_buffers if plan.amsgrad else 0
    *columns, grads, params = _split(
        buffers, (plan.mu_buffers, plan.nu_buffers, nu_maxs, leaves, leaves)
    )
    norm = jnp.zeros([], (doubles if doubles.size else floats).dtype)
    if plan.clip:
        norm = jax.ffi.ffi_call(native.NORM, jax.ShapeDtypeStruct((), norm.dtype))(*grads)
    for start in range(0, leaves, _LEAVES_OF_A_CALL):
        group = list(range(start, min(start + _LEAVES_OF_A_CALL, leaves)))
        places = [plan.places[i] for i in group]
        # The buffers that this call needs; nu_max lies as nu does.
        mu_used = sorted({place.mu_buffer for place in places})
        nu_used = sorted({place.nu_buffer for place in places})
        used = [mu_used, nu_used, nu_used if plan.amsgrad else []]
        moments = [column[n] for column, row in zip(columns, used, strict=True) for n in row]
        table = [
            (mu_used.index(mu), mu_at, nu_used.index(nu), nu_at, decays)
            for mu, mu_at, nu, nu_at, decays in places
        ]
        changed = [*moments, *(params[i] for i in group)]
        first_param = 3 + len(moments) + len(group)
        indices = [*range(3, 3 + len(moments)), *range(first_param, first_param + len(group))]
        call = jax.ffi.ffi_call(
            native.TARGET,
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed],
            input_output_aliases={operand: n for n, operand in enumerate(indices)},
        )
        results = iter(
            call(
                *(floats, doubles, norm, *moments),
                *(grads[i] for i in group),
                *(params[i] for i in group),
                convention=np.int64(CONVENTIONS.index(plan.convention)),
                decay=np.int64(DECAYS.index(plan.weight_decay)),
                amsgrad=np.bool_(plan.amsgrad),
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


@_primitive.def_abstract_eval
def _abstract_eval(*operands: Any, plan: Plan) -> list[Any]:
    leaves = len(plan.places)
    buffers = operands[2:]
    changed = [*buffers[: -2 * leaves], *buffers[-leaves:]]  # all but the gradients
    return [aval.update(weak_type=False) for aval in changed]


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, plan: Plan) -> Any:
    given = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
    return jax.jvp(functools.partial(_plain, plan=plan), tuple(primals), given)


def _batch(operands: Sequence[Any], dims: Sequence[Any], *, plan: Plan) -> Any:
    results = jax.vmap(functools.partial(_plain, plan=plan), in_axes=tuple(dims))(*operands)
    return results, [0] * len(results)


_lower_plain = mlir.lower_fun(_plain, multiple_results=True)
_lower_native = mlir.lower_fun(_native, multiple_results=True)


def _lower_for_cpu(ctx: mlir.LoweringRuleContext, *operands: Any, plan: Plan) -> Any:
    context = ctx.module_context
    one_device = getattr(context.axis_context, "num_devices", None) == 1
    takes_kernel = one_device and not context.lowering_parameters.for_export
    lower = _lower_native if takes_kernel and native.is_registered() else _lower_plain
    return lower(ctx, *operands, plan=plan)


ad.primitive_jvps[_primitive] = _jvp
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, _lower_plain)
mlir.register_lowering(_primitive, _lower_for_cpu, platform="cpu")
