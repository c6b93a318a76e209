"""Folders of `torch.distributed.checkpoint`, recorded ones and damaged ones."""

import shutil

import numpy as np
import pytest

from adamx.checkpoint import CheckpointError, load
from tests.checkpoint_files.wild_cases import (
    WILD,
    check_arrays,
    check_names,
    check_steps,
    read_case,
)
from tests.checkpoint_torch.rank_folders import ADAMW, Split, make_adam, make_tree, write_dcp

CASES = ("dcp", "dcp_fsdp2")
SHAPES = {"a.weight": (4, 6), "a.bias": (4,), "b.weight": (4, 6), "b.scale": ()}
MOMENT = ("optimizer", "state", "a.weight", "exp_avg")


@pytest.mark.parametrize("name", CASES)
def test_recorded(name):
    case = read_case(name)
    checkpoint = load(case.path)
    check_names(case, checkpoint)
    check_arrays(case, checkpoint)
    check_steps(case, checkpoint)
    assert set(checkpoint.naming.values()) == {"file"}
    assert len(checkpoint.params) == len(checkpoint.names)
    assert checkpoint.not_read == ({"dcp": "step", "dcp_fsdp2": "epoch"}[name],)


@pytest.mark.parametrize("file", [".metadata", "__1_0.distcp"])
def test_one_of_the_files_means_the_folder(file):
    case = read_case(CASES[1])
    check_arrays(case, load(case.path / file))


def check_adam(checkpoint, adam):
    assert checkpoint.names == tuple(adam)
    assert checkpoint.count == 3
    assert checkpoint.config.learning_rate == ADAMW["lr"]
    for name, arrays in adam.items():
        for field, key in {"params": "fp32", "mu": "exp_avg", "nu": "exp_avg_sq"}.items():
            if field != "params" or checkpoint.params:
                np.testing.assert_array_equal(getattr(checkpoint, field)[name], arrays[key])


def split(array, *cuts):
    """Parts by where each begins, as rows and columns."""
    regions = [np.s_[top:bottom, left:right] for top, bottom, left, right in cuts]
    return Split(array.shape, [((r[0].start, r[1].start), array[r]) for r in regions])


QUARTERS = ((0, 2, 0, 3), (0, 2, 3, 6), (2, 4, 0, 3), (2, 4, 3, 6))
CUTS = {
    "rows": ((0, 1, 0, 6), (1, 4, 0, 6)),
    "columns, in another order": ((0, 4, 4, 6), (0, 4, 0, 4)),
    "both": QUARTERS,
    "one that is empty": ((0, 4, 0, 6), (4, 4, 0, 6)),
    "no grid": ((0, 1, 0, 4), (0, 3, 4, 6), (1, 4, 0, 2), (3, 4, 2, 6), (1, 3, 2, 4)),
}


@pytest.mark.parametrize("cuts", CUTS)
def test_parts_are_put_together(cuts, tmp_path):
    adam = make_adam(SHAPES)
    tree = make_tree(adam)
    tree[MOMENT] = split(tree[MOMENT], *CUTS[cuts])
    write_dcp(tmp_path, tree, ranks=2)
    check_adam(load(tmp_path), adam)


WRONG_CUTS = {
    "gap": (QUARTERS[:3], "a gap: 3 parts of 18 elements"),
    "overlap": ((*QUARTERS, (1, 2, 1, 2)), "an overlap: 5 parts of 25 elements"),
    "both": (((0, 2, 0, 6), (1, 3, 0, 6)), r"an overlap of those at \(0, 0\) and \(1, 0\)"),
    "both, within": (
        ((0, 3, 0, 3), (0, 2, 3, 6), (1, 4, 1, 3), (3, 4, 5, 6), (2, 3, 4, 6)),
        r"an overlap of those at \(0, 0\) and \(1, 1\)",
    ),
}


@pytest.mark.parametrize("cuts", WRONG_CUTS)
def test_every_element_is_there_once(cuts, tmp_path):
    wrong, message = WRONG_CUTS[cuts]
    tree = make_tree(make_adam(SHAPES))
    tree[MOMENT] = split(tree[MOMENT], *wrong)
    write_dcp(tmp_path, tree)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path)
    assert ".".join(MOMENT) in caught.value.where


def test_a_part_beyond_the_tensor(tmp_path):
    tree = make_tree(make_adam(SHAPES))
    tree[MOMENT] = Split((4, 6), [((1, 0), tree[MOMENT])])
    write_dcp(tmp_path, tree)
    with pytest.raises(CheckpointError, match=r"one of \(4, 6\) at \(1, 0\)"):
        load(tmp_path)


def test_a_flat_state_dict(tmp_path):
    """As `get_optimizer_state_dict` with `flatten_optimizer_state_dict`; weights at the top."""
    adam = make_adam(SHAPES)
    tree = {(name,): fields["fp32"] for name, fields in adam.items()}
    for name, fields in adam.items():
        for key in ("exp_avg", "exp_avg_sq"):
            tree["optimizer", f"state.{name}.{key}"] = fields[key]
        tree["optimizer", f"state.{name}.step"] = np.asarray(3, np.float32)
        tree |= {("optimizer", f"param_groups.{name}.{k}"): value for k, value in ADAMW.items()}
    write_dcp(tmp_path, tree)
    checkpoint = load(tmp_path)
    check_adam(checkpoint, adam)
    assert checkpoint.params.keys() == adam.keys()
    assert set(checkpoint.naming.values()) == {"file"}


def test_positions_are_written_as_texts(tmp_path):
    """As `optimizer.state_dict()` itself: names come from the order of the weights."""
    shapes = {f"layer{index}": (index + 2,) for index in range(11)}
    adam = make_adam(shapes)
    order = {name: str(index) for index, name in enumerate(adam)}
    tree = {
        tuple(order.get(key, key) for key in path) if "state" in path else path: value
        for path, value in make_tree(adam).items()
    }
    tree["optimizer", "param_groups", 0, "params"] = list(range(len(adam)))
    write_dcp(tmp_path, tree)
    checkpoint = load(tmp_path)
    check_adam(checkpoint, adam)
    assert set(checkpoint.naming.values()) == {"inferred"}


def test_selectors_and_what_is_not_read(tmp_path):
    """Of two optimizers and three models: the others are broken, which nobody notices."""
    one, other = make_adam(SHAPES), make_adam(SHAPES, seed=1)
    tree = make_tree(one)
    tree |= {(f"{path[0]}2", *path[1:]): value for path, value in make_tree(other).items()}
    tree |= {("ema", *path[1:]): value for path, value in tree.items() if path[0] == "model"}
    write_dcp(tmp_path, tree)
    with pytest.raises(CheckpointError, match=r"2: optimizer, optimizer2") as caught:
        load(tmp_path)
    assert caught.value.argument == "optimizer"
    with pytest.raises(CheckpointError, match="3 that fit: model, model2, ema") as caught:
        load(tmp_path, optimizer="optimizer2")
    assert caught.value.argument == "weights"
    broken = Split((4, 6), [((0, 0), np.ones((2, 6), np.float32))])
    for path in [("ema", "a.weight"), ("model", "a.weight"), MOMENT]:
        tree[path] = broken
    write_dcp(tmp_path, tree)
    with pytest.raises(CheckpointError, match="a gap"):
        load(tmp_path, optimizer="optimizer", weights="model2")
    checkpoint = load(tmp_path, optimizer="optimizer2", weights="model2")
    check_adam(checkpoint, other)
    assert set(checkpoint.not_read) == {"optimizer", "model (4 weights)", "ema (4 weights)"}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(WILD / CASES[1] / "dcp", tmp_path / "dcp")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def swap(folder):
    one, other = folder / "__0_0.distcp", folder / "__1_0.distcp"
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)


DAMAGES = {
    "no metadata": (
        lambda f: (f / ".metadata").unlink(),
        r"expected a folder with \.metadata.*found __0_0\.distcp, __1_0\.distcp.*use the whole",
    ),
    "metadata alone": (
        lambda f: [(f / f"__{rank}_0.distcp").unlink() for rank in (0, 1)],
        r"__\d_0\.distcp: expected the file with .*found \.metadata.*all ranks",
    ),
    "no rank 1": (
        lambda f: (f / "__1_0.distcp").unlink(),
        r"__1_0\.distcp: expected the file with .*all ranks",
    ),
    "cut": (lambda f: cut(f / "__1_0.distcp", 70_000), r"found 70000 bytes: it is truncated"),
    "cut metadata": (lambda f: cut(f / ".metadata", 9_000), r"truncated or damaged|is damaged"),
    "swapped": (swap, r"truncated or damaged|another checkpoint|expected a part of shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage, folder):
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert caught.value.where.startswith(str(folder))


def test_many_small_parts_are_refused_by_name(tmp_path):
    """What describes them takes more memory than twice what they are."""
    tree = make_tree(make_adam({f"w{index}": (8, 1) for index in range(60)}))
    rows = [(row, row + 1, 0, 1) for row in range(8)]
    tree = {p: split(x, *rows) if getattr(x, "ndim", 0) else x for p, x in tree.items()}
    write_dcp(tmp_path, tree)
    with pytest.raises(CheckpointError, match=r"\.metadata: .*many small parts.*torch\.save"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a\\b"])
def test_files_are_in_the_folder(name, folder):
    data = (folder / ".metadata").read_bytes()
    old = b"\x0c__1_0.distcp"
    assert data.count(old) == 1
    new = bytes([len(name)]) + name.encode()
    (folder / ".metadata").write_bytes(data.replace(old, new))
    with pytest.raises(CheckpointError, match="expected the name of a file in the folder"):
        load(folder)


def test_one_byte_changed_is_noticed(folder):
    """In the values of a moment: each segment has checksums."""
    truth = read_case(CASES[1]).truth["mu"]["l2.weight"]
    for path in sorted(folder.glob("*.distcp")):
        data, part = bytearray(path.read_bytes()), truth[4:].tobytes()
        if part in data:
            data[data.index(part) + 5] ^= 4
            path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum is wrong"):
        load(folder)
