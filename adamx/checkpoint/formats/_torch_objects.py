"""Find the optimizer's and the model's state dict in a saved object."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._torch_flat import is_flat, unflatten
from adamx.checkpoint.formats._torch_tensors import describe, is_tensor
from adamx.checkpoint.untrusted.pickle_names import refuse_object
from adamx.checkpoint.untrusted.stand_ins import StandIn

__all__ = ["choose_model", "choose_optimizer", "list_others", "list_tensors", "outline"]

_PLAIN = bool | int | float | str

_DEEPEST = 32  # containers within one another
_MOMENTS = {"exp_avg", "exp_avg_sq", "state1", "__bnb_optimizer_quant_state__"}
# Of a Trainer; in training_args.bin.
_SETTINGS = "TrainingArguments"
_WHERE = (
    "use the file that has optimizer.state_dict(), such as optimizer.pt, or the folder that has "
    "it and the weights"
)

_Dict = dict[str, Any]


def _list_children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((str(key)[:80], value) for key, value in node.items())
    elif isinstance(node, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(node))


def _walk(node: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Everything within what was saved, each thing once, with its key; not within optimizers."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield ".".join(path), node
    if len(path) > _DEEPEST:
        raise CheckpointError("containers are nested too deeply", where=f"{'.'.join(path):.200}")
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


def _has_moments(node: Mapping[str, Any]) -> bool:
    if is_flat(node):
        return any(str(key).endswith(".exp_avg") for key in node)
    entries = node["state"].values()
    return any(isinstance(entry, Mapping) and _MOMENTS & entry.keys() for entry in entries)


def choose_optimizer(saved: Any, key: str | None) -> tuple[str, _Dict]:
    """The state dict of an optimizer, which may be flat, and its dotted key.

    Args:
      saved: what was saved.
      key: which one; None for the only one that may be Adam.

    Raises:
      CheckpointError: there is none, or none with this key; or several, which are listed.
    """
    nodes = list(_walk(saved, (), set()))
    found = {path: node for path, node in nodes if _is_optimizer(node)}
    objects = [
        child.name
        for _, node in nodes
        for child in (node, *(child for _, child in _list_children(node)))
        if isinstance(child, StandIn)
    ]
    if not found and objects:
        beside = f"none, but objects of {listed(dict.fromkeys(objects))}"
        error = refuse_object(beside, expected="the state dict of one optimizer")
        is_settings = any(name.endswith(_SETTINGS) for name in objects)
        raise error.replace(remedy=_WHERE) if is_settings else error
    if not found:
        are_weights = any(_is_model(node) for _, node in nodes)
        raise CheckpointError(
            expected="the state dict of one optimizer",
            found="only weights" if are_weights else "none",
            remedy=_WHERE,
        )
    if key is not None:
        if key not in found:
            raise _refuse_key("optimizer", key, found)
        return key, found[key]
    fitting = {path: node for path, node in found.items() if _has_moments(node)} or found
    if len(fitting) > 1:
        raise CheckpointError(
            where="optimizer",
            expected="the key of one of the file's optimizers",
            found=f"{len(fitting)}: {listed(map(_show, fitting))}",
            remedy=f"pass optimizer=, such as optimizer={next(iter(fitting))!r}",
            argument="optimizer",
            choices=fitting,
        )
    return next(iter(fitting.items()))


def choose_model(
    saved: Any,
    key: str | None,
    fits: Callable[[_Dict], bool],
    may_fit: Callable[[_Dict], bool],
) -> tuple[str, _Dict] | None:
    """The state dict of the optimizer's model, with its dotted key; None if there is none.

    Args:
      saved: what was saved.
      key: which one; None for the only one that fits.
      fits: whether a state dict tells the names of the optimizer's parameters.
      may_fit: whether it has all of their shapes, in whatever order. The only one of these is taken
        where none fits.

    Raises:
      CheckpointError: there is none with this key; or several fit, which are listed.
    """
    models = {path: node for path, node in _walk(saved, (), set()) if _is_model(node)}
    if key is not None:
        if key not in models:
            raise _refuse_key("weights", key, models)
        return key, models[key]
    fitting = {path: node for path, node in models.items() if fits(node)}
    if len(fitting) > 1:
        raise CheckpointError(
            where="weights",
            expected="the key of the weights that the optimizer trains",
            found=f"{len(fitting)} that fit: {listed(map(_show, fitting))}",
            remedy=f"pass weights=, such as weights={next(iter(fitting))!r}; averages of the "
            "weights (EMA) have the same names",
            argument="weights",
            choices=fitting,
        )
    fitting = fitting or {path: node for path, node in models.items() if may_fit(node)}
    return next(iter(fitting.items())) if len(fitting) == 1 else None


def _refuse_key(argument: str, key: str, known: Mapping[str, Any]) -> CheckpointError:
    return CheckpointError(
        where=argument,
        expected=f"one of {listed(map(_show, known)) or 'none: the file has none'}",
        found=repr(key),
        argument=argument,
    )


def _show(key: str) -> str:
    return key or "the whole file ('')"


def _is_model(node: Any) -> bool:
    """Whether it may be a state dict of a model: arrays under names, and not numbers alone."""
    return (
        isinstance(node, dict)
        and not _is_optimizer(node)
        and all(isinstance(key, str) for key in node)
        and any(is_tensor(value) and len(value.shape) > 0 for value in node.values())
    )


def list_tensors(model: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors in a state dict, without what else it holds."""
    return {name: x for name, x in model.items() if is_tensor(x)}


def list_others(saved: Any, chosen: Mapping[str, Any]) -> list[str]:
    """What is in the file beside what was chosen: a text for each, with its dotted key."""
    texts: list[str] = []
    keys = set(chosen)

    def visit(node: Any, path: tuple[str, ...]) -> None:
        for name, child in _list_children(node):
            key = ".".join((*path, name))
            if key in keys:
                continue
            within = any(other.startswith(f"{key}.") for other in keys)
            if within and isinstance(child, Mapping | list | tuple):
                visit(child, (*path, name))
            elif _is_model(child):
                texts.append(f"{key} ({len(list_tensors(child))} weights)")
            else:
                texts.append(key + _show_plain(child))

    if "" not in keys:
        visit(saved, ())
    return texts


def _show_plain(node: Any) -> str:
    """A number or string, or the first ones of a dictionary: a model's settings, say."""
    if isinstance(node, _PLAIN):
        return f"={node!r:.40}"
    if isinstance(node, dict) and all(isinstance(x, _PLAIN) for x in node.values()):
        return f" ({listed([f'{name!s:.40}={x!r:.40}' for name, x in node.items()], most=12)})"
    return ""


def outline(saved: Any) -> Iterator[str]:
    """What was saved: optimizers with their settings, weights, and what else there is."""
    for path, node in _walk(saved, (), set()):
        name = path or "the file"
        if _is_optimizer(node):
            held = unflatten(node) if is_flat(node) else node
            entries = list(held["state"].values())
            keys = sorted(map(str, entries[0])) if entries and isinstance(entries[0], dict) else []
            fields = f": {listed(keys)}" if keys else ""
            yield f"{name}: an optimizer with states of {len(entries)} parameters{fields}"
            for index, group in enumerate(held["param_groups"]):
                if isinstance(group, dict):
                    yield f"{name}, group {index}: {listed(_list_settings(group), most=12)}"
        elif _is_model(node):
            yield f"{name}: {len(list_tensors(node))} weights: {listed(list_tensors(node), most=3)}"
        elif isinstance(node, Mapping):
            single = [k for k, v in _list_children(node) if not isinstance(v, Mapping | list)]
            if single:
                yield f"{name}: {listed(single, most=8)}"
        elif isinstance(node, StandIn):
            yield f"{name}: an object of the class {node.name}"


def _list_settings(group: _Dict) -> Iterator[str]:
    for name, value in group.items():
        is_plain = isinstance(value, _PLAIN | tuple | None)
        if name == "params":
            yield f"{len(value) if isinstance(value, list) else describe(value)} parameters"
        elif isinstance(name, str):
            yield f"{name:.40}={value!r:.40}" if is_plain else f"{name:.40}={describe(value)}"
