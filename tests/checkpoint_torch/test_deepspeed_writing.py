"""Folders of DeepSpeed with other values, from one of the same model as template."""

import dataclasses
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from adamx.checkpoint import CheckpointError, load, save
from adamx.checkpoint.formats import _deepspeed_writing
from adamx.checkpoint.untrusted.torch_archive import read_archive
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from tests.checkpoint.checkpoint_runs import assert_equal
from tests.checkpoint_files.wild_cases import read_case
from tests.checkpoint_torch.rank_folders import (
    advance,
    edit,
    make_adam,
    write_universal,
    write_zero,
)

CASES = ("deepspeed_zero2", "deepspeed_zero2_2ranks")
STEP = "global_step5"
MODEL = "mp_rank_00_model_states.pt"
SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "b.weight": (3, 5), "b.scale": (), "c": (2, 1, 2)}


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def list_files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("entry", [".", STEP])
def test_there_and_back(name, entry, tmp_path):
    folder = read_case(name, entry).path
    checkpoint = load(folder)
    beside = ("case.json", "truth.npz") if entry == "." else ()  # of the recording
    assert save(tmp_path / "new", checkpoint, template=folder) == (*checkpoint.not_read, *beside)
    assert_equal(load(tmp_path / "new"), checkpoint)
    assert list_files(tmp_path / "new") == list_files(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("name", CASES)
def test_other_values(name, tmp_path):
    folder = read_case(name, ".").path
    checkpoint = advance(load(folder), learning_rate=2e-4, weight_decay=0.5)
    save(tmp_path / "new", checkpoint, template=folder)
    assert_equal(load(tmp_path / "new"), checkpoint)
    old, new = (read_archive(at / STEP / MODEL) for at in (folder, tmp_path / "new"))
    assert (old["global_steps"], new["global_steps"]) == (5, 9)
    assert 5 * new["global_samples"] == 9 * old["global_samples"] > 0
    assert new.keys() == old.keys()
    for weight, tensor in new["module"].items():
        narrow = checkpoint.params[weight].astype(old["module"][weight].dtype)
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_array_equal(tensor, narrow, strict=True)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("stage", [2, 3])
def test_vectors_of_any_number_of_ranks(stage, ranks, tmp_path):
    write_zero(tmp_path / "old", make_adam(SHAPES), ranks, stage)
    checkpoint = advance(load(tmp_path / "old"), learning_rate=0.5)
    assert save(tmp_path / "new", checkpoint, template=tmp_path / "old") == ()
    assert_equal(load(tmp_path / "new"), checkpoint)
    assert list_files(tmp_path / "new") == list_files(tmp_path / "old")
    for path in (tmp_path / "old").glob("*_optim_*"):
        old, new = (read_archive(at / path.name) for at in (path.parent, tmp_path / "new"))
        assert old["optimizer_state_dict"].keys() == new["optimizer_state_dict"].keys()


@pytest.mark.parametrize("is_flat", [False, True])
def test_universal(is_flat, tmp_path):
    write_universal(tmp_path / "old", make_adam(SHAPES), is_flat=is_flat)
    checkpoint = advance(load(tmp_path / "old"), weight_decay=0.5)
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)
    assert list_files(tmp_path / "new") == list_files(tmp_path / "old")
    for folder in (tmp_path / "old", tmp_path / "new"):
        saved = read_archive(folder / "zero" / "c" / "exp_avg.pt")
        shape = saved.shape if is_flat else saved["param"].shape
        assert shape == ((4,) if is_flat else (2, 1, 2))


def test_frozen_weights_and_buffers_of_stage_3(tmp_path):
    """What no optimizer moves: parts of a weight on each rank, and a buffer that each has."""
    write_zero(tmp_path / "old", make_adam(SHAPES), 2, 3)
    frozen = np.arange(7, dtype=np.float32)
    for rank, part in enumerate(np.pad(frozen, (0, 1), constant_values=9).reshape(2, 4)):

        def freeze(saved, part=part):
            saved["module"]["frozen"] = make_tensor(np.zeros(0, np.float32))
            saved["module"]["mean"] = make_tensor(np.ones(3, np.float32))
            saved["buffer_names"] = ["mean"]
            saved["frozen_param_shapes"] = {"frozen": (7,)}
            saved["frozen_param_fragments"] = {"frozen": make_tensor(part)}

        edit(tmp_path / "old" / f"zero_pp_rank_{rank}_{MODEL}", freeze)
    checkpoint = advance(load(tmp_path / "old"))
    np.testing.assert_array_equal(checkpoint.params["frozen"], frozen + 1)
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)
    for rank in (0, 1):
        told = read_archive(tmp_path / "new" / f"zero_pp_rank_{rank}_{MODEL}")
        np.testing.assert_array_equal(told["module"]["mean"], np.full(3, 2, np.float32))


def test_frozen_weights_of_stage_2(tmp_path):
    """The model's file has them whole, and DeepSpeed takes the second copy."""
    write_zero(tmp_path / "old", make_adam(SHAPES), 2, 2)
    frozen = {"f": np.ones((4, 5), np.float16), "s": np.ones((), np.float16)}

    def freeze(saved):
        tensors = {name: make_tensor(array) for name, array in frozen.items()}
        saved["module"] |= tensors
        saved["frozen_param_shapes"] = {name: array.shape for name, array in frozen.items()}
        saved["frozen_param_fragments"] = tensors

    edit(tmp_path / "old" / MODEL, freeze)
    checkpoint = advance(load(tmp_path / "old"))
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)
    told = read_archive(tmp_path / "new" / MODEL)
    for part in ("module", "frozen_param_fragments"):
        for name, array in frozen.items():
            np.testing.assert_array_equal(told[part][name], array + 1, strict=True)


def count_in_both(optimizer):
    """As DeepSpeed's FusedAdam: the step of the group stays 0."""
    optimizer["state"][0]["step"] = 5
    optimizer["param_groups"][0]["step"] = 0


@pytest.mark.parametrize("stage", [2, 3])
def test_steps_of_fused_adam(stage, tmp_path):
    write_zero(tmp_path / "old", make_adam(SHAPES), 2, stage)
    key = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
    for path in (tmp_path / "old").glob("*_optim_states.pt"):
        edit(path, lambda saved: count_in_both(saved["optimizer_state_dict"][key]))
    checkpoint = advance(load(tmp_path / "old"))
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)
    [path, _] = (tmp_path / "new").glob("*_optim_states.pt")
    optimizer = read_archive(path)["optimizer_state_dict"][key]
    assert optimizer["state"][0]["step"] == 9
    assert optimizer["param_groups"][0]["step"] == 0


@pytest.mark.parametrize("is_flat", [False, True])
def test_steps_of_fused_adam_in_universal_checkpoints(is_flat, tmp_path):
    write_universal(tmp_path / "old", make_adam(SHAPES), is_flat=is_flat)
    edit(
        tmp_path / "old" / "zero" / "optimizer_state.pt",
        lambda saved: saved["param_groups"][0].update(step=0),
    )
    checkpoint = advance(load(tmp_path / "old"))
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)


def test_files_of_the_run_beside_a_universal_checkpoint(tmp_path):
    """They have the old state, and are left out."""
    write_universal(tmp_path / "old", make_adam(SHAPES))
    (tmp_path / "old" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"of before")
    save(tmp_path / "new", load(tmp_path / "old"), template=tmp_path / "old")
    assert not list((tmp_path / "new").glob("*_optim_states.pt"))
    assert_equal(load(tmp_path / "new"), load(tmp_path / "old"))


def test_counts_of_an_engine_that_began_anew(tmp_path):
    """It has done fewer steps than the optimizer: they would fall below 0."""
    counts = {"global_steps": 2, "global_samples": 8}
    write_zero(tmp_path / "old", make_adam(SHAPES), 2, 2, model=counts)
    checkpoint = load(tmp_path / "old")
    early = dataclasses.replace(
        checkpoint, groups=[dataclasses.replace(checkpoint.groups[0], count=1)]
    )
    assert save(tmp_path / "new", early, template=tmp_path / "old") == ("global_steps",)
    told = read_archive(tmp_path / "new" / MODEL)
    assert {key: told[key] for key in counts} == counts


def test_a_vector_without_parameters(tmp_path):
    write_zero(tmp_path / "old", make_adam(SHAPES), 1, 2)
    edit(tmp_path / "old" / MODEL, lambda saved: saved["param_shapes"].append({}))

    def add(saved):
        held = saved["optimizer_state_dict"]
        empty = make_tensor(np.zeros(0, np.float32))
        held["single_partition_of_fp32_groups"].append(empty)
        optimizer = held["base_optimizer_state"]
        optimizer["state"][1] = {"step": 5, "exp_avg": empty, "exp_avg_sq": empty}
        optimizer["param_groups"].append(optimizer["param_groups"][0] | {"params": [1]})

    edit(next((tmp_path / "old").glob("*_optim_states.pt")), add)
    checkpoint = advance(load(tmp_path / "old"))
    save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert_equal(load(tmp_path / "new"), checkpoint)


@pytest.mark.parametrize("wrong", ["shape", "range"])
def test_weights_that_the_models_file_cannot_hold(wrong, tmp_path):
    write_zero(tmp_path / "old", make_adam(SHAPES), 2, 2)
    checkpoint = load(tmp_path / "old")
    if wrong == "shape":
        wide = make_tensor(np.ones(4, np.float16))
        edit(tmp_path / "old" / MODEL, lambda saved: saved["module"].update({"a.bias": wide}))
        message = r"module: a\.bias: expected shape \(3,\).*found \(4,\)"
    else:
        checkpoint.params["a.bias"][1] = 1e5  # float16 ends at 65504
        message = r"params/a\.bias: expected numbers that float16.*found 1e\+05"
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "new", checkpoint, template=tmp_path / "old")
    assert not (tmp_path / "new").exists()


def test_tied_weights(tmp_path):
    folder = shutil.copytree(read_case(CASES[0], ".").path, tmp_path / "old")

    def tie(saved):
        name = next(iter(saved["module"]))
        saved["module"]["tied"] = saved["module"][name]
        saved["shared_params"] = {"tied": name}

    edit(folder / STEP / MODEL, tie)
    checkpoint = advance(load(folder))
    save(tmp_path / "new", checkpoint, template=folder)
    assert_equal(load(tmp_path / "new"), checkpoint)
    module = read_archive(tmp_path / "new" / STEP / MODEL)["module"]
    np.testing.assert_array_equal(module["tied"], next(iter(module.values())))
    params = checkpoint.params | {"tied": checkpoint.params["tied"] + 1}
    other = dataclasses.replace(checkpoint, params=params)
    with pytest.raises(CheckpointError, match="since both are one tensor in the template"):
        save(tmp_path / "other", other, template=folder)


def test_other_steps_are_not_copied(tmp_path):
    """Of a folder with several steps, only the newest one is, and what lies beside."""
    folder = shutil.copytree(read_case(CASES[0], ".").path, tmp_path / "old")
    shutil.copytree(folder / STEP, folder / "global_step3")
    (folder / "latest_universal").write_text("global_step3")
    (folder / "zero_to_fp32.py").write_text("# DeepSpeed's own")
    (folder / "logs").mkdir()
    (folder / "logs" / "x").write_text("kept")
    (folder / STEP / "trainer_state.json").write_text("{}")
    left = save(folder / "new", load(folder), template=folder)
    beside = {"logs", "case.json", "truth.npz"}
    assert set(left) == {*beside, "trainer_state.json"}  # which may be of what was written
    there = {path.name for path in (folder / "new").iterdir()}
    assert there == {"latest", "zero_to_fp32.py", STEP, *beside}
    assert (folder / "new" / "logs" / "x").read_text() == "kept"
    save(folder / "logs" / "new", load(folder), template=folder)
    assert not (folder / "logs" / "new" / "logs" / "new").exists()


def test_several_counts_in_a_vector(tmp_path):
    write_zero(tmp_path / "old", make_adam(SHAPES))
    checkpoint = load(tmp_path / "old")
    [group] = checkpoint.groups
    parts = [
        dataclasses.replace(group, names=group.names[:2]),
        dataclasses.replace(group, names=group.names[2:], count=7),
    ]
    late = dataclasses.replace(checkpoint, groups=parts)
    with pytest.raises(CheckpointError, match=r"expected the same count for a\.weight"):
        save(tmp_path / "new", late, template=tmp_path / "old")
    assert not (tmp_path / "new").exists()


def test_amsgrad(tmp_path):
    folder = tmp_path / "old"
    write_zero(folder, make_adam(SHAPES))
    checkpoint = load(folder)
    config = dataclasses.replace(checkpoint.config, amsgrad=True)
    largest = dataclasses.replace(
        checkpoint,
        groups=[dataclasses.replace(checkpoint.groups[0], config=config)],
        nu_max={name: 2 * array for name, array in checkpoint.nu.items()},
    )
    with pytest.raises(CheckpointError, match="an optimizer with amsgrad=True") as caught:
        save(tmp_path / "new", largest, template=folder)
    assert caught.value.argument == "template"
    for path in folder.glob("*_optim_states.pt"):

        def change(saved):
            optimizer = saved["optimizer_state_dict"]["optimizer_state_dict"]
            optimizer["param_groups"][0]["amsgrad"] = True
            state = optimizer["state"][0]
            state["max_exp_avg_sq"] = make_tensor(3 * np.asarray(state["exp_avg_sq"]))

        edit(path, change)
    save(tmp_path / "new", largest, template=folder)
    assert_equal(load(tmp_path / "new"), largest)
    with pytest.raises(CheckpointError, match="an optimizer with amsgrad=False"):
        save(tmp_path / "other", checkpoint, template=folder)


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_deepspeed_writing, "replace_weights", fail)
    folder = read_case(CASES[1], ".").path
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "new", load(folder), template=folder)
    assert list(tmp_path.iterdir()) == []
