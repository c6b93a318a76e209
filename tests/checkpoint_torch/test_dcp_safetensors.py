"""Safetensors of `torch.distributed.checkpoint`: by ranks, and behind a rank's other values."""

import json

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load, save
from adamx.cli.main import main
from tests.checkpoint_folders.safetensors_writer import write_safetensors
from tests.checkpoint_torch import rank_folders
from tests.checkpoint_torch.rank_folders import ADAMW, Split, make_adam, make_tree, write_dcp
from tests.checkpoint_torch.test_dcp import CUTS, MOMENT, SHAPES, check_adam, split

CONFIG = AdamConfig.from_torch(ADAMW)
CUTS_OF_TWO = [name for name, cuts in CUTS.items() if len(cuts) == 2]


def write_shards(folder, tree, ranks=1):
    """Without the groups, which safetensors cannot hold."""
    tensors = {path: x for path, x in tree.items() if "param_groups" not in path}
    rank_folders.write_shards(folder, tensors, ranks)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shards(cuts, ranks, tmp_path):
    adam = make_adam(SHAPES)
    tree = make_tree(adam)
    parts = split(tree[MOMENT], *CUTS[cuts])
    ranks = max(ranks, len(parts.parts))  # a file has one part of each tensor
    write_shards(tmp_path, tree | {MOMENT: parts}, ranks)
    checkpoint = load(tmp_path, config=CONFIG)
    check_adam(checkpoint, dict(sorted(adam.items())))
    assert set(checkpoint.naming.values()) == {"file"}
    assert not checkpoint.ordered
    assert checkpoint.not_read == ()


@pytest.mark.parametrize("cuts", CUTS_OF_TWO)
@pytest.mark.parametrize("ranks", [2, 3])
def test_tensors_behind_other_values(cuts, ranks, tmp_path):
    """As torch writes them with `SerializationFormat.SAFETENSORS`, and does not read them."""
    adam = make_adam(SHAPES)
    tree = make_tree(adam)
    tree[MOMENT] = split(tree[MOMENT], *CUTS[cuts])
    write_dcp(tmp_path, tree, ranks, in_safetensors=True)
    check_adam(load(tmp_path), adam)


def test_hyperparameters_are_asked_for(tmp_path, capsys):
    write_shards(tmp_path, make_tree(make_adam(SHAPES)))
    with pytest.raises(CheckpointError, match="safetensors hold no hyperparameters") as caught:
        load(tmp_path)
    assert caught.value.argument == "config"
    (tmp_path / "group.json").write_text(json.dumps(ADAMW))
    assert main(["inspect", str(tmp_path), "--config", str(tmp_path / "group.json")]) == 0
    assert "weight_decay   0.01" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path), "--set", "learning_rate=0.5"]) == 0
    out = capsys.readouterr().out
    assert "learning_rate  0.5" in out
    assert "convention     torch" in out


def test_models_beside_one_another(tmp_path):
    adam = make_adam(SHAPES)
    tree = make_tree(adam)
    tree |= {("ema", name): np.asarray(fields["fp32"] + 1) for name, fields in adam.items()}
    tree |= {("step",): np.asarray(7)}
    write_shards(tmp_path, tree)
    with pytest.raises(CheckpointError, match="found 2 that fit: ema, model") as caught:
        load(tmp_path, config=CONFIG)
    assert caught.value.choices == ("ema", "model")
    checkpoint = load(tmp_path, config=CONFIG, weights="model")
    check_adam(checkpoint, dict(sorted(adam.items())))
    assert checkpoint.not_read == ("ema (4 weights)", "step")


def test_several_optimizers(tmp_path):
    one, two = make_adam(SHAPES), make_adam(SHAPES, seed=1)
    tree = {("a", *path[1:]): x for path, x in make_tree(one).items() if path[0] == "optimizer"}
    tree |= {("b", *path[1:]): x for path, x in make_tree(two).items() if path[0] == "optimizer"}
    write_shards(tmp_path, tree)
    with pytest.raises(CheckpointError, match="found 2: a, b") as caught:
        load(tmp_path, config=CONFIG)
    assert caught.value.choices == ("a", "b")
    check_adam(load(tmp_path, config=CONFIG, optimizer="b"), dict(sorted(two.items())))


def test_no_order_for_torch(tmp_path):
    write_shards(tmp_path / "from", make_tree(make_adam(SHAPES)))
    checkpoint = load(tmp_path / "from", config=CONFIG)
    with pytest.raises(
        CheckpointError, match="order: expected the order of the parameters in the model"
    ):
        save(tmp_path / "x.pt", checkpoint)
    save(tmp_path / "x.pt", checkpoint, order=list(SHAPES))
    check_adam(load(tmp_path / "x.pt"), make_adam(SHAPES))


WRONG = {
    "a gap": (Split((4, 6), [((1, 0), np.ones((3, 6), np.float32))]), "a gap: 1 parts of 18"),
    "an overlap": (
        Split((4, 6), [((0, 0), np.ones((3, 6), "f4")), ((2, 0), np.ones((2, 6), "f4"))]),
        "an overlap: 2 parts of 30",
    ),
    "dtypes": (
        Split((4, 6), [((0, 0), np.ones((2, 6), "f4")), ((2, 0), np.ones((2, 6), "f8"))]),
        "expected parts of float32, found float64",
    ),
    "dimensions": (
        Split((4, 6), [((0, 0), np.ones((2, 6), "f4")), ((0,), np.ones(12, "f4"))]),
        "expected parts with the same number of dimensions",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_parts_that_do_not_fit(wrong, tmp_path):
    parts, message = WRONG[wrong]
    write_shards(tmp_path, make_tree(make_adam(SHAPES)) | {MOMENT: parts}, len(parts.parts))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path, config=CONFIG)
    assert ".".join(MOMENT) in caught.value.where


@pytest.mark.parametrize("offsets", [[0], [0, -1], "x", [0, 2**62], [0, True], None])
def test_offsets_that_are_none(offsets, tmp_path):
    moments = {f"state.w.{key}": np.ones((2, 2), np.float32) for key in ("exp_avg", "exp_avg_sq")}
    told = {"state.w.exp_avg": {"saved_offsets": offsets}}
    write_safetensors(tmp_path / "x.safetensors", moments, DCP_SHARDING_INFO=json.dumps(told))
    with pytest.raises(CheckpointError, match="expected saved_offsets of 2 dimensions"):
        load(tmp_path, config=CONFIG)


def test_archives_before_the_tensors_without_metadata(tmp_path):
    """What HuggingFaceStorageWriter makes of the groups; torch cannot read it either."""
    write_dcp(tmp_path, make_tree(make_adam(SHAPES)), in_safetensors=True)
    (tmp_path / ".metadata").unlink()
    (tmp_path / "__0_0.distcp").rename(tmp_path / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="torch cannot load the file either; save again"):
        load(tmp_path, config=CONFIG)


def test_another_optimizer(tmp_path):
    tree = make_tree(make_adam(SHAPES))
    tree[*MOMENT[:-1], "exp_avg_diff"] = tree[MOMENT]
    write_shards(tmp_path, tree)
    with pytest.raises(CheckpointError, match="found the state of Adan"):
        load(tmp_path, config=CONFIG)


def test_a_module_that_is_called_state(tmp_path):
    adam = make_adam({"state.proj.weight": (3, 2), "w": (3,)})
    write_shards(tmp_path, make_tree(adam))
    check_adam(load(tmp_path, config=CONFIG), adam)


def test_what_nothing_tells_is_noted(tmp_path):
    """RAdam keeps the same; and without the last rank's file tensors are shorter."""
    write_shards(tmp_path, make_tree(make_adam(SHAPES)))
    notes = load(tmp_path, config=CONFIG).notes
    assert any("RAdam" in note for note in notes)
    assert any("do not store how many there are" in note for note in notes)


def test_names_of_safetensors_that_are_no_files(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / "y.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="expected a checkpoint of"):
        load(tmp_path)


def test_an_order_across_counts(tmp_path):
    """Variables at different steps are one group of torch, in the order that was given."""
    adam = make_adam({"a": (2,), "b": (2,), "c": (2,)})
    tree = make_tree(adam)
    tree["optimizer", "state", "b", "step"] = np.asarray(2.0, np.float32)
    write_shards(tmp_path / "from", tree)
    checkpoint = load(tmp_path / "from", config=CONFIG)
    assert [group.count for group in checkpoint.groups] == [3, 2, 3]
    for order in (["c", "b", "a"], ["b", "c", "a"], ["a", "c", "b"]):
        save(tmp_path / "x.pt", checkpoint, order=order)
        found = load(tmp_path / "x.pt")
        assert found.names == tuple(order)
        counts = {name: group.count for group in found.groups for name in group.names}
        assert counts == {"a": 3, "b": 2, "c": 3}
        for name in order:
            np.testing.assert_array_equal(found.mu[name], adam[name]["exp_avg"])
