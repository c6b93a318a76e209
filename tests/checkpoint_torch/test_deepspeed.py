"""Folders of DeepSpeed: recorded ones, and ones in the layout of stages that were not recorded."""

import shutil

import numpy as np
import pytest

from adamx.checkpoint import CheckpointError, load
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from tests.checkpoint_files.wild_cases import (
    WILD,
    check_arrays,
    check_names,
    check_steps,
    read_case,
)
from tests.checkpoint_torch.rank_folders import edit, make_adam, write_universal, write_zero

CASES = ("deepspeed_zero2", "deepspeed_zero2_2ranks")
STEP = "global_step5"
MODEL = f"{STEP}/mp_rank_00_model_states.pt"
RANK = STEP + "/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "b.weight": (3, 5), "b.scale": (), "c": (2, 1, 2)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("entry", [".", STEP])
def test_recorded(name, entry):
    case = read_case(name, entry)
    checkpoint = load(case.path)
    check_names(case, checkpoint)
    check_arrays(case, checkpoint)
    check_steps(case, checkpoint)
    assert set(checkpoint.naming.values()) == {"file"}
    assert all(array.dtype == np.float32 for array in checkpoint.params.values())


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(WILD / CASES[1], tmp_path / "run")


def check_adam(checkpoint, adam, count=5):
    assert checkpoint.names == tuple(adam)
    assert checkpoint.count == count
    fields = {"params": "fp32", "mu": "exp_avg", "nu": "exp_avg_sq"}
    for name, arrays in adam.items():
        for field, key in fields.items():
            found = getattr(checkpoint, field)[name]
            assert (found.shape, found.dtype) == (arrays[key].shape, arrays[key].dtype)
            np.testing.assert_array_equal(found, arrays[key], err_msg=f"{field}/{name}")


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [1, 3])
def test_vectors_of_any_number_of_ranks(stage, ranks, tmp_path):
    """Stage 1 without `param_slice_mappings`, as older versions wrote it."""
    adam = make_adam(SHAPES)
    write_zero(tmp_path / STEP, adam, ranks, stage)
    (tmp_path / "latest").write_text(f"{STEP}\n")
    check_adam(load(tmp_path), adam)


@pytest.mark.parametrize("is_flat", [False, True])
def test_universal(is_flat, tmp_path):
    adam = make_adam(SHAPES)
    write_universal(tmp_path / "u", adam, is_flat=is_flat)
    check_adam(load(tmp_path / "u"), adam)
    (tmp_path / "u" / "zero" / "c" / "exp_avg.pt").unlink()
    with pytest.raises(CheckpointError, match=r"c: expected exp_avg\.pt"):
        load(tmp_path / "u")
    shutil.rmtree(tmp_path / "u" / "zero" / "c")
    with pytest.raises(CheckpointError, match=r"expected a folder for each parameter.*missing: c;"):
        load(tmp_path / "u")


def test_frozen_weights_of_stage_3(tmp_path):
    adam, ranks = make_adam(SHAPES), 2
    frozen = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_zero(tmp_path, adam, ranks)
    for rank in range(ranks):
        part = make_tensor(frozen.reshape(ranks, -1)[rank])
        empty = make_tensor(np.zeros(0, np.float16))

        def freeze(saved, part=part, empty=empty):
            saved["module"]["f"] = empty
            saved["frozen_param_shapes"] = {"f": frozen.shape}
            saved["frozen_param_fragments"] = {"f": part}

        edit(tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", freeze)
    checkpoint = load(tmp_path)
    np.testing.assert_array_equal(checkpoint.params["f"], frozen)
    check_adam(checkpoint, adam)


def test_tied_weights_are_the_masters(folder):
    def tie(saved):
        saved["module"]["tied"] = saved["module"]["emb.weight"]
        saved["shared_params"] = {"tied": "emb.weight"}

    edit(folder / MODEL, tie)
    params = load(folder).params
    np.testing.assert_array_equal(params["tied"], params["emb.weight"])
    assert params["tied"].dtype == np.float32


def held(saved):
    return saved["optimizer_state_dict"]


def entry(saved):
    return held(saved)["base_optimizer_state"]["state"][0]


def change_step(saved):
    entry(saved)["step"] = make_tensor(np.asarray(6, np.float32))


def change_rate(saved):
    held(saved)["base_optimizer_state"]["param_groups"][0]["lr"] = 1.0


def dirty_padding(saved):
    """The last element of rank 1 is of no parameter."""
    vector = np.array(entry(saved)["exp_avg"])
    vector[-1] = 1e-9
    entry(saved)["exp_avg"] = make_tensor(vector)


def shift_slice(saved):
    held(saved)["param_slice_mappings"][0]["n1.bias"].state["start"] -= 8


def drop_slice(saved):
    del held(saved)["param_slice_mappings"][0]["n1.bias"]


def shorten_slice(saved):
    held(saved)["param_slice_mappings"][0]["l2.weight"].state["numel"] -= 1


def cut_vector(saved):
    entry(saved)["exp_avg_sq"] = make_tensor(np.array(entry(saved)["exp_avg_sq"])[:-1])


def count_more(saved):
    held(saved)["partition_count"] = [4]


def make_elastic(saved):
    held(saved)["base_optimizer_state"] = [entry(saved)]


def split_model(saved):
    saved["mp_world_size"] = 2


def swap_shapes(saved):
    shapes = saved["param_shapes"][0]
    shapes["l1.bias"], shapes["head.bias"] = shapes["head.bias"], shapes["l1.bias"]


def of_another_optimizer(saved):
    entry(saved)["momentum_buffer"] = entry(saved)["exp_avg"]


DAMAGES = {
    change_step: (RANK.format(1), r"rank 1: group 0: step: expected 5\.0.*found 6\.0"),
    change_rate: (RANK.format(1), "rank 1: param_groups: expected those of rank 0"),
    dirty_padding: (RANK.format(1), "rank 1: group 0: exp_avg: expected zeros as padding"),
    shift_slice: (
        RANK.format(1),
        r"rank 1: group 0: exp_avg: .*: expected 8 elements within \d+, used by it alone",
    ),
    drop_slice: (RANK.format(1), "n1.bias: expected 8 elements.*found 0 in 0 ranks"),
    shorten_slice: (RANK.format(0), "l2.weight: expected 64 elements.*found 63 in 2 ranks"),
    cut_vector: (RANK.format(0), r"rank 0: group 0: exp_avg_sq: expected 170 elements"),
    count_more: (RANK.format(0), "expected partition_count 2, since there are files of 2 ranks"),
    make_elastic: (RANK.format(0), "elastic_checkpoint"),
    of_another_optimizer: (RANK.format(0), "expected the state of Adam, found momentum_buffer"),
    split_model: (MODEL, "expected a model that is not split .*, found mp_world_size=2"),
    swap_shapes: (MODEL, "expected 11 elements.*found 8|expected 8 elements.*found 11"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(damage, folder):
    name, message = DAMAGES[damage]
    edit(folder / name, damage)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(caught.value).startswith(str(folder))


FOLDERS = {
    "no rank 1": (lambda f: (f / RANK.format(1)).unlink(), "expected partition_count 1.*found.*2"),
    "no rank 0": (lambda f: (f / RANK.format(0)).unlink(), "files .* of all ranks.*of rank 0"),
    "no model": (lambda f: (f / MODEL).unlink(), "expected mp_rank_00_model_states.pt"),
    "no latest": (lambda f: (f / "latest").unlink(), "expected the file `latest`.*global_step5"),
    "wrong latest": (lambda f: (f / "latest").write_text("../x"), "latest: expected the name of"),
    "another part": (
        lambda f: (f / MODEL).with_name("mp_rank_01_model_states.pt").write_bytes(b""),
        "mp_rank_01_model_states.pt: expected a model that is not split",
    ),
    "cut": (
        lambda f: (f / RANK.format(1)).write_bytes((f / RANK.format(1)).read_bytes()[:-99]),
        "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt: truncated or damaged",
    ),
    "without ZeRO": (
        lambda f: [(f / RANK.format(rank)).unlink() for rank in (0, 1)],
        "without ZeRO the optimizer is in mp_rank_00_model_states.pt: use that file",
    ),
}


@pytest.mark.parametrize("damage", FOLDERS)
def test_what_is_missing_is_named(damage, folder):
    change, message = FOLDERS[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_what_the_engine_does_is_noted(folder):
    assert not [note for note in load(folder).notes if "scale" in note or "clips" in note]

    def change(saved):
        held(saved)["clip_grad"] = 0.5
        held(saved)["loss_scaler"].state["cur_scale"] = 1024.0

    edit(folder / RANK.format(0), change)
    notes = " ".join(load(folder).notes)
    assert "the loss scale 1024.0 is not carried over" in notes
    assert "config={'clip_global_norm': 0.5}" in notes
    assert load(folder, config={"clip_global_norm": 0.5}).config.clip_global_norm == 0.5


def test_the_file_of_one_rank_is_not_a_checkpoint():
    with pytest.raises(CheckpointError, match=r"that of one rank.*use the folder"):
        load(WILD / CASES[1] / RANK.format(0))
