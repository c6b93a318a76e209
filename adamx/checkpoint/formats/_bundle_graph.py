"""The object graph of a TensorFlow 2 checkpoint: which object owns which variable, as what."""

import dataclasses
from collections import deque
from collections.abc import Iterator

from adamx.checkpoint.formats._bundle_entries import Bundle
from adamx.checkpoint.untrusted.protocol_buffers import list_fields, read_integers

__all__ = ["GRAPH", "Graph", "Node", "Slot", "read_graph"]

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

_VALUE = "VARIABLE_VALUE"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Bytes of memory that a node or a part of one takes beside its texts.
_PER_NODE, _PER_PART = 100, 150
_LONGEST_TEXT = 4096
_DEEPEST = 64  # of a path


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A variable that an optimizer keeps for another one; nodes by number."""

    variable: int
    name: str
    value: int


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """An object: its parts by name, its own variable if it is one, and its slots as an optimizer.

    `full_name` is what the program called the variable, `key` that of its entry; both are "" for
    an object that is none.
    """

    children: dict[str, int]
    slots: list[Slot]
    full_name: str = ""
    key: str = ""

    @property
    def path(self) -> str:
        """The key without its ending: a path of objects, which no other variable has."""
        return self.key.removesuffix(_SUFFIX)


class Graph:
    """The objects of a checkpoint; the first one is the root.

    Attributes:
      nodes: all objects.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self._lists: dict[int, list[int]] = {}
        self._parents: dict[int, tuple[int, str]] | None = None

    def child(self, node: Node, name: str) -> Node | None:
        """The part of that name, or None."""
        number = node.children.get(name)
        return None if number is None else self.nodes[number]

    def list_variables(self, node: Node, name: str) -> list[int]:
        """The numbers of the items of a part that is a list, in its order."""
        number = node.children.get(name)
        if number is None:
            return []
        if number not in self._lists:
            children = self.nodes[number].children
            own = {key: value for key, value in children.items() if key.isdecimal()}
            self._lists[number] = [own[key] for key in sorted(own, key=int)]
        return self._lists[number]

    def find(self, path: str) -> int | None:
        """The number of the node at a dotted path, or None."""
        number: int | None = 0
        for part in filter(None, path.split(".")):
            number = None if number is None else self.nodes[number].children.get(part)
        return number

    def list_reachable(self) -> list[int]:
        """The numbers of the nodes below the root, those of short paths first."""
        return list(self._find_parents())

    def path(self, number: int) -> str:
        """A shortest path from the root to a node that can be reached, dotted."""
        parents, parts = self._find_parents(), list[str]()
        while number and len(parts) < _DEEPEST:
            number, name = parents[number]
            parts.append(name)
        return ".".join(reversed(parts))

    def _find_parents(self) -> dict[int, tuple[int, str]]:
        """Map each node's number to that of its parent, and its name there."""
        if self._parents is None:
            parents, waiting = {0: (0, "")}, deque([0])
            while waiting:
                number = waiting.popleft()
                for name, child in self.nodes[number].children.items():
                    if child not in parents:
                        parents[child] = number, name
                        waiting.append(child)
            self._parents = parents
        return self._parents


def read_graph(bundle: Bundle) -> Graph:
    """The graph that a checkpoint of TensorFlow 2 has as a tensor."""
    account = bundle.account
    nodes: list[Node] = []
    for message in _messages(bundle.text(GRAPH), 1):
        account.spend(_PER_NODE)
        children: dict[str, int] = {}
        slots: list[Slot] = []
        full_name = key = ""
        for number, part in list_fields(message):
            if number not in (1, 2, 3) or isinstance(part, int):
                continue
            account.spend(_PER_PART + len(part))
            if number == 1:
                children[_read_text(part, 2)] = read_integers(part, (1,))[0]
            elif number == 2 and _read_text(part, 1) == _VALUE:
                full_name, key = _read_text(part, 2), _read_text(part, 3)
            elif number == 3:
                variable, value = read_integers(part, (1, 3))
                slots.append(Slot(variable, _read_text(part, 2), value))
        nodes.append(Node(children, slots, full_name, key))
    numbers = {n for node in nodes for n in node.children.values()}
    numbers |= {n for node in nodes for s in node.slots for n in (s.variable, s.value)}
    if not nodes or not numbers <= set(range(len(nodes))):
        raise ValueError("the graph of objects refers to a node that is not in it")
    return Graph(nodes)


def _messages(message: bytes, number: int) -> Iterator[bytes]:
    for field, value in list_fields(message):
        if field == number and isinstance(value, bytes):
            yield value


def _read_text(message: bytes, number: int) -> str:
    """The last text with that field number, or ""."""
    text = b""
    for found in _messages(message, number):
        text = found
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"the graph of objects has a name of {len(text)} bytes")
    return text.decode()
