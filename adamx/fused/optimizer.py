"""Adam as an init/step pair: the whole step at once, parameters included."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.adam_state import AdamState, AmsgradState
from adamx.base.arguments import DecayArguments, takes
from adamx.base.checks import check_gradients, check_params, check_scheduled
from adamx.base.dtypes import is_number, real_scalar
from adamx.base.errors import InvalidType
from adamx.base.numerics import CONVENTIONS, Scalars, scalars
from adamx.base.trees import expand_nones
from adamx.fused.arguments import FusedAdamArguments, FusedAdamWArguments, StepArguments
from adamx.fused.layout import PackedAdamState, PackedAmsgradState
from adamx.fused.moments import check_order, open_packed, open_separate
from adamx.fused.packed import packed_state
from adamx.fused.plan import Plan, Row
from adamx.fused.step import step_leaves
from adamx.transforms.adam import scale_by_adam

__all__ = ["FusedOptimizer", "fused_adam", "fused_adamw"]


class _Step(Protocol):
    def __call__(
        self, grads: optax.Updates, params: optax.Params, state: optax.OptState
    ) -> tuple[optax.Params, optax.OptState]: ...


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

    init: Callable[[optax.Params], optax.OptState]
    step: _Step

    def jit(self, **options: Any) -> jax.stages.Wrapped:
        """The compiled step, which changes parameters and state in place.

        JAX gives each result the memory of the first donated argument left that has its shape and
        dtype. Arguments and results of `step` are in the same order, so each array stays where it
        is: `jit()` is `jax.jit(step, donate_argnums=(1, 2))`. The arrays of `params` and `state`
        that were passed in are deleted; gradients are kept.

        Args:
          **options: further arguments of `jax.jit`: `out_shardings`, say.

        Returns:
          `step`, compiled for each structure, shape and dtype at its first call. Parameters and
          state are donated, whether they are given by position or by name.

        Raises:
          TypeError: for an option that `jax.jit` does not have, and for those of donation.
        """
        return jax.jit(
            self.step, donate_argnums=(1, 2), donate_argnames=("params", "state"), **options
        )


@takes(FusedAdamArguments)
def fused_adam(arguments: FusedAdamArguments) -> FusedOptimizer:
    r"""Adam in one pass over memory: gradients in, parameters out.

    `step` computes what `adam` and `optax.apply_updates` do, with the same state, so a run may
    change from one to the other at any step. On a CPU, a compiled kernel reads each of gradient,
    moments and parameter once and writes the latter three in place. Elsewhere (GPU, TPU, several
    devices, under `vmap` or differentiation, complex or 8-bit arrays, `jax.export`, no compiled
    kernel, see `adamx.native.status`) the step is compiled from JAX's own operations, with the same
    result.

    With every option, in this order: the gradients are clipped by their global norm; weight decay
    that is not decoupled is added to them; Adam; decoupled weight decay; the learning rate.

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype, nu_dtype, amsgrad, convention: see `adam`.
        All numbers may be traced: a learning rate that is an argument of the jitted function
        changes without recompiling.
      weight_decay: at least 0: a scalar, or a schedule of the count of steps.
      decoupled: True to shrink parameters by learning rate times weight decay, as AdamW does; False
        to add weight decay times the parameters to the gradients, as `torch.optim.Adam` does.
      mask: where weights decay; see `adamw`.
      clip_global_norm: the largest global norm of the gradients, above 0, as in
        `optax.clip_by_global_norm`; None for no limit. It reads the gradients once more.
      packed: keep all first moments in one buffer and all second moments in another. JAX spends
        about as long on passing an array into a compiled function and out as the kernel does on
        thousands of numbers: with many small leaves this is most of a step. For parameters that are
        not sharded. `adamx.unpack` gives the ordinary state.

    Returns:
      `(init, step)`, pure. `init(params)` returns the state of the `optax.chain` of those of
      `clip_by_global_norm`, `add_decayed_weights`, `scale_by_adam`, `add_decayed_weights` and
      `scale_by_learning_rate` that are asked for: that of `adam` or `adamw` without the others.
      With `packed`, a `PackedAdamState` stands in it. `step(grads, params, state)` returns the next
      parameters and state, in the dtypes given. A leaf of `grads` that is None leaves its parameter
      and moments as they were. Each leaf is computed in the widest precision of its arrays, float32
      at least, and rounded once at the end; `update` also rounds the direction, and the update, to
      the gradient's dtype.

    Raises:
      ValueError, TypeError: as `adam`; for a weight decay or norm out of range; in `init`, with
        `packed`, for complex or sharded parameters; in `step`, for gradients, parameters or a state
        whose structure or shapes are not those of one another.

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
    return _Fused(arguments, None if is_zero else decay, arguments.decoupled).pair()


@takes(FusedAdamWArguments)
def fused_adamw(arguments: FusedAdamWArguments) -> FusedOptimizer:
    """AdamW in one pass over memory: what `adamw` and `optax.apply_updates` compute.

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nu_dtype, amsgrad,
        convention: see `adamw`.
      clip_global_norm, packed: see `fused_adam`.

    Returns:
      `(init, step)` as of `fused_adam`, with the state of `adamw`.

    Raises:
      ValueError, TypeError: as `fused_adam`.
    """
    return _Fused(arguments, arguments, decoupled=True).pair()


class _Fused:
    """The arguments of a whole step, and what they make of a state and a step."""

    def __init__(
        self, arguments: StepArguments, decay: DecayArguments | None, decoupled: bool
    ) -> None:
        a = self.arguments = arguments
        self.decay, self.decoupled = decay, decoupled
        # The parts of the equivalent chain: their `init` makes the state.
        self.init_of: dict[str, Callable[[optax.Params], optax.OptState]] = {}
        if a.clip_global_norm is not None:
            self.init_of["clip"] = optax.clip_by_global_norm(a.clip_global_norm).init
        decaying = decay and optax.add_decayed_weights(decay.weight_decay, decay.mask)
        if decaying and not decoupled:
            self.init_of["decay"] = decaying.init
        if a.packed:
            self.init_of["adam"] = functools.partial(
                packed_state, a.mu_dtype, a.nu_dtype, a.amsgrad
            )
        else:
            self.init_of["adam"] = scale_by_adam(
                mu_dtype=a.mu_dtype, nu_dtype=a.nu_dtype, amsgrad=a.amsgrad
            ).init
        if decaying and decoupled:
            self.init_of["decay"] = decaying.init
        self.init_of["rate"] = optax.scale_by_learning_rate(a.learning_rate).init
        kinds = (PackedAdamState, PackedAmsgradState) if a.packed else (AdamState, AmsgradState)
        self.state_type = kinds[a.amsgrad]

    def pair(self) -> FusedOptimizer:
        return FusedOptimizer(self.init, self.step)

    def init(self, params: optax.Params) -> optax.OptState:
        return tuple(init(params) for init in self.init_of.values())

    def step(
        self, grads: optax.Updates, params: optax.Params, state: optax.OptState
    ) -> tuple[optax.Params, optax.OptState]:
        check_order(grads, params)
        parts = self._parts(state, params)
        check_params(params)
        check_gradients(grads, params, "the parameters")
        adam = parts["adam"]

        leaves, treedef = jax.tree.flatten(params)
        g_leaves = treedef.flatten_up_to(expand_nones(grads, params))
        trained = [i for i, g in enumerate(g_leaves) if g is not None]
        open_moments = open_packed if self.arguments.packed else open_separate
        moments = open_moments(adam, params, trained)
        count = jnp.asarray(optax.safe_increment(adam.count))
        decays = self._decays(params)
        plan = Plan(
            tuple(Row(*moments.spots[n], decays[i]) for n, i in enumerate(trained)),
            mu_buffers=len(moments.buffers[0]),
            nu_buffers=len(moments.buffers[1]),
            convention=CONVENTIONS[self.arguments.convention],
            amsgrad=self.arguments.amsgrad,
            decoupled=self.decoupled,
            clip=self.arguments.clip_global_norm is not None,
        )
        buffers, stepped = step_leaves(
            functools.partial(self._scalars, count, parts),
            moments.buffers,
            [jnp.asarray(g_leaves[i]) for i in trained],
            [jnp.asarray(leaves[i]) for i in trained],
            plan,
        )
        for i, p in zip(trained, stepped, strict=True):
            leaves[i] = p
        stepped_adam = type(adam)(count, *moments.close(buffers))
        # The other parts have no arrays but the counts of their schedules.
        after = tuple(
            stepped_adam if name == "adam" else jax.tree.map(optax.safe_increment, part)
            for name, part in parts.items()
        )
        return treedef.unflatten(leaves), after

    def _parts(self, state: optax.OptState, params: optax.Params) -> dict[str, Any]:
        """The parts of `state` by name, each of the type that `init` makes."""
        names = list(self.init_of)
        if not isinstance(state, tuple) or len(state) != len(names):
            found = len(state) if isinstance(state, tuple) else type(state).__name__
            raise InvalidType(
                where="state",
                expected=f"a tuple of {len(names)} parts ({', '.join(names)}), as init makes it",
                found=found,
            )
        parts = dict(zip(names, state, strict=True))
        for name, part in parts.items():
            if name == "adam":
                right, expected = isinstance(part, self.state_type), self.state_type.__name__
            else:
                like = self.init_of[name](params)
                right = jax.tree.structure(part) == jax.tree.structure(like)
                expected = type(like).__name__
            if not right:
                raise InvalidType(
                    where=f"state, part {name}",
                    expected=(
                        f"{expected}, as init makes it with amsgrad={self.arguments.amsgrad} and "
                        f"packed={self.arguments.packed}"
                    ),
                    found=type(part).__name__,
                    remedy="adamx.pack and adamx.unpack convert between packed and ordinary states",
                )
        return parts

    def _decays(self, params: optax.Params) -> list[bool]:
        """Whether weight decay applies, for each leaf."""
        leaves = jax.tree.leaves(params)
        if self.decay is None or self.decay.mask is None:
            return [self.decay is not None] * len(leaves)
        # As in Optax, a tree of truths may be of a class whose objects can be called.
        functions = jax.tree.leaves(self.decay.mask)
        is_function = bool(functions) and all(map(callable, functions))
        mask = self.decay.mask(params) if is_function else self.decay.mask
        return jax.tree.leaves(
            jax.tree.map(lambda m, part: jax.tree.map(lambda _: bool(m), part), mask, params)
        )

    def _scalars(self, count: chex.ArrayDevice, parts: dict[str, Any], dtype: np.dtype) -> Scalars:
        """The scalars of the step that leads to `count`, in `dtype`."""

        def value(name: str, given: Any, part: str) -> Any:
            if callable(given):
                given = check_scheduled(name, given(jax.tree.leaves(parts[part])[0]))
            return real_scalar(given, dtype)

        rate, max_norm = self.arguments.learning_rate, self.arguments.clip_global_norm
        return scalars(
            count,
            self.arguments.hyperparameters,
            dtype,
            rate=1.0 if rate is None else -value("learning_rate", rate, "rate"),
            weight_decay=0.0
            if self.decay is None
            else value("weight_decay", self.decay.weight_decay, "decay"),
            max_norm=0.0 if max_norm is None else real_scalar(max_norm, dtype),
        )
