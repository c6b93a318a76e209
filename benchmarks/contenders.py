"""The implementations of Adam that are timed, on the same gradients from the same parameters."""

import abc
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workloads import Shapes

__all__ = [
    "ADAM",
    "Absent",
    "Contender",
    "Optimizer",
    "Task",
    "compile_step",
    "flashoptim",
    "from_optax",
    "keras_adam",
    "task_of",
    "total",
    "why_not_imported",
]

ADAM = 1e-3, 0.9, 0.999, 1e-8  # learning rate, b1, b2, eps: in the order of Optax and Keras

# Takes (gradients, parameters, state) and returns the next (parameters, state), in the same order
# so that each array stays in its memory when the last two are donated.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Optimizer(NamedTuple):
    """Pure functions: `init(params)`, which returns the state, and the step."""

    init: Callable[[Any], Any]
    step: Step


def from_optax(tx: optax.GradientTransformation) -> Optimizer:
    """A transformation in Optax's form, and then `optax.apply_updates`."""

    def step(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return Optimizer(tx.init, step)


class Absent(Exception):
    """Why a contender cannot take part."""


def why_not_imported(error: ImportError) -> str:
    """The reason in words: the package is not installed, or what it says itself."""
    is_missing = isinstance(error, ModuleNotFoundError)
    return f"{error.name} is not installed" if is_missing else f"it could not be imported: {error}"


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What every contender starts from; its parameters begin as a copy of the gradients.

    Attributes:
      grads: float32 arrays, shared by all contenders and never donated.
      other_grads: the same for the first step, so that the decay rates show in the parameters.
      moments: the dtype of adamx's moments.
      threads: how many threads those contenders use that can be told.
      in_graph: the number of steps in one call of a compiled function; 0: each step is a call.
    """

    grads: list[jax.Array]
    other_grads: list[jax.Array]
    moments: str
    threads: int
    in_graph: int

    def params(self) -> list[jax.Array]:
        """A copy to begin with."""
        return jax.tree.map(jnp.copy, self.grads)

    @property
    def bytes(self) -> int:
        """The size of the parameters."""
        return sum(g.nbytes for g in self.grads)


def task_of(shapes: Shapes, moments: str, threads: int, in_graph: int) -> Task:
    """Gradients of magnitudes from 0.1 to 1.1, where no eps makes itself felt."""

    @jax.jit(static_argnums=1)
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        g = jax.random.uniform(key, shape, minval=-1.0)
        return g + jnp.copysign(0.1, g)

    keys = jax.random.split(jax.random.key(0), len(shapes))
    # A list: the thousand names of a flat dictionary are sorted at each call of a jitted function.
    grads = [draw(key, shape) for key, shape in zip(keys, shapes.values(), strict=True)]
    other = [4.0 * g for g in grads]
    jax.block_until_ready(other)
    return Task(grads, other, moments, threads, in_graph)


def total(memory: Any) -> int:
    """Of XLA's account of a program: the bytes of all its arrays."""
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return arrays + memory.temp_size_in_bytes - memory.alias_size_in_bytes


class Contender(abc.ABC):
    """One implementation, with parameters and moments of its own.

    Attributes:
      steps_per_call: how many steps one call of what is compiled does.
      compile_seconds: how long it took to compile; None where nothing is.
      peak: XLA's account of the memory that a call needs, all arrays included, as a multiple of the
        parameters; None for those who do not tell.
    """

    steps_per_call: int = 1
    compile_seconds: float | None = None
    peak: float | None = None

    @abc.abstractmethod
    def give(self, grads: list[jax.Array]) -> None:
        """Take these gradients from now on."""

    @abc.abstractmethod
    def run(self, calls: int) -> None:
        """Step, and return when all is done."""

    @abc.abstractmethod
    def params(self) -> list[np.ndarray]:
        """Views of the parameters."""


class Compiled(Contender):
    """A step that JAX compiles, its parameters and state donated."""

    def __init__(self, task: Task, step: Step, params: Any, state: Any) -> None:
        def several(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
            def one(_: Any, now: tuple[Any, Any]) -> tuple[Any, Any]:
                return step(grads, *now)

            return jax.lax.fori_loop(0, task.in_graph, one, (params, state))

        self._structure = jax.tree.structure(params)
        self.give(task.grads)
        self._now = (params, state)
        self._call = jax.jit(several if task.in_graph else step, donate_argnums=(1, 2))
        self.steps_per_call = task.in_graph or 1
        began = time.perf_counter()
        memory = self._call.lower(self._grads, *self._now).compile().memory_analysis()
        self.compile_seconds = time.perf_counter() - began
        self.peak = None if memory is None else total(memory) / task.bytes

    def give(self, grads: list[jax.Array]) -> None:
        self._grads = self._structure.unflatten(jax.tree.leaves(grads))

    def run(self, calls: int) -> None:
        call, grads, now = self._call, self._grads, self._now
        for _ in range(calls):
            now = call(grads, *now)
        self._now = now
        jax.block_until_ready(now[0])

    def params(self) -> list[np.ndarray]:
        return [np.asarray(p) for p in jax.tree.leaves(self._now[0])]


def compile_step(task: Task, optimizer: Optimizer) -> Contender:
    params = task.params()
    return Compiled(task, optimizer.step, params, optimizer.init(params))


def flashoptim(learning_rate: Any, **options: Any) -> Optimizer:
    """AdamW of the package flashoptim-jax, in JAX's operations: its kernel is for GPUs."""
    try:
        import flashoptim_jax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Absent(why_not_imported(error)) from error
    tx = flashoptim_jax.flash_adamw(learning_rate, fused=False, **options)
    return Optimizer(tx.init, lambda grads, params, state: tx.step(params, state, grads))


def keras_adam(task: Task) -> Contender:
    """Keras 3's optimizer as a function of its variables, which is what its trainer compiles."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Absent(why_not_imported(error)) from error
    if keras.backend.backend() != "jax":
        raise Absent(f"its backend is {keras.backend.backend()}, not jax")
    params = task.params()
    optimizer = keras.optimizers.Adam(*ADAM)
    optimizer.build([keras.Variable(g) for g in task.grads])

    def step(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        return optimizer.stateless_apply(state, grads, params)

    return Compiled(task, step, params, [variable.value for variable in optimizer.variables])
