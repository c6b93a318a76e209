"""A whole step as its arguments define it: from gradients, parameters and a state to the next."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.adam_state import AdamState, AmsgradState
from adamx.base.arguments import DecayArguments
from adamx.base.checks import check_gradients, check_params, check_scheduled, resolve_mask
from adamx.base.dtypes import real_scalar
from adamx.base.eight_bit import moment_keys
from adamx.base.errors import InvalidType
from adamx.base.numerics import CONVENTIONS, bias_correction, scalars
from adamx.base.trees import expand_nones
from adamx.fused.arguments import StepArguments
from adamx.fused.layout import PackedAdamState, PackedAmsgradState
from adamx.fused.moments import check_order, open_packed, open_separate
from adamx.fused.packed import packed_state
from adamx.fused.plan import Plan, Row
from adamx.fused.step import step_leaves
from adamx.transforms.adam import nu_keys, scale_by_adam
from adamx.transforms.scaling import add_weight_decay

__all__ = ["WholeStep"]

_TO_CONVERT = (
    "To continue from the state of a chain, use "
    "adamx.from_numpy(optimizer.init(params), adamx.to_numpy(state))"
)


class WholeStep:
    """The arguments of a whole step, and the pair of functions that they define."""

    def __init__(
        self, arguments: StepArguments, decay: DecayArguments | None, decoupled: bool
    ) -> None:
        a = self.arguments = arguments
        self.decay, self.decoupled = decay, decoupled
        kinds = (PackedAdamState, PackedAmsgradState) if a.packed else (AdamState, AmsgradState)
        self.state_type = kinds[a.amsgrad]

    def parts(self) -> dict[str, Callable[[Any], Any]]:
        """The parts of the equivalent chain, each by the `init` that makes its state.

        Built at each call: Optax's transformations cannot be pickled.
        """
        a, decay = self.arguments, self.decay
        found: dict[str, Callable[[Any], Any]] = {}
        decaying = decay and add_weight_decay(decay.weight_decay, decay.mask)
        if a.clip_global_norm is not None:
            found["clip"] = optax.clip_by_global_norm(a.clip_global_norm).init
        if decaying and not self.decoupled:
            found["decay"] = decaying.init
        if a.packed:
            found["adam"] = functools.partial(packed_state, a.mu_dtype, a.nu_dtype, a.amsgrad)
        else:
            found["adam"] = scale_by_adam(
                mu_dtype=a.mu_dtype, nu_dtype=a.nu_dtype, amsgrad=a.amsgrad, moments=a.eight_bit
            ).init
        if decaying and self.decoupled:
            found["decay"] = decaying.init
        found["rate"] = optax.scale_by_learning_rate(a.learning_rate).init
        return found

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        _check_trained(params)
        return tuple(init(params) for init in self.parts().values())

    def step(self, grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        """The next parameters and state."""
        check_order(grads, params)
        parts = self._split(state, params)
        _check_trained(params)
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
            tuple(
                Row(*moments.spots[n], decays[i], moments.groups[n]) for n, i in enumerate(trained)
            ),
            mu_buffers=len(moments.buffers[0]),
            nu_buffers=len(moments.buffers[1]),
            convention=CONVENTIONS[self.arguments.convention],
            amsgrad=self.arguments.amsgrad,
            decoupled=self.decoupled,
            clip=self.arguments.clip_global_norm is not None,
            nesterov=self.arguments.nesterov,
            rounds_nu_at_random=self.arguments.nu_key is not None,
        )
        keys = None
        if any(moments.groups):
            keys = moment_keys(self.arguments.eight_bit, count, len(leaves))
        elif self.arguments.nu_key is not None:
            keys = nu_keys(self.arguments.nu_key, count, len(leaves))
        buffers, stepped = step_leaves(
            functools.partial(self._numbers, count, parts),
            None if keys is None else keys[np.array(trained, int)],
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

    def _split(self, state: Any, params: Any) -> dict[str, Any]:
        """The parts of `state` by name, each of the type that `init` makes."""
        init_of = self.parts()
        names = list(init_of)
        if not isinstance(state, tuple) or len(state) != len(names):
            found = len(state) if isinstance(state, tuple) else type(state).__name__
            raise InvalidType(
                where="state",
                expected=f"a tuple of {len(names)} parts ({', '.join(names)}), as init makes it",
                found=found,
                remedy=_TO_CONVERT,
            )
        parts = dict(zip(names, state, strict=True))
        for name, part in parts.items():
            if name == "adam":
                right, expected = isinstance(part, self.state_type), self.state_type.__name__
            else:
                like = init_of[name](params)
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
        mask = resolve_mask(self.decay.mask, params)
        return jax.tree.leaves(
            jax.tree.map(lambda m, part: jax.tree.map(lambda _: m, part), mask, params)
        )

    def _numbers(
        self, count: chex.ArrayDevice, parts: dict[str, Any], dtype: np.dtype
    ) -> list[chex.Numeric]:
        """The numbers of the step that leads to `count`, in `dtype`; see `step_leaves`."""

        def value(name: str, given: Any, part: str) -> Any:
            if callable(given):
                given = check_scheduled(name, given(jax.tree.leaves(parts[part])[0]))
            return real_scalar(given, dtype)

        rate, max_norm = self.arguments.learning_rate, self.arguments.clip_global_norm
        decay = 0.0 if self.decay is None else self.decay.weight_decay
        hyper = self.arguments.hyperparameters
        numbers: list[chex.Numeric] = [
            *scalars(
                count,
                hyper,
                dtype,
                rate=1.0 if rate is None else -value("learning_rate", rate, "rate"),
                weight_decay=value("weight_decay", decay, "decay"),
                max_norm=0.0 if max_norm is None else real_scalar(max_norm, dtype),
            )
        ]
        if self.arguments.nesterov:
            next_count = jnp.asarray(optax.safe_increment(count))
            numbers.append(bias_correction(hyper.b1, next_count, dtype))
        return numbers


def _check_trained(params: Any) -> None:
    """`check_params`, with another remedy: `optax.masked` cannot wrap a whole step."""
    try:
        check_params(params)
    except InvalidType as error:
        remedy = (
            "convert it, or replace it by None in the trees that init and step get, as "
            "equinox.partition does"
        )
        raise error.replace(remedy=remedy) from None
