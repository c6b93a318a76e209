"""Files of torch.save: the state dict of an Adam, wherever it stands in what was saved."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError, name_file, require
from adamx.checkpoint.fitting import fit, lay_out_for
from adamx.checkpoint.formats._keras_slots import convention_hint, whole_number
from adamx.checkpoint.formats._torch_checks import (
    LEGACY_SIGNATURE,
    check_file,
    check_real,
    verify_members,
)
from adamx.checkpoint.formats._torch_objects import model_and_names, optimizers, tensors
from adamx.checkpoint.matching import Order
from adamx.checkpoint.untrusted.account import Progress
from adamx.config.adam_config import AdamConfig

__all__ = ["LEGACY_SIGNATURE", "read_torch", "write_torch"]

_KEYS = {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"}


def read_torch(path: Path, config: AdamConfig | None, progress: Progress | None) -> Checkpoint:
    """Read the optimizer state in a `.pt` file, and the weights beside it."""
    checkpoint, *_ = _read(path, config)
    if progress:
        progress(path.stat().st_size)
    return checkpoint


def write_torch(
    path: Path,
    checkpoint: Checkpoint,
    template: Path | None,
    order: Order | None,
    drain: bool = False,
) -> list[str]:
    """Write an optimizer's state dict, or a copy of a template with the values of `checkpoint`.

    With `drain`, `checkpoint` loses its arrays, so that transposing takes no more memory.
    """
    torch = require("torch", "a .pt file")
    for name, array in checkpoint.mu.items():
        check_real(f"mu/{name}", array)
    if template is None:
        left = [f"params/{name}" for name in checkpoint.params] + list(checkpoint.extra)
        torch.save(_state_dict_alone(checkpoint, order, drain), path)
        return left
    with name_file(template, "template"):
        target, saved, state_dict, model = _read(template, checkpoint.config, values=False)
    result, left = fit(checkpoint, target, order)
    groups = state_dict["param_groups"]
    settings = {k: v for k, v in _group(result).items() if k not in _KEPT}
    if all(_hyperparameters(group) == _hyperparameters(groups[0]) for group in groups):
        for group in groups:
            group.update(settings)
    else:
        left.append("config")  # of groups with different ones, each keeps its own
    positions = [position for group in groups for position in group["params"]]
    held = [(key, getattr(result, field)) for key, field in _KEYS.items()]
    state_dict["state"] = {
        position: _step(result) | {key: _tensor(arrays[n]) for key, arrays in held if n in arrays}
        for position, n in zip(positions, result.names, strict=True)
        if n in result.mu
    }
    weights = {} if model is None else model
    for name, array in result.params.items():
        weights[name] = _tensor(array)
    torch.save(saved, path)
    return left


_KEPT = ("params", "param_names", "foreach", "capturable", "differentiable", "fused")


_HINTS = {
    "decay": "; torch has schedules beside the optimizer: save with decay=0 in the configuration, "
    "and go on there with torch.optim.lr_scheduler.LambdaLR",
    "learning_rate": "; torch has schedules beside the optimizer: save with the rate of this step "
    "in the configuration, and go on there with one of torch.optim.lr_scheduler",
}


def _state_dict_alone(checkpoint: Checkpoint, order: Order | None, drain: bool) -> dict[str, Any]:
    """What `torch.optim.Adam.load_state_dict` takes, in the order of the model's weights."""
    names = checkpoint.names
    if checkpoint.framework not in ("torch", "jax"):  # tf1's variables are sorted by name
        in_model = [name for name in checkpoint.params if name in names]
        names = tuple(in_model) if len(in_model) == len(names) else names
    new = {name: name for name in names}
    if order is not None:
        new |= checkpoint.apply_order(order, checkpoint.params or checkpoint.mu)
    group = _group(checkpoint) | {"params": list(range(len(names)))}
    if any(not new[name].isdecimal() for name in names):
        group["param_names"] = [new[name] for name in names]
    if drain:
        for field in ("params", "extra"):
            dict(checkpoint.drain(field))
    tensors: dict[str, dict[str, Any]] = {name: {} for name in checkpoint.mu}
    for key, field in _KEYS.items():
        arrays = getattr(checkpoint, field).items()
        for name, array in checkpoint.drain(field) if drain else arrays:
            tensors[name][key] = _tensor(lay_out_for(array, name, checkpoint, "torch"))
    state = {i: _step(checkpoint) | tensors[n] for i, n in enumerate(names) if n in tensors}
    return {"state": state, "param_groups": [group]}


def _group(checkpoint: Checkpoint) -> dict[str, Any]:
    """The parameter group of a checkpoint; an error where torch cannot express it."""
    try:
        return checkpoint.config.to_torch()
    except ValueError as error:
        field = str(error).partition(":")[0]
        is_convention = field == "convention"
        hint = convention_hint(checkpoint, "torch") if is_convention else _HINTS.get(field, "")
        raise CheckpointError(f"{error}{hint}") from error


def _step(checkpoint: Checkpoint) -> dict[str, Any]:
    """The steps done, as torch counts them with each parameter."""
    torch = require("torch", "a .pt file")
    step = np.float32(checkpoint.count)
    if int(step) != checkpoint.count:
        raise CheckpointError(f"count: torch's float32 step cannot hold {checkpoint.count}")
    return {"step": torch.tensor(float(step))}


def _read(
    path: Path, config: AdamConfig | None, values: bool = True
) -> tuple[Checkpoint, Any, dict[str, Any], dict[str, Any] | None]:
    """The checkpoint; all that was saved; the optimizer's and the model's state dict within it.

    Without `values`, arrays stay in the file until somebody looks at them.
    """
    torch = require("torch", "a .pt file")
    is_archive = check_file(path)
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("ignore")
        check = pool.submit(verify_members, path) if is_archive and values else None
        try:
            mapped = is_archive and not values
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            if check is not None:
                check.result()
        except Exception as error:
            if "weights_only" not in str(error).lower() and "unsupported" not in str(error).lower():
                raise
            told = next((x for x in str(error).splitlines() if "GLOBAL" in x), "").strip()
            raise CheckpointError(
                "expected tensors in plain dictionaries and lists, found other objects, which are "
                f"not loaded, since loading them may execute code. {told[:200]} Save the state "
                "dicts alone: torch.save({'model': model.state_dict(), 'optimizer': "
                "optimizer.state_dict()}, path)"
            ) from error
    found = dict(optimizers(saved))
    if len(found) != 1:
        where = f"{len(found)}: {listed(found)}" if found else "none"
        raise CheckpointError(
            f"expected the state dict of one optimizer, found {where}"
            + ("; save the one to go on with in a file of its own" if found else "")
        )
    state_dict = next(iter(found.values()))
    size = path.stat().st_size
    groups, positions = _groups(state_dict)
    if "amsgrad" not in groups[0]:  # RAdam's state looks like Adam's
        raise CheckpointError(
            f"param_groups: expected those of Adam or AdamW, found {listed(map(str, groups[0]))}"
        )
    config = config or _config(groups)
    state = state_dict["state"]
    moments: dict[int, dict[str, np.ndarray]] = {}
    steps = {}
    for position in positions:
        if position in state:
            steps[position], moments[position] = _entry(position, state[position], size)
    if unknown := sorted(map(str, state.keys() - set(positions))):
        raise CheckpointError(
            f"state: expected entries of the groups' params, found {unknown[:10]}"
        )
    if not moments:
        raise CheckpointError("the optimizer has not taken a step: there is no state to go on with")
    if len(set(steps.values())) > 1:
        raise CheckpointError(
            "step: expected one number of steps, found "
            f"{listed(f'{steps[p]} (parameter {p})' for p in steps)}; adamx counts them together"
        )
    shapes = [moments[p]["mu"].shape if p in moments else None for p in positions]
    model, names = model_and_names(saved, groups, shapes)
    weights = None if model is None else tensors(model)
    count = next(iter(steps.values()))
    arrays = {
        field: {
            names[i]: moments[p][field]
            for i, p in enumerate(positions)
            if p in moments and field in moments[p]
        }
        for field in _KEYS.values()
    }
    params = {} if weights is None else {n: _array(f"{n}", t, size) for n, t in weights.items()}
    checkpoint = Checkpoint(
        framework="torch",
        version=None,
        config=config,
        count=count,
        names=tuple(names),
        params=params,
        mu=arrays["mu"],
        nu=arrays["nu"],
        nu_max=arrays["nu_max"],
    )
    return checkpoint, saved, state_dict, model


def _groups(state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
    """The parameter groups, and the positions of their parameters in order."""
    groups = list(state_dict["param_groups"])
    positions: list[int] = []
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise CheckpointError(
                f"param_groups: expected dictionaries with params, found {type(group).__name__}"
            )
        positions += group["params"]
    if not groups or any(not isinstance(p, int) or isinstance(p, bool) for p in positions):
        raise CheckpointError("param_groups: expected positions of parameters in params")
    if len(set(positions)) != len(positions):
        raise CheckpointError("param_groups: expected every parameter once")
    return groups, positions


def _plain(value: Any) -> Any:
    """A number, a flag or a text, or a pair of such: what can be compared and has a `repr`."""
    torch = require("torch", "a .pt file")
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        is_pair = len(value) <= 2 and not any(isinstance(v, list | tuple) for v in value)
        if is_pair:
            return tuple(map(_plain, value))
    elif value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"expected a number, found {type(value).__name__}")


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _KEPT}


def _config(groups: Sequence[Mapping[str, Any]]) -> AdamConfig:
    otherwise = "To go on with other hyperparameters, give config="
    try:
        plain = [{k: _plain(v) for k, v in _hyperparameters(group).items()} for group in groups]
        configs = [AdamConfig.from_torch(group) for group in plain]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"param_groups: {error}. {otherwise}") from error
    for index, other in enumerate(configs):
        if other != configs[0]:
            keys = [k for k in plain[0] if plain[0][k] != plain[index].get(k)]
            raise CheckpointError(
                f"param_groups: expected groups with the same hyperparameters, found groups 0 and "
                f"{index} with other {listed(keys)}; an AdamConfig holds one set. {otherwise}, and "
                "treat the groups with optax.partition"
            )
    return configs[0]


def _entry(position: int, entry: Any, size: int) -> tuple[int, dict[str, np.ndarray]]:
    """The steps done and the moments of one parameter."""
    where = f"state/{position}"
    if not isinstance(entry, Mapping) or not {"step", "exp_avg", "exp_avg_sq"} <= entry.keys():
        keys = listed(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise CheckpointError(
            f"{where}: expected Adam's step, exp_avg and exp_avg_sq, found {keys}"
        )
    if unknown := sorted(map(str, entry.keys() - _KEYS.keys() - {"step"})):
        raise CheckpointError(f"{where}: expected the state of Adam, found {listed(unknown)} in it")
    step = entry["step"]
    if not isinstance(step, int | float):
        step = _array(f"{where}/step", step, size)
    count = whole_number(f"{where}/step", np.asarray(step))
    moments = {
        field: _array(f"{where}/{key}", entry[key], size)
        for key, field in _KEYS.items()
        if key in entry
    }
    for field, array in moments.items():
        check_real(f"{where}/{field}", array)
    return count, moments


def _array(where: str, tensor: Any, size: int) -> np.ndarray:
    """A tensor as a NumPy array that shares its memory."""
    torch = require("torch", "a .pt file")
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise CheckpointError(f"{where}: expected a dense tensor, found {type(tensor).__name__}")
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        raise CheckpointError(
            f"{where}: expected a tensor with values, found one on {tensor.device}"
        )
    claimed = tensor.numel() * tensor.element_size()
    if claimed > min(tensor.untyped_storage().nbytes(), size):
        raise CheckpointError(
            f"{where}: shape {tuple(tensor.shape)} claims more than the file holds"
        )
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.dtype(jnp.bfloat16))
    return tensor.numpy()


def _tensor(array: np.ndarray) -> Any:
    torch = require("torch", "a .pt file")
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == np.dtype(jnp.bfloat16):
        return torch.from_numpy(array.view(np.int16)).contiguous().view(torch.bfloat16)
    return torch.from_numpy(array).contiguous()
