"""The names of an optimizer's parameters, by the weights of its model.

torch's optimizers know parameters by their positions. A state dict of the model has their names, in
the order of the model, and with buffers between them. Each group has its parameters in that order
too, but which parameter is in which group has to be found out.
"""

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["match_shapes"]

Shape = tuple[int, ...]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_MOST_STATES = 200_000  # after which the search gives up


def match_shapes(
    groups: Sequence[Sequence[Shape | None]], weights: Mapping[str, Shape], *, in_order: bool
) -> list[list[str]] | None:
    """The names of the parameters of each group; None if the shapes do not settle it.

    Args:
      groups: for each the shapes of its parameters, in order; None for one that is not known.
      weights: shapes by name, of all that may be parameters.
      in_order: whether the names are in the model's order.

    Returns:
      The only assignment that fits. Of several, the one by the usual rule, which applies weight
      decay to parameters of two dimensions or more and not to others; or one in which the
      parameters of each group follow one another in the model.
    """
    trained = {n: s for n, s in weights.items() if n.rpartition(".")[2] not in _BUFFERS}
    if not in_order:
        return _match_unordered(groups, trained)
    for candidates in (trained, weights):
        names, shapes = list(candidates), list(candidates.values())
        for select in (_match_whole, _match_by_rank, _match_blocks):
            if (found := select(groups, shapes)) is not None:
                return [[names[at] for at in group] for group in found]
        if len(groups) == 1 and _find_first(groups[0], shapes) is not None:
            return None  # it fits in several ways
    return None


def _match_whole(
    groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]
) -> list[list[int]] | None:
    """The only way to deal the weights out to the groups, each in order; None if there are more."""
    found: list[list[list[int]]] = []
    for assignment in _deal(groups, shapes):
        found.append(assignment)
        if len(found) > 1:
            return None
    return found[0] if found else None


def _deal(
    groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]
) -> Iterator[list[list[int]]]:
    """Up to two ways to deal weights out to groups, each in order; weights may be left over."""
    if len(groups) == 1:
        first = _find_first(groups[0], shapes)
        last = _find_first(groups[0][::-1], shapes[::-1])
        if first is not None and last is not None:
            last = [len(shapes) - 1 - at for at in reversed(last)]
            yield [first]
            if first != last:
                yield [last]
        return
    # How many ways there are from a state on, up to two: a state is how far each group is, and the
    # next weight. Where the groups take all weights, the first number says the second.
    total = sum(map(len, groups))
    if total != len(shapes):
        return
    ways: dict[tuple[int, ...], int] = {tuple(map(len, groups)): 1}
    stack = [tuple(0 for _ in groups)]
    while stack:
        state = stack[-1]
        if state in ways:
            stack.pop()
            continue
        following = list(_follow(state, groups, shapes))
        if open_ones := [after for _, after in following if after not in ways]:
            stack += open_ones
        else:
            ways[state] = min(2, sum(ways[after] for _, after in following))
            stack.pop()
        if len(ways) > _MOST_STATES:
            return
    for last in (False, True):
        state, assignment = tuple(0 for _ in groups), [[] for _ in groups]
        while sum(state) < total:
            choices = [(g, s) for g, s in _follow(state, groups, shapes) if ways[s]]
            if not choices:
                return
            group, after = choices[-1 if last else 0]
            assignment[group].append(sum(state))
            state = after
        yield assignment
        if ways[tuple(0 for _ in groups)] < 2:
            return


def _follow(
    state: tuple[int, ...], groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The groups that can take the next weight, and the state after that."""
    shape = shapes[sum(state)]
    for index, (group, at) in enumerate(zip(groups, state, strict=True)):
        if at < len(group) and group[at] in (None, shape):
            yield index, (*state[:index], at + 1, *state[index + 1 :])


def _match_by_rank(
    groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]
) -> list[list[int]] | None:
    """Two groups, of weights of two dimensions or more, and of the rest."""
    if len(groups) != 2:
        return None
    matrices = [at for at, shape in enumerate(shapes) if len(shape) >= 2]
    others = [at for at, shape in enumerate(shapes) if len(shape) < 2]
    for parts in ((matrices, others), (others, matrices)):
        ways = [
            list(_deal([group], [shapes[at] for at in part]))
            for group, part in zip(groups, parts, strict=True)
        ]
        if all(len(way) == 1 for way in ways):
            return [[part[at] for at in way[0][0]] for part, way in zip(parts, ways, strict=True)]
    return None


def _match_blocks(
    groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]
) -> list[list[int]] | None:
    """Groups of weights that follow one another, where only one order of the groups fits."""
    if len(groups) < 2 or sum(map(len, groups)) != len(shapes):
        return None
    found: list[tuple[int, ...]] = []
    stack: list[tuple[tuple[int, ...], int]] = [((), 0)]
    tried = 0
    while stack and len(found) < 2:
        order, start = stack.pop()
        if len(order) == len(groups):
            found.append(order)
        for index in set(range(len(groups))) - set(order):
            tried += 1
            if all(shape in (None, shapes[start + at]) for at, shape in enumerate(groups[index])):
                stack.append(((*order, index), start + len(groups[index])))
        if tried > _MOST_STATES:
            return None
    if len(found) != 1:
        return None
    starts, start = {}, 0
    for index in found[0]:
        starts[index] = start
        start += len(groups[index])
    return [[starts[i] + at for at in range(len(group))] for i, group in enumerate(groups)]


def _match_unordered(
    groups: Sequence[Sequence[Shape | None]], weights: Mapping[str, Shape]
) -> list[list[str]] | None:
    """By shapes that one weight alone has, since nothing tells the order of the weights."""
    wanted = [shape for group in groups for shape in group]
    if len(set(wanted)) != len(wanted) or len(wanted) != len(weights):
        return None
    by_shape: dict[Shape | None, str] = {shape: name for name, shape in weights.items()}
    if len(by_shape) != len(weights) or not set(wanted) <= by_shape.keys():
        return None
    return [[by_shape[shape] for shape in group] for group in groups]


def _find_first(wanted: Sequence[Shape | None], shapes: Sequence[Shape]) -> list[int] | None:
    """The first weights, in order, that have these shapes; None stands for any shape."""
    positions: list[int] = []
    position = -1
    for shape in wanted:
        position += 1
        while position < len(shapes) and shape is not None and shapes[position] != shape:
            position += 1
        if position >= len(shapes):
            return None
        positions.append(position)
    return positions
