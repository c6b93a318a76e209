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
from adamx.base.trees import expand_nones, is_none
from adamx.fused.arguments import StepArguments
from adamx.fused.layout import PackedAdamState, PackedAmsgradState
from adamx.fused.moments import check_order, open_packed, open_separate
from adamx.fused.packed import packed_state
from adamx.fused.plan import Plan, Row
from adamx.fused.step import step_leaves
from adamx.transforms.adam import nu_keys, scale_by_adam
from adamx.transforms.narrow import check_narrow
from adamx.transforms.residual import (
    ResidualState,
    check_residual,
    residual_keys,
    residual_params,
)
from adamx.transforms.scaling import add_weight_decay

__all__ = ["WholeStep"]

_TO_CONVERT = (
    "To continue from the state of a chain, use "
    "adamx.from_numpy(optimizer.init(params), adamx.to_numpy(state))"
)
_TO_SPLIT = (
    "adamx.split_params(weights, params, that), where weights is adamx.full_params(params, state)"
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
        if a.residual_bits is not None:
            key = 0 if a.residual_key is None else a.residual_key
            found["residual"] = residual_params(a.residual_bits, key=key).init
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
        residuals = self._residuals(parts, params)
        with_residual = [i for i in trained if residuals[i] is not None]
        kept = self.arguments.residual_bits or 0
        bits = [0 if residuals[i] is None else kept for i in trained]
        plan = Plan(
            tuple(
                Row(*moments.spots[n], decays[i], moments.groups[n], bits[n])
                for n, i in enumerate(trained)
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
        keys: list[chex.ArrayDevice] = []
        if any(moments.groups):
            keys.append(moment_keys(self.arguments.eight_bit, count, len(leaves)))
        elif self.arguments.nu_key is not None:
            keys.append(nu_keys(self.arguments.nu_key, count, len(leaves)))
        if with_residual:
            # The chain counts leaves that are None.
            every = jax.tree.leaves(params, is_leaf=is_none)
            present = np.array([n for n, p in enumerate(every) if p is not None], int)
            keys.append(residual_keys(parts["residual"], len(every))[present])
        (*buffers, rests), stepped = step_leaves(
            functools.partial(self._numbers, count, parts),
            jnp.concatenate(keys, axis=1)[np.array(trained, int)] if keys else None,
            [*moments.buffers, [jnp.asarray(residuals[i]) for i in with_residual]],
            [jnp.asarray(g_leaves[i]) for i in trained],
            [jnp.asarray(leaves[i]) for i in trained],
            plan,
        )
        for i, p in zip(trained, stepped, strict=True):
            leaves[i] = p
        for i, r in zip(with_residual, rests, strict=True):
            residuals[i] = r
        known = {"adam": type(adam)(count, *moments.close(buffers))}
        if (part := parts.get("residual")) is not None:
            next_count = jnp.asarray(optax.safe_increment(part.count))
            known["residual"] = part._replace(
                count=next_count, residual=treedef.unflatten(residuals)
            )
        # The other parts have no arrays but the counts of their schedules.
        after = tuple(
            known[name] if name in known else jax.tree.map(optax.safe_increment, part)
            for name, part in parts.items()
        )
        return treedef.unflatten(leaves), after

    def _residuals(self, parts: dict[str, Any], params: Any) -> list[Any]:
        """The residual of each leaf, or None; raise if they are not those of `params`."""
        treedef = jax.tree.structure(params)
        if (part := parts.get("residual")) is None:
            return [None] * treedef.num_leaves
        check_narrow(params, part.narrow)
        check_residual(part.residual, params, self.arguments.residual_bits)
        return treedef.flatten_up_to(part.residual)

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
                remedy=self._to_convert(state),
            )
        parts = dict(zip(names, state, strict=True))
        kinds = {"adam": self.state_type, "residual": ResidualState}
        for name, part in parts.items():
            if name in kinds:
                right, expected = isinstance(part, kinds[name]), kinds[name].__name__
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

    def _to_convert(self, state: Any) -> str:
        """How to continue from a state of other parts."""
        if self.arguments.residual_bits is not None:
            return f"{_TO_CONVERT}; then {_TO_SPLIT}"
        leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, ResidualState))
        if any(isinstance(x, ResidualState) for x in leaves):
            return "the parameters have residuals: pass residual_bits"
        return _TO_CONVERT

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
