"""Who is timed beside whom: one race for each choice of adamx's moments."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

import adamx
from benchmarks.contenders import (
    ADAM,
    Contender,
    Optimizer,
    Task,
    compile_step,
    flashoptim,
    from_optax,
    keras_adam,
)
from benchmarks.limit import limit
from benchmarks.torch_contenders import torch_adam

__all__ = ["RACES", "Race"]

Contenders = Mapping[str, Callable[[Task], Contender]]


@dataclasses.dataclass(frozen=True)
class Race:
    """Some contenders that do the same work.

    Attributes:
      contenders: in the order of tables and pictures.
      base: the one whose time, and whose parameters, the others are compared with.
      farthest: how far parameters may be from the base's, as a part of the way gone.
    """

    contenders: Contenders
    base: str
    farthest: float


def _step(task: Task, packed: bool) -> Contender:
    dtype = task.moments
    optimizer = adamx.fused_adam(*ADAM, mu_dtype=dtype, nu_dtype=dtype, packed=packed)
    return compile_step(task, Optimizer(*optimizer))


def _update(task: Task) -> Contender:
    tx = adamx.adam(*ADAM, mu_dtype=task.moments, nu_dtype=task.moments)
    return compile_step(task, from_optax(tx))


_ADAM: Contenders = {
    "step": lambda task: _step(task, packed=False),
    "packed": lambda task: _step(task, packed=True),
    "update": _update,
    "optax": lambda task: compile_step(task, from_optax(optax.adam(*ADAM))),
    "torch-fused": lambda task: torch_adam(task, "fused"),
    "torch-foreach": lambda task: torch_adam(task, "foreach"),
    "keras": keras_adam,
    "limit": limit,
}

_DECAY = 1e-4  # Optax's default


def _fused_adamw(task: Task, **options: Any) -> Contender:
    return compile_step(task, Optimizer(*adamx.fused_adamw(*ADAM, weight_decay=_DECAY, **options)))


def _adamw(task: Task, module: Any, **options: Any) -> Contender:
    return compile_step(task, from_optax(module.adamw(*ADAM, weight_decay=_DECAY, **options)))


def _flashoptim(task: Task) -> Contender:
    rate, b1, b2, eps = ADAM
    options: dict[str, Any] = {"weight_decay": _DECAY, "master_weight_bits": None}
    return compile_step(task, flashoptim(rate, b1=b1, b2=b2, eps=eps, **options))


_FEW_BITS: Contenders = {
    "float32": _fused_adamw,
    "bfloat16": lambda task: _fused_adamw(task, mu_dtype="bfloat16", nu_dtype="bfloat16"),
    "8bit": lambda task: _fused_adamw(task, moments="8bit"),
    "update-8bit": lambda task: _adamw(task, adamx, moments="8bit"),
    "optax": lambda task: _adamw(task, optax),
    "flashoptim": _flashoptim,
}

# By the form of adamx's moments. The farthest seen were 5e-5, 1e-2 and 2.3e-2. On the other side,
# b2 = 0.99 in place of 0.999 comes to 2e-3, b1 = 0.8 to 3e-2, and moments without the correction of
# their bias to 13.
RACES = {
    "float32": Race(_ADAM, "optax", 2e-4),
    "bfloat16": Race(_ADAM, "optax", 3e-2),
    "8bit": Race(_FEW_BITS, "float32", 4e-2),
}
