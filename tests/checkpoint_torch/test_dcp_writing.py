"""Folders of `torch.distributed.checkpoint` with other values, from one of the same model."""

import itertools
import os
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from adamx.checkpoint import CheckpointError, load, save
from adamx.checkpoint.formats import _dcp_writing
from adamx.checkpoint.formats._dcp_metadata import read_metadata
from adamx.checkpoint.formats._dcp_segments import Store
from adamx.checkpoint.formats._folders import measure
from adamx.checkpoint.untrusted.account import Account
from tests.checkpoint.checkpoint_runs import assert_equal
from tests.checkpoint_files.wild_cases import read_case
from tests.checkpoint_torch.rank_folders import (
    ADAMW,
    Split,
    advance,
    make_adam,
    make_tree,
    write_dcp,
    write_shards,
)

CASES = {"dcp": "step", "dcp_fsdp2": "epoch"}
SHAPES = {"a.weight": (4, 6), "a.bias": (4,), "b.weight": (4, 6), "b.scale": (), "c": (0, 3)}


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def describe(folder):
    """The values that are no tensors, and shape and dtype and parts of those that are."""
    account = Account(measure(folder))
    entries = read_metadata(folder, account).entries
    store = Store(folder, account, None)
    return {
        name: store.read_value(name, entry)
        if entry.dtype is None
        else (
            entry.shape,
            entry.dtype,
            [(c.offset, c.shape, c.segment.file) for c in entry.chunks],
        )
        for name, entry in entries.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, tmp_path):
    folder = read_case(name).path
    checkpoint = load(folder)
    assert save(tmp_path / "new", checkpoint, template=folder) == (CASES[name],)
    again = load(tmp_path / "new")
    assert_equal(again, checkpoint)
    assert again.not_read == checkpoint.not_read
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert describe(tmp_path / "new") == describe(folder)


@pytest.mark.parametrize("name", CASES)
def test_other_values(name, tmp_path):
    folder = read_case(name).path
    checkpoint = advance(load(folder), learning_rate=2e-4, weight_decay=0.5)
    save(tmp_path / "new", checkpoint, template=folder)
    assert_equal(load(tmp_path / "new"), checkpoint)
    old, new = describe(folder), describe(tmp_path / "new")
    changed = {key for key in old if old[key] != new[key]}
    assert {key.rpartition(".")[2] for key in changed} == {"lr", "weight_decay"}
    assert {path.name for path in folder.iterdir()} == {
        p.name for p in (tmp_path / "new").iterdir()
    }


def split_rows(array, *cuts):
    """Parts of a tensor between rows."""
    edges = [0, *cuts, len(array)]
    parts = [
        ((start,) + (0,) * (array.ndim - 1), array[start:end])
        for start, end in itertools.pairwise(edges)
    ]
    return Split(array.shape, parts)


def test_parts_and_what_is_beside(tmp_path):
    """Parts on two ranks, of which one is empty; a second optimizer; files and folders."""
    one, other = make_adam(SHAPES), make_adam(SHAPES, seed=1)
    tree = make_tree(one)
    tree |= {(f"{path[0]}2", *path[1:]): value for path, value in make_tree(other).items()}
    tree |= {("epoch",): 7}
    for name, cuts in {"a.weight": (1, 4), "a.bias": (3,), "b.weight": (2,)}.items():
        for path in [path for path in tree if name in path[1:3]]:
            if tree[path].ndim:
                tree[path] = split_rows(tree[path], *cuts)
    folder = tmp_path / "old"
    write_dcp(folder, tree, ranks=2)
    (folder / "beside").mkdir()
    (folder / "beside" / "__0_0.distcp").write_text("of another one")
    keys = {"optimizer": "optimizer2", "weights": "model2"}
    checkpoint = advance(load(folder, **keys))
    left = save(folder / "new", checkpoint, template=folder, **keys)
    assert set(left) == {"optimizer", f"model ({len(one)} weights)", "epoch", "beside"}
    assert_equal(load(folder / "new", **keys), checkpoint)
    same = {"optimizer": "optimizer", "weights": "model"}
    assert_equal(load(folder / "new", **same), load(folder, **same))
    assert describe(folder / "new") == describe(folder)
    assert (folder / "new" / "beside" / "__0_0.distcp").read_text() == "of another one"


def test_a_flat_state_dict(tmp_path):
    adam = make_adam(SHAPES)
    tree = {("model", name): fields["fp32"] for name, fields in adam.items()}
    for name, fields in adam.items():
        for key in ("exp_avg", "exp_avg_sq"):
            tree["optimizer", f"state.{name}.{key}"] = fields[key]
        tree["optimizer", f"state.{name}.step"] = np.asarray(3, np.float64)
        tree |= {("optimizer", f"param_groups.{name}.{k}"): value for k, value in ADAMW.items()}
    write_dcp(tmp_path / "old", tree)
    checkpoint = advance(load(tmp_path / "old"), learning_rate=0.5)
    assert save(tmp_path / "new", checkpoint, template=tmp_path / "old") == ()
    assert_equal(load(tmp_path / "new"), checkpoint)
    assert describe(tmp_path / "new")["optimizer.param_groups.a.bias.lr"] == 0.5


@pytest.mark.parametrize("shape", [(), (1,)])
def test_hyperparameters_and_steps_in_tensors(shape, tmp_path):
    """They stay tensors, of the dtype and the shape that they had."""
    tree = make_tree(make_adam(SHAPES))
    tree["optimizer", "param_groups", 0, "lr"] = np.full(shape, 1e-3, np.float32)
    del tree["optimizer", "param_groups", 0, "betas"]
    for index, number in enumerate((0.9, 0.999)):
        tree["optimizer", "param_groups", 0, "betas", index] = np.full(shape, number, np.float32)
    for path in tree:
        if path[-1] == "step":
            tree[path] = np.full(shape, 3, np.int64)
    write_dcp(tmp_path / "old", tree)
    checkpoint = load(tmp_path / "old")
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)
    later = advance(checkpoint, learning_rate=0.3)
    save(tmp_path / "later", later, template=tmp_path / "old")
    found = load(tmp_path / "later")
    assert found.count == 7
    assert found.config.learning_rate == np.float32(0.3)
    assert (found.config.b1, found.config.weight_decay) == (later.config.b1, ADAMW["weight_decay"])
    assert describe(tmp_path / "later") == describe(tmp_path / "old")


def test_steps_in_states_and_in_groups(tmp_path):
    """As DeepSpeed's FusedAdam: that of the group stays 0."""
    tree = make_tree(make_adam(SHAPES)) | {("optimizer", "param_groups", 0, "step"): 0}
    write_dcp(tmp_path / "old", tree)
    checkpoint = advance(load(tmp_path / "old"))
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)
    assert describe(tmp_path / "new")["optimizer.param_groups.0.step"] == 0


def test_values_beside_that_are_cut_off(tmp_path):
    """They would be copied, and be whole by what `.metadata` says then."""
    folder = tmp_path / "old"
    write_dcp(folder, make_tree(make_adam(SHAPES)) | {("z",): np.arange(100.0)})
    checkpoint, path = load(folder), folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: expected z at bytes .* truncated"):
        save(tmp_path / "new", checkpoint, template=folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_links_and_what_is_within(tmp_path):
    """A link that leads round is not followed; nor is the target copied into itself."""
    folder = tmp_path / "old"
    write_dcp(folder, make_tree(make_adam(SHAPES)))
    (folder / "sub").mkdir()
    (folder / "round").symlink_to(".")
    (folder / "sub" / "round").symlink_to("..")
    (folder / "link").symlink_to(".metadata")
    (folder / "dangling").symlink_to("nothing")
    save(folder / "sub" / "new", load(folder), template=folder)
    found = {str(path.relative_to(folder / "sub/new")) for path in (folder / "sub/new").rglob("*")}
    assert found == {".metadata", "__0_0.distcp", "link", "sub"}
    os.mkfifo(folder / "pipe")
    with pytest.raises(OSError, match="pipe"):
        save(tmp_path / "new", load(folder), template=folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_positions_are_written_as_texts(tmp_path):
    adam = make_adam({f"layer{index}": (index + 2,) for index in range(11)})
    order = {name: str(index) for index, name in enumerate(adam)}
    tree = {
        tuple(order.get(key, key) for key in path) if "state" in path else path: value
        for path, value in make_tree(adam).items()
    }
    tree["optimizer", "param_groups", 0, "params"] = list(range(len(adam)))
    write_dcp(tmp_path / "old", tree)
    checkpoint = advance(load(tmp_path / "old"))
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)


def test_moments_in_bfloat16(tmp_path):
    """They keep the dtype of the template, and what does not fit in it is refused."""
    adam = make_adam(SHAPES)
    narrow = {
        name: {
            key: np.asarray(jnp.asarray(array, jnp.float32 if key == "fp32" else jnp.bfloat16))
            for key, array in fields.items()
        }
        for name, fields in adam.items()
    }
    for name, fields in {"wide": adam, "narrow": narrow}.items():
        write_dcp(tmp_path / name, make_tree(fields))
    save(tmp_path / "new", load(tmp_path / "narrow"), template=tmp_path / "narrow")
    assert load(tmp_path / "new").mu["a.weight"].dtype == jnp.bfloat16
    with pytest.raises(CheckpointError, match="bfloat16"):
        save(tmp_path / "x", load(tmp_path / "wide"), template=tmp_path / "narrow")
    assert not (tmp_path / "x").exists()


def with_amsgrad(adam):
    tree = make_tree(adam) | {("optimizer", "param_groups", 0, "amsgrad"): True}
    for name, fields in adam.items():
        tree["optimizer", "state", name, "max_exp_avg_sq"] = np.asarray(2 * fields["exp_avg_sq"])
    return tree


def test_amsgrad(tmp_path):
    """Its largest moments go there and back, and are neither made up nor lost."""
    adam = make_adam(SHAPES)
    write_dcp(tmp_path / "plain", make_tree(adam))
    write_dcp(tmp_path / "amsgrad", with_amsgrad(adam))
    plain, amsgrad = load(tmp_path / "plain"), load(tmp_path / "amsgrad")
    save(tmp_path / "new", amsgrad, template=tmp_path / "amsgrad")
    assert_equal(load(tmp_path / "new"), amsgrad)
    with pytest.raises(
        CheckpointError, match=r"expected max_exp_avg_sq of a\.weight, found an optimizer without"
    ) as caught:
        save(tmp_path / "x", amsgrad, template=tmp_path / "plain")
    assert caught.value.argument == "template"
    with pytest.raises(CheckpointError, match=r"state\.a\.weight\.max_exp_avg_sq.*same settings"):
        save(tmp_path / "x", plain, template=tmp_path / "amsgrad")
    assert not (tmp_path / "x").exists()


def test_safetensors_are_not_written(tmp_path):
    """Neither alone, where hyperparameters have no room, nor as torch cannot read them."""
    tree = make_tree(make_adam({name: SHAPES[name] for name in ("a.weight", "a.bias")}))
    write_dcp(tmp_path / "plain", tree)
    write_dcp(tmp_path / "behind", tree, in_safetensors=True)
    write_shards(tmp_path / "alone", {path: x for path, x in tree.items() if "state" in path})
    checkpoint = load(tmp_path / "plain")
    for name, found in {"alone": "only safetensors", "behind": "safetensors after"}.items():
        with pytest.raises(CheckpointError, match=f"found {found}.*usual format") as caught:
            save(tmp_path / "x", checkpoint, template=tmp_path / name)
        assert caught.value.argument == "template"
    assert not (tmp_path / "x").exists()


def test_one_of_the_files_means_the_folder(tmp_path):
    folder = read_case("dcp").path
    save(tmp_path / "new", load(folder), format="dcp", template=folder / ".metadata")
    assert_equal(load(tmp_path / "new"), load(folder))


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    folder = shutil.copytree(read_case("dcp").path, tmp_path / "old")
    monkeypatch.setattr(_dcp_writing, "write_pickle", fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "new", load(folder), template=folder)
    assert list(tmp_path.iterdir()) == [folder]
