"""PyTorch's Adam, on the CPU."""

from collections.abc import Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import jax
import numpy as np

from benchmarks.contenders import ADAM, Absent, Contender, Task, why_not_imported

__all__ = ["torch_adam"]

# An optimizer of each task. Its parameters and moments serve the next one too, so that a large
# network is not in memory twice.
_FIRST: WeakKeyDictionary[Task, Any] = WeakKeyDictionary()


def torch_adam(task: Task, way: Literal["fused", "foreach"]) -> Contender:
    if task.in_graph:
        raise Absent("not a part of JAX's graph")
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Absent(why_not_imported(error)) from error
    torch.set_num_threads(task.threads)
    return _TorchAdam(torch, task, way)


class _TorchAdam(Contender):
    def __init__(self, torch: Any, task: Task, way: Literal["fused", "foreach"]) -> None:
        self._torch = torch
        first = _FIRST.get(task)
        if first is None:
            self._params = [torch.nn.Parameter(g.clone()) for g in self._tensors(task.grads)]
        else:
            self._params = first.param_groups[0]["params"]
        rate, b1, b2, eps = ADAM
        self._optimizer = torch.optim.Adam(
            self._params, lr=rate, betas=(b1, b2), eps=eps, **{way: True}
        )
        if first is None:
            _FIRST[task] = self._optimizer
        else:
            self._optimizer.state.update(first.state)
            self._start_over(task)

    def _start_over(self, task: Task) -> None:
        for param, g in zip(self._params, self._tensors(task.grads), strict=True):
            param.data.copy_(g)
            for tensor in self._optimizer.state[param].values():
                tensor.zero_()

    def _tensors(self, grads: list[jax.Array]) -> Iterator[Any]:
        """The same memory as tensors."""
        return (self._torch.from_dlpack(g) for g in grads)

    def give(self, grads: list[jax.Array]) -> None:
        for param, g in zip(self._params, self._tensors(grads), strict=True):
            param.grad = g

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._optimizer.step()

    def params(self) -> list[np.ndarray]:
        return [param.detach().numpy() for param in self._params]
