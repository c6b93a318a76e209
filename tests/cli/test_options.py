"""Options that say how a file is read: groups, keys, names, hyperparameters."""

import json

import pytest

from adamx.checkpoint import load
from tests.checkpoint.checkpoint_runs import CHECKPOINTS
from tests.checkpoint_files.wild_cases import WILD
from tests.cli.command_runs import KERAS, TORCH, rows

GAN, NANOGPT, BIG_M = (WILD / n for n in ("gan/gan.pt", "nanogpt/ckpt.pt", "health/big_m.pt"))


def head_of(out):
    return dict(line.split(maxsplit=1) for line in out[: out.index("")])


def test_groups_are_shown_with_what_they_differ_in(run):
    code, out, _ = run("inspect", CHECKPOINTS / "torch_groups.pt")
    assert code == 0
    lines = [line.split(maxsplit=2)[2] for line in out if line.startswith("group")]
    assert lines == [
        "4 variables, weight_decay 0.1: in.weight, b2.weight, b10.weight and 1 more",
        "4 variables, weight_decay 0.0: in.bias, b2.bias, b10.bias and 1 more",
    ]
    assert "weight_decay" not in head_of(out)


def test_steps_and_schedulers_of_groups(run):
    _, out, _ = run("inspect", WILD / "late_layer" / "c.pt")
    assert [line.split(", ")[1] for line in out if line.startswith("group")] == [
        "9 steps",
        "5 steps",
        "2 steps",
    ]
    assert "count" not in head_of(out)
    _, out, _ = run("inspect", "--json", WILD / "lightning_sched" / "last.ckpt")
    facts = json.loads("\n".join(out))
    assert [group["scheduled"] for group in facts["groups"]] == [True]
    assert facts["groups"][0]["config"]["learning_rate"] == 0.0009755282581475768
    assert facts["notes"] == [
        "a scheduler set the learning rate: adamx uses that of this step, not 0.001, "
        "the initial one"
    ]


def test_what_was_not_read_is_told(run, tmp_path):
    _, out, _ = run("inspect", NANOGPT)
    assert head_of(out)["left"] == (
        "out       model_args (n_layer=1, n_head=1, n_embd=8, block_size=8, bias=True, "
        "vocab_size=11, dropout=0.0), iter_num=6, best_val_loss, config (batch_size=12, "
        "device='cpu', learning_rate=0.0006, weight_decay=0.1, decay_lr=True)"
    )
    _, out, _ = run(
        "convert", WILD / "ema_beside" / "c.pt", tmp_path / "x.safetensors", "--weights", "model"
    )
    assert "; not carried: model_ema (11 weights)" in out[0]
    assert out[1].startswith("names: 11 of 11 inferred from the order of the model's weights")


def test_several_optimizers_are_listed_with_the_option(run):
    code, _, err = run("inspect", GAN)
    assert code == 2
    assert "found 2: optG, optD; pass optimizer=, such as optimizer='optG'" in err[0]
    assert err[1] == "On the command line: --optimizer KEY"
    code, _, err = run("inspect", GAN, "--optimizer", "optD")
    assert "found 2 that fit: G, D; pass weights=, such as weights='G'" in err[0]
    assert err[1] == "On the command line: --weights KEY"
    code, out, _ = run("inspect", GAN, "--optimizer", "optD", "--weights", "D")
    assert (code, head_of(out)["learning_rate"]) == (0, "0.004")


def test_strict_refuses_names_that_are_inferred(run):
    code, _, err = run("inspect", "--strict", WILD / "swapped_same_shape" / "c.pt")
    assert code == 2
    assert (
        "names: expected variables whose names are stored in the file, found 11 of 11 inferred"
        in err[0]
    )
    assert "of the same shape: emb.weight, l1.weight, l2.weight" in err[0]
    assert err[1] == "On the command line: --names FILE, or without --strict"
    assert run("inspect", "--strict", WILD / "fsdp_nested" / "full.pt")[0] == 0


@pytest.mark.parametrize("command", ["inspect", "convert", "diff"])
def test_set_changes_one_field_and_keeps_the_rest(run, tmp_path, command):
    target = tmp_path / "x.safetensors"
    other = {"inspect": [], "convert": [target], "diff": [TORCH]}[command]
    code, out, _ = run(command, TORCH, *other, "--set", "b2=0.5", "--set", "eps=0.25")
    assert code == 0
    if command == "inspect":
        assert (head_of(out)["b2"], head_of(out)["eps"]) == ("0.5", "0.25")
    elif command == "convert":
        assert "changed b2 from 0.999 to 0.5; changed eps from 1e-08 to 0.25" in out[0]
        own, new = (load(path).config.plain_fields() for path in (TORCH, target))
        assert new == own | {"b2": 0.5, "eps": 0.25}


def test_set_alone_is_a_configuration_for_a_file_without_any(run):
    state = WILD / "npz_to_numpy" / "state.npz"
    _, out, _ = run("inspect", state, "--set", "learning_rate=0.5")
    assert (head_of(out)["learning_rate"], head_of(out)["b2"]) == ("0.5", "0.999")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [(TORCH, "a parameter group of torch"), (KERAS, "the get_config() of a Keras")],
)
def test_a_configuration_of_another_framework_is_refused(run, tmp_path, path, wanted):
    config = tmp_path / "config.json"
    keras = {"learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
    group = {"lr": 0.01, "betas": [0.9, 0.999], "decoupled_weight_decay": False}
    config.write_text(json.dumps(keras if path == TORCH else group))
    code, _, err = run("inspect", path, "--config", config)
    assert code == 2
    assert err[0].startswith(f"adamx: error: {config}: expected {wanted}")
    assert "whose Adam differs from" in err[0]


def test_a_contradicting_configuration_is_a_warning(run, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"lr": 0.5, "betas": [0.9, 0.999]}))
    code, out, err = run("inspect", TORCH, "--config", config)
    assert (code, head_of(out)["learning_rate"]) == (0, "0.5")
    assert err[0].startswith(
        f"adamx: warning: {TORCH}: config= contradicts the file: learning_rate"
    )


def test_check_gives_a_verdict_and_its_exit_code(run):
    code, out, _ = run("inspect", "--check", TORCH)
    assert (code, out[-1]) == (0, "sound: nothing was found in the moments of 8 variables")
    code, out, _ = run("inspect", "--check", BIG_M)
    assert (code, out[-1]) == (1, "1 finding: no run of Adam gives such moments")
    assert out[-2].startswith("mu/l1.weight: 36 of 36 entries")
    assert next(iter(rows(out))) == "emb.weight"
    code, out, _ = run("inspect", "--check", "--json", BIG_M)
    assert (code, json.loads("\n".join(out))["problems"][0]["name"]) == (1, "l1.weight")


@pytest.mark.parametrize("folder", ["dcp/dcp", "deepspeed_zero2", "hf_trainer/checkpoint-6"])
def test_folders_of_torch_take_a_parameter_group(run, tmp_path, folder):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"lr": 0.5, "betas": [0.9, 0.999], "weight_decay": 0.0}))
    code, out, _ = run("inspect", WILD / folder, "--config", config)
    assert (code, head_of(out)["learning_rate"]) == (0, "0.5")


def test_names_replace_inferred_ones(run, tmp_path):
    """If two names of one shape are swapped, so are their moments; a wrong list is an error."""
    file = WILD / "swapped_same_shape" / "c.pt"
    names = list(load(file).names)
    a, b = names.index("l1.weight"), names.index("l2.weight")
    swapped = list(names)
    swapped[a], swapped[b] = names[b], names[a]
    (tmp_path / "n.txt").write_text("\n".join(swapped))
    code, _, err = run("convert", file, tmp_path / "x.safetensors", "--names", tmp_path / "n.txt")
    assert (code, err) == (0, [])
    old, new = load(file), load(tmp_path / "x.safetensors")
    assert (new.mu["l1.weight"] == old.mu["l2.weight"]).all()
    assert set(new.naming.values()) == {"file"}
    (tmp_path / "n.txt").write_text("\n".join(names[:2]))
    code, _, err = run("inspect", file, "--names", tmp_path / "n.txt")
    assert code == 2
    assert "expected 11 names, one for each variable of the optimizer, found 2" in err[0]


def test_names_of_a_file_that_stores_them_are_not_used(run, tmp_path):
    (tmp_path / "n.txt").write_text("a\nb")
    file = WILD / "fsdp_nested" / "full.pt"
    code, _, err = run("inspect", file, "--names", tmp_path / "n.txt")
    assert (code, err) == (
        0,
        [
            f"adamx: warning: --names is not used for {file}, which stores the names of its "
            "variables"
        ],
    )
