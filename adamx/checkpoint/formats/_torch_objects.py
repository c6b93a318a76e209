"""Find the optimizer's and the model's state dict in a saved object, and the names."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._torch_flat import is_flat
from adamx.checkpoint.formats._torch_tensors import is_inexact, is_tensor
from adamx.checkpoint.untrusted.pickle_names import refuse_object
from adamx.checkpoint.untrusted.stand_ins import StandIn

__all__ = ["find_model", "find_optimizer", "list_tensors"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_DEEPEST = 32  # containers within one another


def _list_children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((str(key)[:80], value) for key, value in node.items())
    elif isinstance(node, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(node))


def _walk(node: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Everything within what was saved, each thing once, with its path; not within optimizers."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield "/".join(path) or "the whole file", node
    if len(path) > _DEEPEST:
        raise CheckpointError(
            "too many containers within one another", where=f"{'/'.join(path):.200}"
        )
    if not _is_optimizer(node):
        for key, child in _list_children(node):
            if isinstance(child, Mapping | list | tuple):
                yield from _walk(child, (*path, key), seen)


def _is_optimizer(node: Any) -> bool:
    return is_flat(node) or (
        isinstance(node, dict)
        and isinstance(node.get("state"), Mapping)
        and isinstance(node.get("param_groups"), list | tuple)
    )


def find_optimizer(saved: Any) -> dict[str, Any]:
    """The state dict of the one optimizer, which may be flat."""
    nodes = list(_walk(saved, (), set()))
    found = {path: node for path, node in nodes if _is_optimizer(node)}
    objects = [
        child.name
        for _, node in nodes
        for child in (node, *(child for _, child in _list_children(node)))
        if isinstance(child, StandIn)
    ]
    if not found and objects:
        beside = f"none beside objects of {listed(dict.fromkeys(objects))}"
        raise refuse_object(beside, expected="the state dict of one optimizer")
    if len(found) != 1:
        raise CheckpointError(
            expected="the state dict of one optimizer",
            found=f"{len(found)}: {listed(found)}" if found else "none",
            remedy="save the one to go on with in a file of its own" if found else "",
        )
    return next(iter(found.values()))


def _list_models(saved: Any) -> list[dict[str, Any]]:
    """What may be state dicts of models: dictionaries with tensors in them under names."""
    return [
        node
        for _, node in _walk(saved, (), set())
        if isinstance(node, dict)
        and not _is_optimizer(node)
        and all(isinstance(key, str) for key in node)
        and any(map(is_tensor, node.values()))
    ]


def list_tensors(model: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors in a state dict, without what else it holds."""
    return {name: x for name, x in model.items() if is_tensor(x)}


def find_model(
    saved: Any,
    groups: Sequence[Mapping[str, Any]],
    shapes: Sequence[tuple[int, ...] | None],
) -> tuple[dict[str, Any] | None, list[str]]:
    """The state dict of the optimizer's model, if only one is, and the names of its parameters."""
    models = _list_models(saved)
    unknown = [str(index) for index in range(len(shapes))]
    given = [name for group in groups for name in group.get("param_names", ())]
    if len(given) != len(shapes) or len({str(name) for name in given}) != len(given):
        given = []
    keys = [key for group in groups for key in group["params"]]
    if all(isinstance(key, str) for key in keys):  # a state dict that is keyed by names
        given = keys
    if not all(isinstance(name, str) for name in given):
        given = []
    if given or len(groups) > 1:
        fitting = [model for model in models if not given or _has_names(model, given, shapes)]
        names = given or unknown
    else:
        matched = [(model, _match_shapes(shapes, list_tensors(model))) for model in models]
        fitting = [model for model, found in matched if found is not None]
        choices = {tuple(found) for _, found in matched if found is not None}
        names = list(choices.pop()) if len(choices) == 1 else unknown
    if not fitting:
        fitting = models
    return (fitting[0] if len(fitting) == 1 else None), names


def _has_names(
    model: Mapping[str, Any], names: Sequence[str], shapes: Sequence[tuple[int, ...] | None]
) -> bool:
    held = list_tensors(model)
    return all(
        name in held and shape in (None, tuple(held[name].shape))
        for name, shape in zip(names, shapes, strict=True)
    )


def _match_shapes(
    shapes: Sequence[tuple[int, ...] | None], weights: Mapping[str, Any]
) -> list[str] | None:
    """The names of the optimizer's parameters by a model's state dict; None if it does not tell.

    It has the parameters in the order of `model.parameters()`, in which optimizers are made, and
    buffers between them. Frozen ones may have been kept from the optimizer.
    """
    floating = {name: tuple(tensor.shape) for name, tensor in weights.items() if is_inexact(tensor)}
    trainable = {n: s for n, s in floating.items() if n.rpartition(".")[2] not in _BUFFERS}
    for candidates in (trainable, floating):
        names = list(candidates)
        first = _fit_in_order(shapes, [candidates[name] for name in names])
        last = _fit_in_order(shapes[::-1], [candidates[name] for name in reversed(names)])
        if first is None or last is None:
            continue
        if first == [len(names) - 1 - at for at in reversed(last)]:  # only one way to fit
            return [names[at] for at in first]
        return None
    return None


def _fit_in_order(
    shapes: Sequence[tuple[int, ...] | None], candidates: Sequence[tuple[int, ...]]
) -> list[int] | None:
    """The first candidates, in order, that have the shapes; None stands for any shape."""
    positions: list[int] = []
    position = -1
    for shape in shapes:
        position += 1
        while position < len(candidates) and shape is not None and candidates[position] != shape:
            position += 1
        if position >= len(candidates):
            return None
        positions.append(position)
    return positions
