"""The optimizer in what torch saved, its model, and the names of its parameters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from adamx.base.trees import listed
from adamx.checkpoint.consistency import Naming
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import Source
from adamx.checkpoint.formats._torch_flat import is_flat, unflatten
from adamx.checkpoint.formats._torch_names import match_shapes
from adamx.checkpoint.formats._torch_objects import (
    choose_model,
    choose_optimizer,
    list_others,
    list_tensors,
)
from adamx.checkpoint.formats._torch_tensors import describe, is_inexact
from adamx.checkpoint.untrusted.torch_tensors import Tensor

__all__ = ["Found", "find_place", "find_state"]

_Groups = Sequence[Mapping[str, Any]]
Shape = tuple[int, ...]


class Found(NamedTuple):
    """The optimizer in what was saved, and the names of its parameters.

    Attributes:
      held: the dictionary in the file, which may be flat.
      state_dict: the same with `state` and `param_groups`.
      positions: what each parameter is called in `state`, in the order of the groups.
      names: of the parameters, in this order.
      naming: how the names are known.
      model: the weights' dictionary, or None.
      shapes: of the parameters, group by group; None for one without moments.
      others: what else is in the file.
      library: what the file calls the optimizer, as fairseq's do; or "".
    """

    held: dict[str, Any]
    state_dict: dict[str, Any]
    positions: list[int | str]
    names: list[str]
    naming: Naming
    model: dict[str, Any] | None
    shapes: list[list[Shape | None]]
    others: list[str]
    library: str


def find_state(saved: Any, source: Source, *, in_order: bool = True) -> Found:
    """Find the optimizer and its model.

    Args:
      saved: what was saved.
      source: has the keys of the optimizer and of the weights, where the user gave them.
      in_order: whether weights are in the order of the model.
    """
    key, held = choose_optimizer(saved, source.optimizer)
    state_dict = unflatten(held) if is_flat(held) else held
    groups, positions = _list_positions(state_dict)
    state = state_dict["state"]
    shapes = [
        [_find_shape(state[p]) if p in state else None for p in group["params"]] for group in groups
    ]
    given = _list_given_names(groups, positions)
    matched: dict[int, list[list[str]] | None] = {}

    flat = [shape for group in shapes for shape in group]

    def list_shapes(model: dict[str, Any]) -> dict[str, Shape]:
        tensors = _drop_tied(list_tensors(model))
        return {name: tuple(x.shape) for name, x in tensors.items() if is_inexact(x)}

    def fits(model: dict[str, Any]) -> bool:
        held = list_shapes(model)
        if given is not None:
            return all(
                name in held and shape in (None, held[name])
                for name, shape in zip(given, flat, strict=True)
            )
        matched[id(model)] = match_shapes(shapes, held, in_order=in_order)
        return matched[id(model)] is not None

    def may_fit(model: dict[str, Any]) -> bool:
        wanted = Counter(shape for shape in flat if shape is not None)
        return wanted <= Counter(list_shapes(model).values())

    found = choose_model(saved, source.weights, fits, may_fit)
    model = None if found is None else found[1]
    names, naming = [str(index) for index in range(len(positions))], "unknown"
    if given is not None:
        names, naming = given, "file"
    elif model is not None:
        fits(model)
        if (chosen := matched[id(model)]) is not None:
            names, naming = [name for group in chosen for name in group], "inferred"
    keys = {key: held} | ({} if found is None else {found[0]: found[1]})
    others, library = list_others(saved, keys), _read_library(saved)
    return Found(held, state_dict, positions, names, naming, model, shapes, others, library)


def _read_library(saved: Any) -> str:
    """The name of the optimizer's class, in files of fairseq."""
    history = saved.get("optimizer_history") if isinstance(saved, Mapping) else None
    last = history[-1] if isinstance(history, list) and history else None
    name = last.get("optimizer_name") if isinstance(last, Mapping) else None
    return name if isinstance(name, str) else ""


def _list_positions(
    state_dict: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[int | str]]:
    """The parameter groups, and what their parameters are called in order.

    An optimizer counts them. `torch.distributed` calls them by their names.
    """
    groups = list(state_dict["param_groups"])
    positions: list[int | str] = []
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise CheckpointError(
                where="param_groups",
                expected="dictionaries with params",
                found=describe(group),
            )
        positions += group["params"]
    kinds = {type(position) for position in positions}
    if kinds not in ({int}, {str}):
        raise CheckpointError(
            where="param_groups",
            expected="positions or names of parameters in params",
            found=listed(sorted(kind.__name__ for kind in kinds)) or "none",
        )
    if len(set(positions)) != len(positions):
        raise CheckpointError(where="param_groups", expected="every parameter once")
    return groups, positions


def _list_given_names(groups: _Groups, positions: Sequence[int | str]) -> list[str] | None:
    """The names that the file tells: the keys of its state, or `param_names` in the groups."""
    given = list(positions)
    if not isinstance(given[0], str):
        given = [name for group in groups for name in group.get("param_names") or ()]
    names = [name for name in given if isinstance(name, str)]
    is_complete = len(names) == len(given) == len(positions)
    return names if is_complete and len(set(names)) == len(names) else None


def _drop_tied(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors without second names for one tensor, as `parameters()` lists them."""
    kept, seen = {}, set()
    for name, tensor in tensors.items():
        place = find_place(tensor)
        if place in seen:
            continue
        if place is not None:
            seen.add(place)
        kept[name] = tensor
    return kept


def find_place(tensor: Any) -> tuple[Any, ...] | None:
    """A key that is equal for names of one tensor; None if it has no elements in the file."""
    if not isinstance(tensor, Tensor) or not tensor.size:
        return None
    return tensor.ctypes.data, tensor.shape, tensor.strides


def _find_shape(entry: Any) -> Shape | None:
    """The shape of a parameter, by its moments."""
    if isinstance(entry, Mapping):
        entry = {**entry, **(entry.get("__bnb_optimizer_quant_state__") or {})}
        for key in ("exp_avg", "state1"):
            if (shape := getattr(entry.get(key), "shape", None)) is not None:
                return tuple(shape)
    return None
