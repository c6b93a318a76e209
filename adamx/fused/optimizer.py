"""Adam as an init/step pair: the whole step at once, parameters included."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import jax

from adamx.base.arguments import DecayArguments, takes
from adamx.base.dtypes import is_number
from adamx.base.errors import InvalidType
from adamx.fused.arguments import FusedAdamArguments, FusedAdamWArguments
from adamx.fused.whole_step import WholeStep

__all__ = ["FusedOptimizer", "fused_adam", "fused_adamw"]

_Params = TypeVar("_Params")
_State = TypeVar("_State")


class _Step(Protocol):
    def __call__(self, grads: Any, params: _Params, state: _State) -> tuple[_Params, _State]: ...


class _CompiledStep(_Step, Protocol):
    """A step as `jax.jit` returns it: with the methods of `jax.stages.Wrapped`."""

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered: ...

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced: ...

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any: ...

    def clear_cache(self) -> None: ...


class FusedOptimizer(NamedTuple):
    """A pair of pure functions, to be called inside of `jax.jit`.

    Attributes:
      init: `init(params)` returns the state.
      step: `step(grads, params, state)` returns the next parameters and the next state. Donate
        `params` and `state`, as `jit` does, so that they are changed in place.

    Example:
      >>> import adamx, jax, jax.numpy as jnp
      >>> optimizer = adamx.fused_adam(learning_rate=0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> state = optimizer.init(params)
      >>> step = optimizer.jit()
      >>> for _ in range(100):
      ...     grads = jax.grad(lambda x: jnp.sum(x**2))(params)
      ...     params, state = step(grads, params, state)
      >>> bool(jnp.abs(params).max() < 0.05)
      True
    """

    __module__ = "adamx"  # as users import it: what pickles and repr name

    init: Callable[[Any], Any]
    step: _Step

    def jit(self, **options: Any) -> _CompiledStep:
        """The compiled step, which changes parameters and state in place.

        JAX gives each result the memory of the first unused donated argument that has its shape and
        dtype. Arguments and results of `step` are in the same order, so each array keeps its
        memory: `jit()` is `jax.jit(step, donate_argnums=(1, 2))`. The arrays of `params` and
        `state` that were passed in are deleted; gradients are kept.

        Args:
          **options: further arguments of `jax.jit`, such as `out_shardings`.

        Returns:
          `step`, compiled for each structure, shape and dtype at its first call. Parameters and
          state are donated, whether they are given by position or by name.

        Raises:
          TypeError: for an option that `jax.jit` does not have, or one of donation.
        """
        compiled: Any = jax.jit(
            self.step, donate_argnums=(1, 2), donate_argnames=("params", "state"), **options
        )
        return compiled

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: a fused optimizer is not an Optax transformation.

        Raises:
          TypeError: always; it says what to use instead.
        """
        del args, kwargs
        raise InvalidType(
            where="update",
            expected="an Optax transformation",
            found="a fused optimizer, which has step in place of update",
            remedy=(
                "Write params, state = optimizer.step(grads, params, state). Within optax.chain "
                "and other wrappers, flax.nnx.Optimizer or TrainState, use adamx.adam or "
                "adamx.adamw"
            ),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the call that made it, which has only public names."""
        whole = getattr(self.step, "__self__", None)
        if not isinstance(whole, WholeStep) or self != _pair(whole):
            return FusedOptimizer, tuple(self)
        fields = dataclasses.fields(whole.arguments)
        given = {field.name: getattr(whole.arguments, field.name) for field in fields}
        is_adamw = isinstance(whole.arguments, FusedAdamWArguments)
        return functools.partial(fused_adamw if is_adamw else fused_adam, **given), ()


def _pair(whole: WholeStep) -> FusedOptimizer:
    return FusedOptimizer(whole.init, whole.step)


@takes(FusedAdamArguments)
def fused_adam(arguments: FusedAdamArguments) -> FusedOptimizer:
    r"""Adam in one pass over memory: gradients in, parameters out.

    `step` computes what `adam` and `optax.apply_updates` do, with the same state: you can switch
    between them at any step (`adamx.from_numpy` converts the state of a chain). On a CPU, a
    compiled kernel reads gradient, moments and parameter once each, and writes moments and
    parameter in place. Elsewhere (GPU, TPU, several devices, under
    `vmap` or differentiation, complex or 8-bit arrays, `nesterov`, `nu_key`, `jax.export`, no
    compiled kernel, see `adamx.native.status`) the step is compiled from JAX's own operations, with
    the same result.

    Parameters narrower than float32 are rounded to nearest, so updates below half a unit in the
    last place are lost, unless `residual_bits` keeps what parameters lack of their weights. The
    step cannot round them at random; `adam` can, with `stochastic_round` chained after it.

    With every option, in this order: the gradients are clipped by their global norm; weight decay
    that is not decoupled is added to them; Adam; decoupled weight decay; the learning rate; the
    weights are split into parameters and residuals.

    Args:
      learning_rate, b1, b2, eps, eps_root: see `adam`. All numbers may be traced: a learning rate
        that is an argument of the jitted function changes without recompiling.
      mu_dtype, nu_dtype, moments, amsgrad, convention: see `adam`.
      nu_key, nesterov: see `adam`. With them the compiled kernel is not used.
      weight_decay: at least 0: a scalar, or a schedule of the count of steps.
      decoupled: True to shrink parameters by learning rate times weight decay, as AdamW does; False
        to add weight decay times the parameters to the gradients, as `torch.optim.Adam` does.
      mask: where weight decay applies; see `adamw`.
      clip_global_norm: the largest global norm of the gradients, above 0, as in
        `optax.clip_by_global_norm`; None for no limit. It reads the gradients once more.
      packed: keep all first moments in one buffer and all second moments in another. JAX takes
        about as long to pass an array into a compiled function and out as the kernel takes for
        thousands of numbers: with many small leaves this is most of a step. Only for parameters
        that are not sharded. `adamx.unpack` gives the ordinary state.
      residual_bits: 8 or 16 to keep parameters in bfloat16 and float16 with residuals in the state,
        as `residual_params` does; None for none. Decay and step use the weights in float32, so with
        16 bits in bfloat16 the run is that of float32 parameters, bit for bit, from the same
        gradients and with the same moments (`mu_dtype="float32"`, or the same leaves in 8 bits).
        `full_params` and `split_params` read and write the weights.
      residual_key: a seed or a key for the random bits, as for `residual_params`; None for 0. With
        the same key, state and sums the bits are those of the chain.

    Returns:
      `(init, step)`, pure. `init(params)` returns the state of an `optax.chain` of those parts of
      `clip_by_global_norm`, `add_decayed_weights`, `scale_by_adam`, `add_decayed_weights`,
      `scale_by_learning_rate` and `residual_params` that are used: without the others, the state of
      `adam` or `adamw`.
      With `packed`, it holds a `PackedAdamState`. `step(grads, params, state)` returns the next
      parameters and state, in the dtypes given. Where a leaf of `grads` is None, its parameter,
      moments and residual do not change. Each leaf is computed in the widest precision of its
      arrays, float32 at least, and rounded once at the end; `update` also rounds the direction, and
      the update, to the gradient's dtype.

    Raises:
      ValueError, TypeError: as `adam`; for a weight decay or norm out of range; for other
        `residual_bits`, or a `residual_key` without them; in `init`, with `packed`, for complex or
        sharded parameters, and with `residual_bits` for parameters in 8 bits; in `step`, for
        gradients, parameters or a state whose structure, shapes or residuals are not those of one
        another.

    Example:
      >>> import adamx, functools, jax, jax.numpy as jnp
      >>> optimizer = adamx.fused_adam(learning_rate=0.1)
      >>> @functools.partial(jax.jit, donate_argnums=(0, 1))
      ... def train(params, state):
      ...     grads = jax.grad(lambda x: jnp.sum(x**2))(params)
      ...     return optimizer.step(grads, params, state)
      >>> params = jnp.array([1.0, -2.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(100):
      ...     params, state = train(params, state)
      >>> bool(jnp.abs(params).max() < 0.05)
      True

    Sources: see `scale_by_adam` and `adamw`.
    """
    decay = DecayArguments(arguments.weight_decay, arguments.mask)
    is_zero = is_number(decay.weight_decay) and decay.weight_decay == 0
    return _pair(WholeStep(arguments, None if is_zero else decay, arguments.decoupled))


@takes(FusedAdamWArguments)
def fused_adamw(arguments: FusedAdamWArguments) -> FusedOptimizer:
    """AdamW in one pass over memory: what `adamw` and `optax.apply_updates` compute.

    As of `fused_adam`, `step` rounds narrow parameters to nearest, and cannot round them at random;
    `residual_bits` keeps what they lack.

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask: see `adamw`.
      nu_dtype, nu_key, moments, nesterov, amsgrad, convention: see `adamw`.
      clip_global_norm, packed, residual_bits, residual_key: see `fused_adam`.

    Returns:
      `(init, step)` as of `fused_adam`, with the state of `adamw`.

    Raises:
      ValueError, TypeError: as `fused_adam`.
    """
    return _pair(WholeStep(arguments, arguments, decoupled=True))


for _function in (fused_adam, fused_adamw):
    _function.__module__ = "adamx"  # as users import it: what pickles name
