"""Convert the groups of one checkpoint to the names of another."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.config.groups import ParameterGroup, list_unlike

__all__ = ["fit_groups", "rename_groups", "reorder_groups"]

_Groups = Sequence[ParameterGroup]


def fit_groups(
    groups: _Groups, targets: _Groups, sources: Mapping[str, str]
) -> tuple[tuple[ParameterGroup, ...], bool]:
    """The target's groups with the hyperparameters of the variables that go there.

    Args:
      groups: of the checkpoint that gives the values.
      targets: of the file that is to hold them.
      sources: by name in the target, the name in the checkpoint.

    Returns:
      The groups; and whether they have the checkpoint's hyperparameters. They do not if it has one
      group and the target several with different ones: nothing says which of these it replaces.

    Raises:
      CheckpointError: variables of one group there have different hyperparameters.
    """
    unlike = list_unlike(targets)
    if len(groups) == 1 and set(unlike) - {"count"}:
        [own] = groups
        return tuple(dataclasses.replace(group, count=own.count) for group in targets), False
    group_of = {name: index for index, group in enumerate(groups) for name in group.names}
    fitted = []
    for target in targets:
        origin = {name: group_of[sources[name]] for name in target.names if name in sources}
        own = [groups[index] for index in dict.fromkeys(origin.values())] or [target]
        if differing := list_unlike(own):
            first, *rest = origin
            other = next(name for name in rest if origin[name] != origin[first])
            raise CheckpointError(
                where="groups",
                expected=f"the same {listed(differing)} for {first} and {other}, which are in one "
                "group of the file to be written",
                found=f"different ones in the checkpoint's {len(groups)} groups",
                remedy="use a template with the same groups",
                argument="template",
            )
        fitted.append(dataclasses.replace(own[0], names=target.names))
    return tuple(fitted), True


def reorder_groups(groups: _Groups, names: Sequence[str]) -> tuple[ParameterGroup, ...]:
    """The groups, each in the order that `names` has.

    Groups that differ only in their counts were one, which is split again where counts change.
    """
    place = {name: index for index, name in enumerate(names)}
    alike: list[list[ParameterGroup]] = []
    for group in groups:
        own = next((own for own in alike if set(list_unlike([own[0], group])) <= {"count"}), None)
        if own is None:
            alike.append([group])
        else:
            own.append(group)
    divided = []
    for own in alike:
        count_of = {name: group.count for group in own for name in group.names}
        in_order = sorted(count_of, key=place.__getitem__)
        for count, part in itertools.groupby(in_order, count_of.__getitem__):
            divided.append(dataclasses.replace(own[0], names=tuple(part), count=count))
    return tuple(divided)


def rename_groups(
    groups: _Groups, names: Sequence[str], new: Mapping[str, str]
) -> tuple[ParameterGroup, ...]:
    """The groups with new names, each in the order that `names` has."""
    order = {name: index for index, name in enumerate(names)}
    return tuple(
        dataclasses.replace(
            group, names=tuple(new[name] for name in sorted(group.names, key=order.__getitem__))
        )
        for group in groups
    )
