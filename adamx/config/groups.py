"""Groups of parameters with different hyperparameters, as one Optax transformation."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import optax

from adamx.base.eight_bit import EightBit
from adamx.base.errors import InvalidValue
from adamx.base.random_bits import fold_in, key_data
from adamx.base.trees import flatten_with_path, path_name
from adamx.config.adam_config import AdamConfig

__all__ = ["ParameterGroup", "combine_groups", "list_unlike", "restore_parts"]

_CLIPPING = ("clip_norm", "clip_global_norm", "clip_value", "clip_value_first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Variables of one optimizer that share their hyperparameters and their count of steps.

    Attributes:
      names: of the variables, in the optimizer's order.
      config: the hyperparameters.
      count: steps done.
      scheduled: whether a scheduler set the learning rate: `config` then has that of this step.
    """

    __module__ = "adamx.checkpoint"  # as users import it: what pickles and repr name

    names: tuple[str, ...]
    config: AdamConfig
    count: int
    scheduled: bool = False


def list_unlike(groups: Sequence[ParameterGroup]) -> list[str]:
    """The fields of `AdamConfig`, and "count", in which groups differ."""
    fields = [field.name for field in dataclasses.fields(AdamConfig)]
    first, *others = groups
    unlike = [
        field
        for field in fields
        if any(getattr(first.config, field) != getattr(group.config, field) for group in others)
    ]
    return unlike + ["count"] * any(group.count != first.count for group in others)


def combine_groups(
    groups: Sequence[ParameterGroup],
    labels: Mapping[str, int],
    moments: EightBit | None = None,
) -> optax.GradientTransformation:
    """The transformation that gives each parameter the hyperparameters of its group.

    Args:
      groups: at least one.
      labels: by path of a parameter, the index of its group.
      moments: as for `AdamConfig.transformation`.

    Returns:
      `AdamConfig.transformation()` where groups do not differ; the same with a mask of weight decay
      where they differ only in whether weight decay applies; otherwise `optax.partition`, with
      clipping before it.

    Raises:
      InvalidValue: groups clip gradients in different ways.
    """
    unlike = list_unlike(groups)
    if not unlike:
        return groups[0].config.transformation(moments=moments)
    decaying = [group for group in groups if group.config.decays()]
    only_decay = set(unlike) <= {"weight_decay", "decoupled"}
    if only_decay and decaying and not list_unlike(decaying):
        return decaying[0].config.transformation(
            mask=_map_labels(labels, lambda index: groups[index].config.decays()), moments=moments
        )
    if clipping := [field for field in unlike if field in _CLIPPING]:
        raise InvalidValue(
            where=clipping[0],
            expected="one value for all groups, since a norm may span the gradients of all groups",
            found="groups with different values",
        )
    clipped = groups[0].config.clipping()
    none = {field: AdamConfig.__dataclass_fields__[field].default for field in _CLIPPING}
    parts: dict[Hashable, optax.GradientTransformation] = {
        _label(index): dataclasses.replace(group.config, **none).transformation(
            moments=_key_part(moments, index)
        )
        for index, group in enumerate(groups)
    }
    return optax.chain(*clipped, optax.partition(parts, _map_labels(labels, _label)))


def restore_parts(
    state: optax.OptState,
    replace: Callable[[int, optax.OptState], optax.OptState],
) -> optax.OptState:
    """A state of `combine_groups` with the state of each group replaced.

    Args:
      state: of a transformation that is an `optax.partition`, or clips before one.
      replace: returns a group's new state, given the group's index and its present state.
    """

    def is_partition(node: object) -> bool:
        return isinstance(node, optax.transforms.PartitionState)

    def replace_all(node: Any) -> Any:
        if not is_partition(node):
            return node
        indices = {_label(index): index for index in range(len(node.inner_states))}
        return node._replace(
            inner_states={
                label: replace(indices[label], inner) for label, inner in node.inner_states.items()
            }
        )

    return jax.tree.map(replace_all, state, is_leaf=is_partition)


def _key_part(moments: EightBit | None, index: int) -> EightBit | None:
    """With a key of its own, since parts count their leaves alike."""
    if moments is None:
        return None
    return dataclasses.replace(moments, key=fold_in(key_data(moments.key), index))


def _label(index: int) -> str:
    return f"group {index}"


def _map_labels(
    labels: Mapping[str, int], function: Callable[[int], Any]
) -> Callable[[optax.Params], Any]:
    """A function for Optax's wrappers, from a tree to that tree with a value for each leaf."""

    def mark(tree: optax.Params) -> Any:
        keyed, treedef = flatten_with_path(tree)
        # A leaf in no group, such as a random key, is refused by name in `init`.
        return treedef.unflatten([function(labels.get(path_name(path), 0)) for path, _ in keyed])

    return mark
