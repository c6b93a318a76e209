"""The names of an optimizer's variables where a file of Keras only numbers them.

Keras lists them in the order of the model's weights, without those that were frozen when the
optimizer was built. No file says which were: a layer's `trainable` is that of the time of saving.
"""

from collections import Counter
from collections.abc import Sequence

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._keras_numbered import Numbered
from adamx.checkpoint.formats._keras_slots import Names, SlotOrder

__all__ = ["name_slots"]

_Shape = tuple[int, ...]


def name_slots(held: Numbered, order: SlotOrder, *, has_flags: bool) -> tuple[Names, list[str]]:
    """The variables of the optimizer, each with how its name is known; and notes.

    A name is "file" if no other weight of the model has the shape, and "inferred" if it rests on
    the order or on what the configuration says is trained.

    Args:
      held: what the file holds.
      order: of the optimizer's variables.
      has_flags: whether a configuration says of each layer whether it is trained.

    Raises:
      CheckpointError: the number and shapes of the optimizer's variables contradict what the
        configuration says is trained, and allow for more than one choice of weights.
    """
    shapes = _find_shapes(held, order)
    if not held.ordered or shapes is None:
        return {}, []
    possible = [v.name for v in held.variables.values() if v.trainable]
    trained = [v.name for v in held.variables.values() if v.trained]
    names, notes = trained, []
    if [held.weights[name].shape for name in trained] != shapes:
        names = _choose_only([(name, held.weights[name].shape) for name in possible], shapes)
        if has_flags and names is None:
            raise CheckpointError(
                where="optimizer/vars",
                expected=f"variables of {_show(held, trained)}, which are trainable in the model's "
                "configuration",
                found=f"variables of {listed(map(str, shapes), most=99)}. Layers were frozen or "
                "unfrozen after the optimizer was built, and these shapes fit more than one choice "
                "of weights, or none",
                remedy="In Keras, load the model with compile=False, set trainable of its layers "
                "as it was when the optimizer was built, compile it, call optimizer.build("
                "model.trainable_variables) and model.load_weights with this file, and save it",
            )
        if names is not None and has_flags:
            notes = [
                f"by number and shapes, the optimizer has variables of {listed(names, most=99)}; "
                f"by the layers' trainable, they would be of {listed(trained, most=99) or 'none'}. "
                "Layers were frozen or unfrozen after it was built"
            ]
    counts = Counter(held.weights[name].shape for name in possible)
    return {
        name: "file" if counts[held.weights[name].shape] == 1 else "inferred"
        for name in names or ()
    }, notes


def _find_shapes(held: Numbered, order: SlotOrder) -> list[_Shape] | None:
    """Of each of the optimizer's variables; None if one's arrays have several."""
    count = order.count_variables(len(held.optimizer))
    shapes: dict[int, _Shape] = {}
    for (kind, index), array in zip(order.list_kinds(count), held.optimizer, strict=True):
        if kind in ("count", "rate"):
            continue
        if shapes.setdefault(index, array.shape) != array.shape:
            return None
    return [shapes[index] for index in range(count)]


def _choose_only(
    weights: Sequence[tuple[str, _Shape]], shapes: Sequence[_Shape]
) -> list[str] | None:
    """The weights with these shapes, in their order; None if there is no or more than one choice.

    There is one if choosing each weight as early, and as late, as possible gives the same.
    """
    first = _choose_earliest(weights, shapes)
    last = _choose_earliest(weights[::-1], shapes[::-1])
    return first if last is not None and first == last[::-1] else None


def _choose_earliest(
    weights: Sequence[tuple[str, _Shape]], shapes: Sequence[_Shape]
) -> list[str] | None:
    chosen: list[str] = []
    for name, shape in weights:
        if len(chosen) < len(shapes) and shapes[len(chosen)] == shape:
            chosen.append(name)
    return chosen if len(chosen) == len(shapes) else None


def _show(held: Numbered, names: Sequence[str]) -> str:
    return listed([f"{name} {held.weights[name].shape}" for name in names], most=99) or "no weights"
