"""A machine that runs pickles of protocols 2 to 5, and makes nothing but plain values.

Python's own unpickler imports what a pickle names and calls it, takes memory for any size that it
states, and hashes whatever is a key, however long that takes. This one knows containers, numbers
and texts; a table of functions says what else is made; all other objects become stand-ins. What it
makes is charged to an account first.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from struct import unpack
from typing import Any

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.pickle_names import is_refused, refuse_object
from adamx.checkpoint.untrusted.pickle_stack import CONTAINER, ENTRY, Stack
from adamx.checkpoint.untrusted.stand_ins import Global, StandIn

__all__ = ["Builder", "Machine", "Maker"]

_SET = 720  # bytes that a set takes
_NEWEST = 5  # protocol


class Machine(Stack):
    """Runs one pickle after another."""

    def __init__(
        self,
        data: Any,
        account: Account,
        makers: Mapping[str, "Maker"],
        builders: Mapping[str, "Builder"],
        load: Callable[["Machine", Any], Any] | None = None,
    ) -> None:
        """Make a machine.

        Args:
          data: the bytes, or a map of a file.
          account: of the memory that may be taken.
          makers: by the name of a function, what is called in its stead, with this machine.
          builders: by the name of a stand-in, what takes its place once it gets its state.
          load: called with a persistent id; None to refuse each.
        """
        super().__init__(data, account)
        self._makers, self._builders, self._load = makers, builders, load

    def run(self) -> Any:
        """The object in the pickle that begins at `at`."""
        self.begin()
        data, steps = self.data, _STEPS
        while self.at < len(data):
            opcode = data[self.at]
            self.at += 1
            if opcode == pickle.STOP[0]:
                return self.pop()
            step = steps.get(opcode)
            if step is None:
                found = bytes([opcode])
                raise CheckpointError(f"expected a pickle of protocols 2 to 5, found {found!r}")
            step(self)
        raise ValueError("the pickle ends too early")

    def _read_protocol(self) -> None:
        self.protocol = max(self.protocol, self.integer(1))
        if self.protocol > _NEWEST:
            raise CheckpointError(f"expected a pickle of protocols 2 to 5, found {self.protocol}")

    # Containers.

    def _tuple(self, values: list[Any]) -> None:
        self.push(tuple(values), CONTAINER + 8 * len(values))

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        self._account.spend(16 * len(values))
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, StandIn):
            target.items = target.items or []
            target.items.extend(values)
        else:
            raise ValueError("the pickle puts something into what is no container")

    def _set_items(self, values: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        self._account.spend(CONTAINER * len(values))
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, StandIn):
            target.pairs = target.pairs or []
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            for key, value in pairs:
                self.check_key(key)
                target[key] = value
        else:
            raise ValueError("the pickle puts something into what is no container")

    def _add(self, values: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if type(target) is not set:
            raise ValueError("the pickle puts something into what is no container")
        self._account.spend(CONTAINER * len(values))
        for value in values:
            self.check_key(value)
            target.add(value)

    def _frozen_set(self) -> None:
        values = self.pop_mark()
        for value in values:
            self.check_key(value)
        self.push(frozenset(values), _SET + CONTAINER * len(values))

    # Objects.

    def _persistent(self) -> None:
        if self._load is None:
            raise refuse_object("a reference to an object outside of the pickle")
        self.push(self._load(self, self.pop()))

    def _new(self, options: Any = None) -> None:
        arguments, kind = self.pop(), self.pop()
        self._stand_in(kind, arguments, options, is_new=True)

    def _new_with_options(self) -> None:
        self._new(self.pop())

    def _call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise ValueError("the pickle calls something without arguments")
        maker = self._makers.get(function.name) if isinstance(function, Global) else None
        if maker is None:
            self._stand_in(function, arguments, None, is_new=False)
        else:
            self._account.spend(CONTAINER)
            self.push(maker(self, function, arguments))

    def _stand_in(self, function: Any, arguments: Any, options: Any, is_new: bool) -> None:
        """Continue with a stand-in for an object of another class; refuse malicious ones."""
        if not isinstance(function, Global | StandIn):
            raise refuse_object("something without a name")
        if isinstance(function, Global) and is_refused(function.module, function.qualname):
            raise refuse_object(f"{function.module} {function.qualname}")
        stand_in = StandIn(function, arguments, options=options, is_new=is_new)
        self.push(stand_in, CONTAINER)

    def _build(self) -> None:
        """Give an object its state."""
        state = self.pop()
        target = self._stack[-1] if self._stack else None
        if isinstance(target, StandIn):
            builder = self._builders.get(target.name)
            made = None if builder is None else builder(self, target, state)
            if made is None:
                target.state = state
                return
            self._account.spend(CONTAINER)
            self._stack[-1] = made
            if target.place is not None:
                self._memo[target.place] = made
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            if "_metadata" in state:  # of a module's state dict: versions of its parts
                vars(target)["_metadata"] = state["_metadata"]
        else:
            raise ValueError("the pickle puts something into what is no container")


Maker = Callable[[Machine, Global, tuple[Any, ...]], Any]
"""Makes the value of a call, of a function's name and arguments."""

Builder = Callable[[Machine, StandIn, Any], Any]
"""Makes the value of a stand-in and its state; None to leave it a stand-in."""

_STEPS: dict[int, Callable[[Machine], object]] = {
    opcode[0]: step
    for opcode, step in {
        pickle.PROTO: Machine._read_protocol,
        pickle.FRAME: lambda m: m.take(8),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.BININT: lambda m: m.push(unpack("<i", m.take(4))[0], ENTRY),
        pickle.BININT1: lambda m: m.push(m.integer(1)),
        pickle.BININT2: lambda m: m.push(m.integer(2), ENTRY),
        pickle.LONG1: lambda m: m.whole_number(m.integer(1)),
        pickle.LONG4: lambda m: m.whole_number(m.integer(4)),
        pickle.BINFLOAT: lambda m: m.push(unpack(">d", m.take(8))[0], ENTRY),
        pickle.SHORT_BINUNICODE: lambda m: m.text(m.integer(1)),
        pickle.BINUNICODE: lambda m: m.text(m.integer(4)),
        pickle.BINUNICODE8: lambda m: m.text(m.integer(8)),
        pickle.SHORT_BINSTRING: Machine.old_text,
        pickle.SHORT_BINBYTES: lambda m: m.binary(m.integer(1)),
        pickle.BINBYTES: lambda m: m.binary(m.integer(4)),
        pickle.BINBYTES8: lambda m: m.binary(m.integer(8)),
        pickle.BYTEARRAY8: lambda m: m.binary(m.integer(8), bytearray),
        pickle.EMPTY_LIST: lambda m: m.push([], CONTAINER),
        pickle.EMPTY_DICT: lambda m: m.push({}, CONTAINER),
        pickle.EMPTY_SET: lambda m: m.push(set(), _SET),
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.MARK: Machine.mark,
        pickle.POP: Machine.drop,
        pickle.POP_MARK: Machine.pop_mark,
        pickle.TUPLE: lambda m: m._tuple(m.pop_mark()),
        pickle.TUPLE1: lambda m: m._tuple(m.pop_many(1)),
        pickle.TUPLE2: lambda m: m._tuple(m.pop_many(2)),
        pickle.TUPLE3: lambda m: m._tuple(m.pop_many(3)),
        pickle.APPEND: lambda m: m._append(m.pop_many(1)),
        pickle.APPENDS: lambda m: m._append(m.pop_mark()),
        pickle.SETITEM: lambda m: m._set_items(m.pop_many(2)),
        pickle.SETITEMS: lambda m: m._set_items(m.pop_mark()),
        pickle.ADDITEMS: lambda m: m._add(m.pop_mark()),
        pickle.FROZENSET: Machine._frozen_set,
        pickle.BINPUT: lambda m: m.put(m.integer(1)),
        pickle.LONG_BINPUT: lambda m: m.put(m.integer(4)),
        pickle.MEMOIZE: lambda m: m.put(len(m._memo)),
        pickle.BINGET: lambda m: m.get(m.integer(1)),
        pickle.LONG_BINGET: lambda m: m.get(m.integer(4)),
        pickle.GLOBAL: Machine.named,
        pickle.STACK_GLOBAL: Machine.named_by_texts,
        pickle.REDUCE: Machine._call,
        pickle.NEWOBJ: lambda m: m._new(),
        pickle.NEWOBJ_EX: Machine._new_with_options,
        pickle.BUILD: Machine._build,
        pickle.BINPERSID: Machine._persistent,
    }.items()
}
