"""Adam in a checkpoint of TensorFlow 1, which knows variables by their names alone."""

import re
from collections.abc import Collection

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._bundle_entries import Bundle
from adamx.checkpoint.formats._bundle_optimizer import Optimizer

__all__ = ["find_in_names"]

_ADAM = "Adam"  # what AdamOptimizer calls its slots, if it was given no other name
_POWERS = ("beta1_power", "beta2_power")
_STEP = "global_step"
_AVERAGE = "/ExponentialMovingAverage"
# Slots of other optimizers, which come in pairs too.
_OTHER_SLOTS = {"AdaMax", "Adadelta", "Ftrl", "Nadam", "RMSProp"}
_SINGLE_SLOTS = {"Adagrad", "Momentum"}
_BERT = ("adam_m", "adam_v")


def find_in_names(bundle: Bundle, selected: str | None) -> Optimizer:
    """The one Adam among the names, or that whose slots have the name `selected`.

    Raises:
      CheckpointError: there is none, or there are several, or the file does not tell their parts.
    """
    entries = bundle.entries
    _refuse_bert(entries)
    slots = _find_slots(entries, selected)
    powers = tuple(_find_power(entries, name) for name in _POWERS)
    optimizer = Optimizer(slots, "tf1", powers=powers)
    optimizer.mu = _list_slots(entries, f"/{slots}")
    optimizer.nu = _list_slots(entries, f"/{slots}_1")
    optimizer.count = _find_step(entries)
    optimizer.averages = {
        name.removesuffix(_AVERAGE): name
        for name in entries
        if name.endswith(_AVERAGE) and name.removesuffix(_AVERAGE) in entries
    }
    own = {*optimizer.mu.values(), *optimizer.nu.values(), *optimizer.averages.values(), *powers}
    optimizer.weights = {
        name: name
        for name, entry in entries.items()
        if entry.is_floating and name not in own and not _is_other_slot(name, entries)
    }
    if slots != _ADAM:
        optimizer.notes.append(
            f"the slots of the optimizer are called {slots}: only {powers[0]} and {powers[1]} "
            "identify it as Adam"
        )
    return optimizer


def _is_other_slot(name: str, entries: Collection[str]) -> bool:
    """Whether another optimizer keeps it for a variable."""
    owner, _, kind = name.rpartition("/")
    return re.sub(r"_\d+$", "", kind) in _OTHER_SLOTS | _SINGLE_SLOTS and owner in entries


def _refuse_bert(entries: Collection[str]) -> None:
    """Raise for the optimizer of BERT's authors, which does not correct the moments' bias."""
    found = [name for name in entries if name.rpartition("/")[2] in _BERT]
    if found:
        raise CheckpointError(
            where=found[0],
            expected="the slots of tf.train.AdamOptimizer",
            found=f"{_BERT[0]} and {_BERT[1]}, as BERT's AdamWeightDecayOptimizer or a LAMB has: "
            "they compute other steps, without bias correction",
        )


def _find_slots(entries: Collection[str], selected: str | None) -> str:
    """What the slots of the first moments are called."""
    kinds, last = set[str](), set[str]()
    for name in entries:
        owner, _, kind = name.rpartition("/")
        last.add(kind)
        is_new = owner and kind not in kinds and kind not in _OTHER_SLOTS
        # Any two variables may have such names; only slots begin with the name of a variable.
        if (
            is_new
            and f"{name}_1" in entries
            and (kind == _ADAM or _find_variable(owner, entries) in entries)
        ):
            kinds.add(kind)
    if _ADAM in kinds and selected is None:
        # A second optimizer has the same variables; its slots are numbered on from the first's.
        kinds = {_ADAM} | {kind for kind in last if re.fullmatch(r"Adam_([2-9]|\d\d+)", kind)}
    elif selected in kinds:
        kinds = {selected}
    if not kinds:
        others = sorted(last & (_OTHER_SLOTS | _SINGLE_SLOTS))
        raise CheckpointError(
            expected="VARIABLE/Adam and VARIABLE/Adam_1, as tf.train.AdamOptimizer names them",
            found=f"slots called {listed(others)}" if others else "no slots",
        )
    if len(kinds) > 1 or selected not in (None, *kinds):
        raise CheckpointError(
            where="optimizer",
            expected="the slots of one optimizer",
            found=f"{listed(sorted(kinds))}: two optimizers, or variables that are not slots",
            remedy=f"pass optimizer= with one of {listed(sorted(kinds))}",
            argument="optimizer",
            choices=sorted(kinds),
        )
    return kinds.pop()


def _list_slots(entries: Collection[str], ending: str) -> dict[str, str]:
    """Map each variable's name to its slot; either all names have a scope in front, or none."""
    slots = {name.removesuffix(ending): name for name in entries if name.endswith(ending)}
    known = [owner for owner in slots if owner in entries]
    if not known and slots:
        first = next(iter(slots))
        variable = _find_variable(first, entries)
        scope = first.removesuffix(variable)
        if all(o.startswith(scope) and o.removeprefix(scope) in entries for o in slots):
            return {owner.removeprefix(scope): name for owner, name in slots.items()}
    return slots


def _find_variable(owner: str, entries: Collection[str]) -> str:
    """The variable of a slot, whose name may begin with a scope: `train/dense/kernel/Adam`."""
    parts = owner.split("/")
    ways = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((way for way in ways if way in entries), owner)


def _find_power(entries: Collection[str], name: str) -> str:
    """The one variable of that name, in whatever scope."""
    pattern = re.compile(rf"{name}(_\d+)?")
    found = [entry for entry in entries if pattern.fullmatch(entry.rpartition("/")[2])]
    if len(found) > 1:
        raise CheckpointError(
            where=listed(found),
            expected=f"{name} of one optimizer",
            found="those of several; the file does not say which optimizer has which variables",
            remedy="in TensorFlow, save the variables of one optimizer with "
            "tf.compat.v1.train.Saver(var_list=...)",
        )
    if not found:
        raise CheckpointError(
            where=name,
            expected="a variable of tf.train.AdamOptimizer",
            found="none, so the number of its steps is unknown",
        )
    return found[0]


def _find_step(entries: Collection[str]) -> str | None:
    found = [entry for entry in entries if entry.rpartition("/")[2] == _STEP]
    return found[0] if len(found) == 1 else None
