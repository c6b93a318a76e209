"""What stands where in what `torch.save` wrote: the optimizer, the model, and their names."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adamx.checkpoint.errors import CheckpointError, require

__all__ = ["model_and_names", "optimizers", "tensors"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_DEEPEST = 32  # containers within one another


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((str(key)[:80], value) for key, value in node.items())
    elif isinstance(node, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(node))


def _walk(node: Any, place: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Everything within what was saved, each thing once, with its place; not within optimizers."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield "/".join(place) or "the whole file", node
    if len(place) > _DEEPEST:
        raise CheckpointError(f"{'/'.join(place):.200}: too many containers within one another")
    if not _is_optimizer(node):
        for key, child in _children(node):
            if isinstance(child, Mapping | list | tuple):
                yield from _walk(child, (*place, key), seen)


def _is_optimizer(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), Mapping)
        and isinstance(node.get("param_groups"), list | tuple)
    )


def optimizers(saved: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state dicts of optimizers, with their places."""
    return ((place, node) for place, node in _walk(saved, (), set()) if _is_optimizer(node))


def _models(saved: Any) -> list[dict[str, Any]]:
    """What may be state dicts of models: dictionaries with tensors in them under names."""
    torch = require("torch", "a .pt file")
    return [
        node
        for _, node in _walk(saved, (), set())
        if isinstance(node, dict)
        and all(isinstance(key, str) for key in node)
        and any(isinstance(value, torch.Tensor) for value in node.values())
    ]


def tensors(model: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors in a state dict, without what else it holds."""
    torch = require("torch", "a .pt file")
    return {name: x for name, x in model.items() if isinstance(x, torch.Tensor)}


def model_and_names(
    saved: Any,
    groups: Sequence[Mapping[str, Any]],
    shapes: Sequence[tuple[int, ...] | None],
) -> tuple[dict[str, Any] | None, list[str]]:
    """The state dict of the optimizer's model, if only one is, and the names of its parameters."""
    models = _models(saved)
    unknown = [str(index) for index in range(len(shapes))]
    given = [name for group in groups for name in group.get("param_names", ())]
    if len(given) != len(shapes) or len({str(name) for name in given}) != len(given):
        given = []
    if not all(isinstance(name, str) for name in given):
        given = []
    if given or len(groups) > 1:
        fitting = [model for model in models if not given or _holds(model, given, shapes)]
        names = given or unknown
    else:
        told = [(model, _told_names(shapes, tensors(model))) for model in models]
        fitting = [model for model, found in told if found is not None]
        choices = {tuple(found) for _, found in told if found is not None}
        names = list(choices.pop()) if len(choices) == 1 else unknown
    if not fitting:
        fitting = models
    return (fitting[0] if len(fitting) == 1 else None), names


def _holds(
    model: Mapping[str, Any], names: Sequence[str], shapes: Sequence[tuple[int, ...] | None]
) -> bool:
    held = tensors(model)
    return all(
        name in held and shape in (None, tuple(held[name].shape))
        for name, shape in zip(names, shapes, strict=True)
    )


def _told_names(
    shapes: Sequence[tuple[int, ...] | None], weights: Mapping[str, Any]
) -> list[str] | None:
    """The names of the optimizer's parameters, told by a model's state dict; None if it does not.

    It has the parameters in the order of `model.parameters()`, in which optimizers are made, and
    buffers between them. Frozen ones may have been kept from the optimizer.
    """
    floating = {
        name: tuple(tensor.shape)
        for name, tensor in weights.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }
    trainable = {n: s for n, s in floating.items() if n.rpartition(".")[2] not in _BUFFERS}
    for candidates in (trainable, floating):
        names = list(candidates)
        first = _places(shapes, [candidates[name] for name in names])
        last = _places(shapes[::-1], [candidates[name] for name in reversed(names)])
        if first is None or last is None:
            continue
        if first == [len(names) - 1 - place for place in reversed(last)]:  # only one way to fit
            return [names[place] for place in first]
        return None
    return None


def _places(
    shapes: Sequence[tuple[int, ...] | None], candidates: Sequence[tuple[int, ...]]
) -> list[int] | None:
    """The first candidates, in order, that have the shapes; None stands for any shape."""
    places: list[int] = []
    place = -1
    for shape in shapes:
        place += 1
        while place < len(candidates) and shape is not None and candidates[place] != shape:
            place += 1
        if place >= len(candidates):
            return None
        places.append(place)
    return places
