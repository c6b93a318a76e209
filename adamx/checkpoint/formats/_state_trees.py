"""The state of Adam in a tree of names, as files of JAX programs hold it.

Orbax and Flax write the names of fields and the keys of dictionaries, and no classes. So an Adam is
a node with `count`, `mu` and `nu` side by side; a chain is a node whose keys are indices; what is
masked or partitioned is under `inner_state`, and its parameters are absent from other parts. The
weights are the subtree with the paths and shapes of the moments.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import check_amsgrad
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import Source
from adamx.checkpoint.formats._adam_nodes import AdamNode, choose_adams, find_adams
from adamx.checkpoint.formats._array_trees import ArrayTree, Leaf
from adamx.checkpoint.formats._tree_paths import Path, dotted, summarise
from adamx.checkpoint.trees import MOMENTS
from adamx.checkpoint.untrusted.account import Account
from adamx.config.groups import ParameterGroup

__all__ = ["read_state"]

# Fields of Optax's states that hold arrays for each parameter, which are not weights.
_COPIES = {*MOMENTS, "acc_grads", "trace"}
_UNTOLD = (
    "the file does not store which transformation wrote the state: adamax, adabelief, lamb, radam "
    "and yogi have the same fields as adam; config= sets how to continue"
)


def read_state(
    leaves: Mapping[Path, Leaf],
    source: Source,
    notes: Sequence[str] = (),
    others: Sequence[str] = (),
    account: Account | None = None,
) -> Checkpoint:
    """The checkpoint in a tree of arrays.

    Args:
      leaves: by path, in the order of the file; without random keys as far as they are known.
      source: its `config` is given, since the file has no hyperparameters.
      notes: remarks on how the file was read, also those that reading arrays adds.
      others: what else is in the file, and is no tree of arrays.
      account: of compressed files. Moments that are mostly zero take almost no space there, so for
        each moment the account is granted as much memory as the weights have taken.
    """
    config = source.config
    assert config is not None
    tree = ArrayTree(leaves)
    known = find_adams(tree)
    adams = choose_adams(known, tree, source.optimizer)
    counts = [tree.read_count((*adam.node, "count")) for adam in adams]
    _check_counters(tree, adams, counts)
    own_notes = [_UNTOLD, *_read_settings(tree, adams[0].root)]
    own_notes += _compare_steps(tree, adams, counts)
    has_maxima = bool(adams[0].moments["nu_max"])
    check_amsgrad(has_maxima, config)
    if has_maxima and config.convention != "optax":
        raise CheckpointError(
            where="config",
            expected="convention='optax' with AMSGrad, whose maxima are of the bias-corrected "
            "second moment",
            found=repr(config.convention),
            argument="config",
        )
    weights = _find_weights(tree, known, adams, source.weights)
    params = {"/".join(name): tree.read(path) for name, path in weights.items()}
    if len(params) != len(weights):
        raise CheckpointError(where="weights", expected="paths that differ in more than /")
    if account is not None:
        account.allow(len(MOMENTS) * sum(array.nbytes for array in params.values()))
    fields: dict[str, dict[str, np.ndarray]] = {field: {} for field in MOMENTS}
    for adam in adams:
        for field, paths in adam.moments.items():
            fields[field] |= {"/".join(name): tree.read(path) for name, path in paths.items()}
    return Checkpoint(
        framework="jax",
        version=None,
        groups=[
            ParameterGroup(names=tuple(map("/".join, adam.names)), config=config, count=count)
            for adam, count in zip(adams, counts, strict=True)
        ],
        params=params,
        mu=fields["mu"],
        nu=fields["nu"],
        nu_max=fields["nu_max"],
        ordered=False,  # trees are sorted
        not_read=(
            *summarise([path for path in leaves if path not in tree.seen], tree.seen),
            *others,
        ),
        notes=[*notes, *own_notes],
    )


def _check_counters(tree: ArrayTree, adams: Sequence[AdamNode], counts: Sequence[int]) -> None:
    """Raise where a schedule has counted other steps, or gradients are being accumulated.

    A restored state has one count of steps, and accumulates from nothing.
    """
    root = adams[0].root
    for node, fields in tree.children.items():
        if node[: len(root)] != root or (not root and not _COPIES.isdisjoint(node)):
            continue
        if {"mini_step", "gradient_step", "acc_grads"} <= fields:
            if steps := tree.read_count((*node, "mini_step")):
                raise CheckpointError(
                    where=dotted((*node, "mini_step")),
                    expected="0, with no accumulated gradients waiting for an update",
                    found=f"{steps} accumulated gradients, which a restored state would lose",
                    remedy="save after an update, or restore with the program's own optimizer",
                )
        elif fields == {"count"} or {"count", "hyperparams"} <= fields:
            path = tree.at((*node, "count"))
            if path is None or tree.leaves[path].shape or tree.leaves[path].dtype.kind not in "iu":
                continue
            found = tree.read_count((*node, "count"))
            expected = max(zip(adams, counts, strict=True), key=lambda x: _shared(x[0].node, node))
            if found != expected[1]:
                raise CheckpointError(
                    where=dotted((*node, "count")),
                    expected=f"{expected[1]} steps, as {dotted(expected[0].node)} has done",
                    found=found,
                    remedy="a restored state has one count: use the program's own optimizer",
                )


def _compare_steps(
    tree: ArrayTree, adams: Sequence[AdamNode], counts: Sequence[int]
) -> Iterable[str]:
    """Remarks on steps of training that are not those of the optimizer, and on its parts."""
    path = tree.at((*adams[0].root[:-1], "step"))
    if path is not None and tree.leaves[path].shape == ():
        step = tree.read(path).item()
        if {step} != set(counts):
            yield f"{dotted(path)} is {step}, and Adam has done {listed(map(str, counts))} steps"
    if len(adams) > 1:
        places = listed(dotted(adam.node) for adam in adams)
        yield f"the optimizer has parts, {places}; config= was used for each of them"


def _shared(one: Path, other: Path) -> int:
    """How many leading keys two paths share."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _read_settings(tree: ArrayTree, root: Path) -> Iterable[str]:
    """Remarks on the hyperparameters that optax.inject_hyperparams keeps in its state."""
    for node, fields in tree.children.items():
        if node[: len(root)] == root and node[-1:] == ("hyperparams",):
            paths = {name: tree.at((*node, name)) for name in sorted(fields)}
            values = [
                f"{name}={tree.read(path).item():.9g}"
                for name, path in paths.items()
                if path is not None and tree.leaves[path].shape == ()
            ]
            yield f"{dotted(node)} has {listed(values)}, which config= replaces"


def _find_weights(
    tree: ArrayTree, known: Sequence[AdamNode], adams: Sequence[AdamNode], key: str | None
) -> dict[Path, Path]:
    """Map each parameter's path to the path of its weight; empty if the file has none.

    Args:
      tree: the file's arrays.
      known: all states of Adam.
      adams: those that are read.
      key: the dotted key of the weights, of several.
    """
    moments = {name: path for adam in adams for name, path in adam.moments["mu"].items()}
    fitting = [
        start
        for start in _find_starts(tree, known, next(iter(moments)))
        if _fits(tree, start, moments)
    ]
    if key is not None and key not in map(dotted, fitting):
        raise CheckpointError(
            where="weights",
            expected=f"one of {listed(map(dotted, fitting)) or 'none'}",
            found=key,
            argument="weights",
        )
    fitting = [start for start in fitting if key is None or dotted(start) == key]
    if len(fitting) > 1:
        raise CheckpointError(
            where="weights",
            expected="one tree with the paths and shapes of the moments",
            found=f"{len(fitting)}: {listed(map(dotted, fitting))}",
            remedy="choose one with weights=, by its key",
            argument="weights",
            choices=map(dotted, fitting),
        )
    if not fitting:
        return {}
    tops = {name[0] for name in moments if name}

    def is_weight(name: Path, path: Path) -> bool:
        # Keys of random numbers are uint32.
        is_beside = not fitting[0] and name[0] not in tops
        states = [adam.root for adam in known if not _is_inside(fitting[0], adam.root)]
        states += [adam.node for adam in known]
        is_state = any(_is_inside(path, state) for state in states)
        return not is_beside and not is_state and tree.leaves[path].dtype != np.uint32

    below = tree.below(fitting[0]).items()
    return {name: path for name, path in below if name in moments or is_weight(name, path)}


def _find_starts(tree: ArrayTree, known: Sequence[AdamNode], first: Path) -> list[Path]:
    """The nodes below which a parameter with this path may be."""
    starts: dict[Path, None] = {}
    for path in tree.leaves:
        plain = path[:-1] if tree.boxes.get(path[:-1]) == path else path
        for place in {path, plain}:
            start = place[: len(place) - len(first)]
            if place[len(start) :] == first and not _is_state(start, place, known):
                starts[start] = None
    return list(starts)


def _is_state(start: Path, place: Path, known: Sequence[AdamNode]) -> bool:
    """Whether a node, and the parameter found below it, belong to the state of an optimizer.

    Weights may be next to a state in a tuple, which looks like a chain: then the node has
    only an index. Arrays for each parameter within the states of Optax are under a field's name.
    """
    if not _COPIES.isdisjoint(start):
        return True
    for adam in known:
        index = start[len(adam.root) :]
        is_item = bool(index) and all(key.isdecimal() for key in index)
        if _is_inside(place, adam.node) or (_is_inside(start, adam.root) and not is_item):
            return True
    return False


def _is_inside(path: Path, node: Path) -> bool:
    return path[: len(node)] == node


def _fits(tree: ArrayTree, start: Path, moments: Mapping[Path, Path]) -> bool:
    """Whether all parameters are below a node, with the shapes of their moments."""
    places = ((tree.at((*start, *name)), path) for name, path in moments.items())
    return all(
        place is not None and tree.leaves[place].shape == tree.leaves[path].shape
        for place, path in places
    )
