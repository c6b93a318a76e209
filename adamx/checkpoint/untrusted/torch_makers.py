"""What the functions of torch that a pickle calls make of their arguments."""

import math
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.pickle_machine import Machine, Maker
from adamx.checkpoint.untrusted.pickle_names import refuse_object
from adamx.checkpoint.untrusted.pickle_stack import CONTAINER
from adamx.checkpoint.untrusted.stand_ins import Global, Size, StandIn
from adamx.checkpoint.untrusted.torch_tensors import (
    Storage,
    Tensor,
    TensorStandIn,
    find_dtype,
    is_shape,
)

__all__ = ["TENSOR_MAKERS"]

_MOST_DIMENSIONS, _MOST_BYTES = 32, 1 << 62
_TENSOR = 400  # bytes of memory that an array takes beside its values
# Classes of tensors that have nothing beside their values.
_CLASSES = {
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
}


def _make_tensor(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    """Of a storage, an offset, a shape and strides; in version 3 also of a dtype."""
    if len(parts) < 4:
        raise ValueError("a tensor without a shape")
    storage, offset, shape, strides = parts[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if type(offset) is not int or offset < 0 or not is_shape(shape) or not is_shape(strides):
        raise ValueError("a tensor whose shape is none")
    if len(shape) != len(strides):
        raise ValueError("a tensor whose shape is none")
    is_third = function.qualname.endswith("_v3")
    told = parts[6] if is_third and len(parts) > 6 else None
    dtype = storage.dtype
    if isinstance(told, Global):
        dtype = find_dtype(told.qualname)
    bits = parts[7:8] if is_third else parts[6:7]
    problem = _find_problem(storage, dtype, shape)
    if problem:
        return TensorStandIn(function, parts, problem, shape, told)
    assert dtype is not None
    needed = 1 + offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if all(shape) and needed * dtype.itemsize > storage.nbytes:
        raise CheckpointError(
            f"a tensor of shape {shape} claims {needed} values, but its storage has "
            f"{storage.nbytes // dtype.itemsize}"
        )
    if bits and isinstance(bits[0], dict) and any(bits[0].values()):
        return TensorStandIn(function, parts, "the conjugate or negative of another", shape)
    machine.spend(_TENSOR)
    if not all(shape):
        tensor = np.ndarray.__new__(Tensor, shape, dtype)
    else:
        tensor = np.ndarray.__new__(
            Tensor,
            shape,
            dtype,
            storage.memory,
            offset * dtype.itemsize,
            [stride * dtype.itemsize for stride in strides],
        )
    tensor.call, tensor.storage = StandIn(function, parts), storage
    return tensor


def _find_problem(storage: Storage, dtype: Any, shape: tuple[int, ...]) -> str:
    """Why there is no array for a tensor; empty if there is one."""
    if dtype is None:
        return "of a dtype that NumPy does not support"
    if storage.memory is None:
        return "not read"
    if len(shape) > _MOST_DIMENSIONS:
        return f"of {len(shape)} dimensions"
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _MOST_BYTES:
        return "larger than any memory"
    return ""


def _make_of_data(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    """A parameter: the values of a tensor."""
    machine.spend(_TENSOR)
    data = parts[0] if parts else None
    return _rewrap(data, function, parts)


def _rewrap(inner: Any, function: Global, parts: tuple[Any, ...]) -> Any:
    """A tensor, or what stands for one, as another function makes it; else a plain stand-in."""
    if isinstance(inner, Tensor):
        wrapped = inner.view(Tensor)
        wrapped.call, wrapped.storage = StandIn(function, parts), inner.storage
        return wrapped
    if isinstance(inner, TensorStandIn):
        stand_in = TensorStandIn(function, parts, inner.problem, inner.shape)
        stand_in.dtype = inner.dtype
        return stand_in
    return StandIn(function, parts)


def _make_of_type(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    """A tensor with attributes, or of a class of its own, which may hold something else."""
    if len(parts) != 4:
        raise ValueError("a tensor without a class")
    inner, kind, arguments, _ = parts
    name = kind.name if isinstance(kind, Global) else ""
    maker = TENSOR_MAKERS.get(inner.name) if isinstance(inner, Global) else None
    if name in _CLASSES and maker not in (None, _make_of_type) and isinstance(arguments, tuple):
        assert maker is not None
        machine.spend(CONTAINER + _TENSOR)
        return _rewrap(maker(machine, inner, arguments), function, parts)
    return StandIn(function, parts)


def _make_of_array(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Any:
    """A tensor of a device such as a TPU, saved as a NumPy array."""
    machine.spend(_TENSOR)
    array = parts[0] if parts else None
    dtype = parts[1] if len(parts) > 1 else None
    target = find_dtype(dtype.qualname) if isinstance(dtype, Global) else None
    if not isinstance(array, np.ndarray) or target != array.dtype:
        shape = array.shape if isinstance(array, np.ndarray) else ()
        return TensorStandIn(function, parts, "of another device, and another dtype", shape, dtype)
    tensor = array.view(Tensor)
    tensor.call = StandIn(function, parts)
    return tensor


def _make_other(problem: str, shape: int, dtype: int) -> Maker:
    """A tensor of another layout, whose shape and dtype are two of the arguments."""

    def make(machine: Machine, function: Global, parts: tuple[Any, ...]) -> TensorStandIn:
        machine.spend(CONTAINER)
        padded = (*parts, *(None,) * 8)
        return TensorStandIn(function, parts, problem, padded[shape], padded[dtype])

    return make


def _make_size(machine: Machine, function: Global, parts: tuple[Any, ...]) -> Size:
    numbers = parts[0] if parts else ()
    if len(parts) > 1 or not isinstance(numbers, tuple | list):
        raise refuse_object(f"{function.module} {function.qualname}")
    if not all(type(number) is int for number in numbers):
        raise refuse_object(f"{function.module} {function.qualname}")
    machine.spend(8 * len(numbers))
    return Size(numbers)


TENSOR_MAKERS: dict[str, Maker] = {
    "torch.Size": _make_size,
    "torch._tensor._rebuild_from_type": _make_of_type,
    "torch._tensor._rebuild_from_type_v2": _make_of_type,
    "torch._utils._rebuild_device_tensor_from_numpy": _make_of_array,
    "torch._utils._rebuild_meta_tensor_no_storage": _make_other("without values (meta)", 1, 0),
    "torch._utils._rebuild_nested_tensor": _make_other("a nested one", 7, 7),
    "torch._utils._rebuild_parameter": _make_of_data,
    "torch._utils._rebuild_parameter_with_state": _make_of_data,
    "torch._utils._rebuild_qtensor": _make_other("a quantized one", 2, 7),
    "torch._utils._rebuild_sparse_tensor": _make_other("a sparse one", 7, 7),
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor_v3": _make_tensor,
    "torch._utils._rebuild_xla_tensor": _make_of_array,
}
"""By the name of a function of torch, what is called in its stead."""
