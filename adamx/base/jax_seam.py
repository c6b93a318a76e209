"""The seam to JAX: each use of something that JAX does not document, and what would replace it.

| what | for | if it goes |
|---|---|---|
| `jax.core.Tracer` | detecting an array without a value | `not hasattr(x, "addressable_shards")` |
| `weak_type` of an array | not compiling a step twice | `jax.typeof(x).weak_type` |
| an error of `jax.lax.pcast` | whether an array differs over a mesh axis | `jax.typeof(x).vma` |
| `jax.interpreters.ad`, `batching` | derivatives and vmap of an operation | `jax.custom_jvp`, `jax.custom_batching.custom_vmap` |
| `jax.interpreters.mlir` | choosing the form that is compiled | `jax.lax.platform_dependent`, which does not know the number of devices |
| `update(weak_type=False)` of an abstract array | results without a weak type | `jax.eval_shape` |
| `module_context.axis_context.num_devices` | whether it is compiled for one device | an argument of `fused_adam` |
| `module_context.lowering_parameters.for_export` | whether the program is exported | the same |

Documented, and used elsewhere: `jax.extend.core.Primitive`, `jax.ffi`, `jax.typeof`,
`jax.sharding.get_abstract_mesh`.
"""  # noqa: E501

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
from jax import interpreters
from jax.core import Tracer
from jax.extend.core import Primitive

__all__ = ["Target", "define_operation", "is_traced", "strip_weak_type", "varies_over"]


def is_traced(x: object) -> TypeGuard[Tracer]:
    """Whether `x` is an array of JAX that has no value yet."""
    return isinstance(x, Tracer)


def varies_over(x: Any, axis: str) -> bool:
    """Whether JAX knows that `x` differs over `axis`; without check_vma it never does."""
    try:
        jax.lax.pcast(x, axis, to="varying")
    except ValueError:  # it does already
        return True
    return False


def strip_weak_type(x: jax.Array) -> jax.Array:
    """The array without a weak type, for which a program would be compiled again."""
    is_weak = getattr(x, "weak_type", False)
    return jax.lax.convert_element_type(x, x.dtype) if is_weak else x


class Target(NamedTuple):
    """What an operation is compiled for."""

    platform: str  # "cpu", or "other"
    devices: int | None  # how many; None for parts of a mesh, where the program is split by hand
    is_export: bool


_Run = Callable[..., list[Any]]


def define_operation(
    name: str,
    plain: _Run,
    abstract: Callable[..., list[Any]],
    choose: Callable[..., _Run],
) -> _Run:
    """An operation of JAX that is compiled in the form that suits its target.

    Args:
      name: of the operation, in programs.
      plain: computes it in JAX's own operations; gives its derivatives and its `vmap`. It takes
        arrays, and by keyword `plan`, which is hashable and says what is fixed when it is compiled.
      abstract: returns those of the arguments whose shapes and dtypes the results have.
      choose: called with a `Target`, the abstract arrays and `plan`; returns `plain` or a function
        that computes the same.

    Returns:
      The operation, to be called like `plain`. If JAX no longer has what this needs, `plain`
      itself, which warns once.
    """
    try:
        return _define(name, plain, abstract, choose)
    except (AttributeError, TypeError) as error:
        lost = f"{error}"

        @functools.wraps(plain)
        def run(*operands: Any, plan: Any) -> list[Any]:
            _warn_of_change(lost)
            return plain(*operands, plan=plan)

        return run


def _define(
    name: str,
    plain: _Run,
    abstract: Callable[..., list[Any]],
    choose: Callable[..., _Run],
) -> _Run:
    modules: Any = interpreters
    ad, batching, mlir = modules.ad, modules.batching, modules.mlir
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.partial(jax.jit, static_argnames="plan")
    def compiled(*operands: Any, plan: Any) -> list[Any]:
        return primitive.bind(*operands, plan=plan)

    @primitive.def_impl
    def _impl(*operands: Any, plan: Any) -> list[Any]:
        with jax.disable_jit(False):
            return compiled(*operands, plan=plan)

    @primitive.def_abstract_eval
    def _abstract_eval(*operands: Any, plan: Any) -> list[Any]:
        return [aval.update(weak_type=False) for aval in abstract(*operands, plan=plan)]

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], *, plan: Any) -> Any:
        given = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
        return jax.jvp(functools.partial(plain, plan=plan), tuple(primals), given)

    def batch(operands: Sequence[Any], dims: Sequence[Any], *, plan: Any) -> Any:
        results = jax.vmap(functools.partial(plain, plan=plan), in_axes=tuple(dims))(*operands)
        return results, [0] * len(results)

    @functools.cache
    def lowering_of(form: _Run) -> Any:
        return mlir.lower_fun(form, multiple_results=True)

    def lower(platform: str, ctx: Any, *operands: Any, plan: Any) -> Any:
        form = choose(_target(platform, ctx), ctx.avals_in, plan=plan)
        return lowering_of(form)(ctx, *operands, plan=plan)

    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, functools.partial(lower, "other"))
    mlir.register_lowering(primitive, functools.partial(lower, "cpu"), platform="cpu")
    return primitive.bind


def _target(platform: str, ctx: Any) -> Target:
    try:
        axes = ctx.module_context.axis_context
        is_export = bool(ctx.module_context.lowering_parameters.for_export)
        # Where a program is split by hand there is a mesh instead; some versions have both.
        is_split = hasattr(axes, "mesh") or hasattr(axes, "axis_env")
        by_hand = is_split and not hasattr(axes, "num_devices")
        devices = None if by_hand else int(axes.num_devices)
    except (AttributeError, TypeError) as error:
        _warn_of_change(f"{error}")
        return Target(platform, None, is_export=False)
    return Target(platform, devices, is_export)


@functools.cache
def _warn_of_change(what: str) -> None:
    """Warn once: steps become slower, with the same numbers."""
    warnings.warn(
        f"JAX {jax.__version__} lacks an interface that adamx's compiled kernel needs ({what}): "
        "steps run as JAX's own operations instead, with the same results but more slowly. Use a "
        "newer adamx or an older JAX",
        stacklevel=2,
    )
