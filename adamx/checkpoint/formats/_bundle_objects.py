"""Adam in the object graph of TensorFlow 2: as slots of variables, or as lists of its own."""

from collections.abc import Mapping
from typing import NamedTuple

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._bundle_entries import Bundle
from adamx.checkpoint.formats._bundle_graph import Graph, Node, Slot, read_graph
from adamx.checkpoint.formats._bundle_lists import name_lists
from adamx.checkpoint.formats._bundle_optimizer import Optimizer, refuse_other_rules

__all__ = ["find_in_objects"]

# What optimizers call their parts. Those of Adam by field of a configuration, or "".
_SLOTS_PARTS = {
    "iter": "",
    "beta1_power": "",
    "beta2_power": "",
    "beta_1": "b1",
    "beta_2": "b2",
    "decay": "decay",
    "learning_rate": "learning_rate",
}
_LISTS_PARTS = {
    "_iterations": "",
    "_learning_rate": "learning_rate",
    "_current_learning_rate": "",
    "_variables": "",
    "_momentums": "mu",
    "_velocities": "nu",
    "_velocity_hats": "nu_max",
    "_model_variables_moving_average": "average",
    "_trainable_variables": "",
}
_ACCUMULATORS = "_accumulated_gradients"
# Parts of a model under which there are no weights.
_NOT_WEIGHTS = {
    "keras_api",
    "metrics",
    "_metrics",
    "_loss_tracker",
    "_compile_metrics",
    "loss_scale",
}


class _Found(NamedTuple):
    path: str
    node: Node
    has_slots: bool


def find_in_objects(bundle: Bundle, selected: str | None, model: str | None) -> Optimizer:
    """The one Adam in the object graph.

    Args:
      bundle: that has a graph.
      selected: the dotted path of the optimizer, or None for the only one.
      model: that of the object whose variables are the weights, or None for the root.

    Raises:
      CheckpointError: there is none, or there are several, or it is another optimizer.
    """
    graph = read_graph(bundle)
    found = _choose(_list_optimizers(graph), selected)
    names = _name_weights(bundle, graph, _list_reachable(graph, model))
    weights = {name: graph.nodes[number].key for number, name in names.items()}
    if found.has_slots:
        optimizer = _read_slots(graph, found, names)
    else:
        optimizer = _read_lists(bundle, graph, found, names)
        optimizer.ordered = True
        weights = {name: weights[name] for name in optimizer.mu if name in weights} | weights
    optimizer.weights = weights
    return optimizer


def _list_optimizers(graph: Graph) -> list[_Found]:
    found = []
    for number in graph.list_reachable():
        node = graph.nodes[number]
        if {"m", "v"} <= {slot.name for slot in node.slots}:
            found.append(_Found(graph.path(number), node, has_slots=True))
        elif {"_momentums", "_velocities"} <= node.children.keys():
            found.append(_Found(graph.path(number), node, has_slots=False))
    return found


def _choose(found: list[_Found], selected: str | None) -> _Found:
    if not found:
        raise CheckpointError(
            expected="the state of an Adam",
            found="none among the objects of the checkpoint",
            remedy="save tf.train.Checkpoint(model=model, optimizer=optimizer) after a step",
        )
    fitting = [one for one in found if selected in (None, one.path)]
    if len(fitting) != 1:
        paths = listed([one.path for one in found], most=8)
        raise CheckpointError(
            where="optimizer",
            expected="the dotted key of one optimizer" if selected else "one optimizer",
            found=f"{selected!r:.200}; there is {paths}" if selected else f"{len(found)}: {paths}",
            remedy="pass optimizer= with one of these keys",
            argument="optimizer",
            choices=[one.path for one in found],
        )
    return fitting[0]


def _list_reachable(graph: Graph, model: str | None) -> set[int]:
    """The numbers of the nodes that belong to the object at a dotted path, but no optimizers'."""
    if model is None:
        return set(range(len(graph.nodes)))
    start = graph.find(model)
    if start is None:
        tops = listed(list(graph.nodes[0].children), most=99)
        raise CheckpointError(
            where="weights",
            expected=f"the dotted key of an object, such as one of {tops}",
            found=repr(model),
            argument="weights",
        )
    reached, waiting = set[int](), [start]
    while waiting:
        number = waiting.pop()
        node = graph.nodes[number]
        if number not in reached and not _is_optimizer(node):
            reached.add(number)
            waiting.extend(node.children.values())
    return reached


def _is_optimizer(node: Node) -> bool:
    """Whether it is one of any kind."""
    return bool(node.slots) or not {"_iterations", "iter", "beta1_power"}.isdisjoint(node.children)


def _name_weights(bundle: Bundle, graph: Graph, reachable: set[int]) -> dict[int, str]:
    """Map node numbers to names of weights: all variables but optimizers' and metrics'."""
    others, lists = set[int](), set[int]()
    for node in graph.nodes:
        if _is_optimizer(node):
            others |= {slot.value for slot in node.slots} | set(node.children.values())
            for part, number in node.children.items():
                if part != "_trainable_variables" and number not in lists:
                    lists.add(number)
                    others |= set(graph.list_variables(node, part))
    numbers = [
        number
        for number, node in enumerate(graph.nodes)
        if node.key
        and number in reachable
        and number not in others
        and (entry := bundle.entries.get(node.key)) is not None
        and entry.is_floating
        and _NOT_WEIGHTS.isdisjoint(node.path.split("/"))
    ]
    return _name_uniquely({number: graph.nodes[number] for number in numbers})


def _name_uniquely(nodes: Mapping[int, Node]) -> dict[int, str]:
    """What the program called each, or its path of objects where it called two the same."""
    counts: dict[str, int] = {}
    for node in nodes.values():
        counts[node.full_name] = counts.get(node.full_name, 0) + 1
    return {
        number: node.full_name if node.full_name and counts[node.full_name] == 1 else node.path
        for number, node in nodes.items()
    }


def _read_slots(graph: Graph, found: _Found, names: Mapping[int, str]) -> Optimizer:
    """An optimizer that keeps its moments as slots, each with its variable."""
    node = found.node
    _check_parts(graph, node, _SLOTS_PARTS)
    values = {slot.value: graph.nodes[slot.value] for slot in node.slots}
    own = [part.full_name for name in _SLOTS_PARTS if (part := graph.child(node, name))]
    refuse_other_rules([*own, *(_shorten(graph, slot) for slot in node.slots)])
    old = graph.child(node, "iter") is None
    optimizer = Optimizer(found.path, "tf1" if old else "tf_keras_legacy")
    if old:
        optimizer.powers = tuple(_find_key(graph, node, f"beta{n}_power") for n in (1, 2))
    else:
        optimizer.count = _find_key(graph, node, "iter")
    fields = {"m": optimizer.mu, "v": optimizer.nu, "vhat": optimizer.nu_max}
    variables = {slot.variable: graph.nodes[slot.variable] for slot in node.slots}
    own_names = _name_uniquely(variables)
    for slot in node.slots:
        if slot.name in fields:
            name = names.get(slot.variable, own_names[slot.variable])
            if fields[slot.name].setdefault(name, values[slot.value].key) != values[slot.value].key:
                raise ValueError(f"{name}: two slots are called {slot.name}")
    _add_settings(optimizer, graph, node, _SLOTS_PARTS)
    optimizer.is_scheduled = not old and "learning_rate" not in optimizer.settings
    return optimizer


def _shorten(graph: Graph, slot: Slot) -> str:
    """The name of a slot, without that of its variable, which contains the names of layers."""
    variable = graph.nodes[slot.variable].full_name
    start, middle, _ = f"/{graph.nodes[slot.value].full_name}".rpartition(f"/{variable}/")
    return f"{start}/{slot.name}" if middle else slot.name


def _read_lists(bundle: Bundle, graph: Graph, found: _Found, names: Mapping[int, str]) -> Optimizer:
    """An optimizer that keeps its moments in lists, one for each kind."""
    node = found.node
    if graph.list_variables(node, _ACCUMULATORS):
        raise CheckpointError(
            where=f"{found.path}.{_ACCUMULATORS}",
            expected="an optimizer without accumulated gradients",
            found="one that accumulates them, and counts each part as a step",
            remedy="save the model as .keras, which stores how many of them make a step",
        )
    _check_parts(graph, node, _LISTS_PARTS)
    is_keras3 = "_trainable_variables" in node.children
    optimizer = Optimizer(found.path, "keras3" if is_keras3 else "tf_keras")
    optimizer.count = _find_key(graph, node, "_iterations")
    fields = {
        "_momentums": optimizer.mu,
        "_velocities": optimizer.nu,
        "_velocity_hats": optimizer.nu_max,
        "_model_variables_moving_average": optimizer.averages,
    }
    lists = {
        part: [graph.nodes[number] for number in graph.list_variables(node, part)]
        for part in fields
        if part in node.children
    }
    trained = [
        (names.get(number, graph.nodes[number].full_name), graph.nodes[number])
        for number in graph.list_variables(node, "_trainable_variables")
    ]
    iterations = graph.child(node, "_iterations")
    assert iterations is not None  # _find_key has found it
    known = trained if is_keras3 else [(names[n], graph.nodes[n]) for n in names]
    named = name_lists(bundle, lists, known, is_keras3=is_keras3)
    refuse_other_rules([iterations.full_name, *named.prefixes])
    optimizer.naming = named.naming
    for part, keys in named.keys.items():
        fields[part].update(keys)
    _add_settings(optimizer, graph, node, _LISTS_PARTS)
    optimizer.is_scheduled = "learning_rate" not in optimizer.settings
    optimizer.notes.append(
        "the file does not store the optimizer's class: Keras's Lamb has the same variables as Adam"
    )
    return optimizer


def _check_parts(graph: Graph, node: Node, known: Mapping[str, str]) -> None:
    """Raise if the optimizer has variables that Adam has not."""
    unknown = [
        name
        for name, number in node.children.items()
        if name not in known and (graph.nodes[number].key or graph.list_variables(node, name))
    ]
    if unknown:
        raise CheckpointError(
            where=listed(unknown),
            expected="only the variables of Adam",
            found="others, with which the optimizer computes something else",
        )


def _find_key(graph: Graph, node: Node, name: str) -> str:
    part = graph.child(node, name)
    if part is None or not part.key:
        raise CheckpointError(where=name, expected="a variable of the optimizer", found="none")
    return part.key


def _add_settings(optimizer: Optimizer, graph: Graph, node: Node, parts: Mapping[str, str]) -> None:
    for name, field in parts.items():
        part = graph.child(node, name)
        if field in ("b1", "b2", "decay", "learning_rate") and part is not None and part.key:
            optimizer.settings[field] = part.key
