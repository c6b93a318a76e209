"""Stand-ins for the classes and objects of a pickle that are not made."""

import dataclasses
from typing import Any

__all__ = ["FactoryDict", "Global", "Size", "StandIn"]

# What makes an object of the class that is its first argument, or its second.
_CONSTRUCTORS = {
    "copy_reg._reconstructor": 0,
    "copyreg._reconstructor": 0,
    "copyreg.__newobj__": 0,
    "copyreg.__newobj_ex__": 0,
    "torch._tensor._rebuild_from_type": 1,
    "torch._tensor._rebuild_from_type_v2": 1,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """A class, a function or a constant that a pickle names. It is never imported.

    Attributes:
      module: such as "torch".
      qualname: its name in there, such as "float32".
    """

    module: str
    qualname: str

    @property
    def name(self) -> str:
        """Both, with a dot between."""
        return f"{self.module}.{self.qualname}"


class StandIn:
    """Stands for an object that is not made: of what class, and all that the pickle gives it.

    Attributes:
      function: what the pickle calls to make it; mostly its class.
      arguments: what it is called with.
      options: keyword arguments, of protocol 4; or None.
      is_new: whether `function` is a class whose `__new__` is called alone.
      state: what the object is then given: mostly a dictionary of its attributes. Or None.
      items: what is appended to it, if it is some kind of list.
      pairs: keys and values that are set in it, if it is some kind of dictionary.
      place: where the pickle remembers it, or None.
    """

    __slots__ = ("arguments", "function", "is_new", "items", "options", "pairs", "place", "state")

    def __init__(
        self,
        function: "Global | StandIn",
        arguments: Any = (),
        *,
        options: Any = None,
        is_new: bool = False,
    ) -> None:
        self.function, self.arguments, self.options = function, arguments, options
        self.is_new = is_new
        self.state: Any = None
        self.items: list[Any] | tuple[()] = ()
        self.pairs: list[tuple[Any, Any]] | tuple[()] = ()
        self.place: int | None = None

    @property
    def name(self) -> str:
        """Of the class, as "module.qualname"; or of what is called to make the object."""
        function = self.function
        if isinstance(function, StandIn):
            return f"{function.name}()"
        index = _CONSTRUCTORS.get(function.name)
        parts = self.arguments if isinstance(self.arguments, tuple) else ()
        if index is not None and len(parts) > index and isinstance(parts[index], Global):
            return parts[index].name
        return function.name

    @property
    def attributes(self) -> dict[Any, Any]:
        """Of the object, by name, where the pickle tells them as a dictionary."""
        state = self.state
        if state is None and isinstance(self.function, Global):  # a tensor of a class of its own
            is_tensor = self.function.name.startswith("torch._tensor._rebuild_from_type")
            state = self.arguments[3:][-1:] if is_tensor else None
        parts = state if isinstance(state, tuple) else (state,)  # a second one has those in slots
        return {
            name: value for part in parts if isinstance(part, dict) for name, value in part.items()
        }

    def __repr__(self) -> str:
        return f"<stand-in for {self.name:.200}>"


class Size(tuple[int, ...]):
    """A `torch.Size`."""

    __slots__ = ()


class FactoryDict(dict[Any, Any]):
    """A `collections.defaultdict`, which makes nothing.

    Attributes:
      factory: what would make what is missing.
    """

    __slots__ = ("factory",)

    def __init__(self, factory: Global | StandIn | None = None) -> None:
        super().__init__()
        self.factory = factory
