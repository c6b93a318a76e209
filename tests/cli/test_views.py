"""`adamx inspect` of what cannot be read as it is asked for: it shows what is there anyhow."""

import json
import shutil

import flax.serialization
import h5py
import numpy as np
import pytest

import adamx
from adamx.checkpoint import load
from adamx.checkpoint.formats._torch_files import open_saved
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.writing.torch_writer import write_archive
from tests.checkpoint_files.wild_cases import WILD, read_case
from tests.cli.command_runs import NAMES, NUMBERED, rows

GAN = WILD / "gan" / "gan.pt"


def norm(arrays, name):
    return f"{np.linalg.norm(arrays[name].astype(np.float64)):.6g}"


def test_each_of_several_optimizers(run):
    code, out, err = run("inspect", GAN)
    assert code == 2
    assert err[0].startswith(f"adamx: error: {GAN}: optimizer: expected the key of one of the")
    starts = [index for index, line in enumerate(out) if line.startswith("file  ")]
    parts = [out[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    for part, (optimizer, weights) in zip(parts, [("optG", "G"), ("optD", "D")], strict=True):
        checkpoint = load(GAN, optimizer=optimizer, weights=weights)
        assert f"optimizer      {optimizer}, one of several" in part
        assert rows(part)["l1.bias"]["norm of m"] == norm(checkpoint.mu, "l1.bias")
    assert any(
        "weights: expected the key of the weights that the optimizer trains" in x for x in out
    )


WITHOUT_HYPERPARAMETERS = {
    "tf1_saver": "TensorFlow's checkpoints do not hold all hyperparameters: this one holds b1=0.9, "
    "b2=0.999, and epsilon, clipping and weight decay are never stored",
    "npz_to_numpy/state.npz": "NumPy, adamx.to_numpy alone (.npz) holds no hyperparameters",
    "orbax_adamw/ckpt": "Orbax (folder) holds no hyperparameters",
    "flax_msgpack/state.msgpack": "Flax, to_bytes (.msgpack) holds no hyperparameters",
}
NEEDED = (
    "--check, --plot and the sizes of steps need them: pass --config FILE, or --set FIELD=VALUE"
)


@pytest.mark.parametrize(("name", "reason"), WITHOUT_HYPERPARAMETERS.items())
def test_moments_without_hyperparameters(run, name, reason):
    """They are a note, unless something asks for what depends on them."""
    path = WILD / name
    code, out, err = run("inspect", path)
    assert (code, err) == (0, [])
    assert "hyperparameters  not known" in out
    assert out[out.index("") - 1] == f"note             {reason}; {NEEDED}"
    assert not any("learning_rate  " in line for line in out)
    table = rows(out)
    assert table
    assert all("norm of m" in row and "largest step" not in row for row in table.values())
    assert run("inspect", path, "--strict") == (0, out, [])
    for option in (["--check"], ["--plot", "x.png"]):
        code, less, err = run("inspect", path, *option)
        assert (code, less) == (2, [line for line in out if NEEDED not in line])
        assert err[0].startswith(f"adamx: error: {path}: config: expected an AdamConfig, since ")
        assert err[-1] == "On the command line: --config FILE, or --set FIELD=VALUE"


def test_maxima_without_hyperparameters(run, tmp_path):
    state = adamx.adam(1e-3, amsgrad=True).init({"w": np.ones(3, np.float32)})
    np.savez(tmp_path / "x.npz", **adamx.to_numpy(state))
    code, out, _ = run("inspect", tmp_path / "x.npz")
    assert (code, rows(out)["w"]["norm of sqrt(v_max)"]) == (0, "0")


def test_names_are_asked_for_without_hyperparameters(run, tmp_path):
    """Of a file whose names are inferred, and whose learning rate is the default."""
    path, names = tmp_path / "x.weights.h5", tmp_path / "names.txt"
    shutil.copy(NUMBERED, path)
    with h5py.File(path, "r+") as file:
        file["optimizer/vars/1"][()] = 0.001
    code, out, err = run("inspect", path, "--order-template", names)
    assert (code, err, list(rows(out))) == (0, [], NAMES)
    code, seen, err = run("inspect", path, "--strict")
    assert (code, err[-1]) == (2, "On the command line: --names FILE, or without --strict")
    assert rows(seen).items() >= rows(out).items()
    assert run("inspect", path, "--strict", "--names", names)[0] == 0
    names.write_text("a")
    code, _, err = run("inspect", path, "--names", names)
    assert (code, err[-1]) == (2, "On the command line: --names FILE")


def changed(path, change):
    """A file of torch with a change of what is saved in it."""
    source = WILD / "swapped_same_shape" / "c.pt"
    saved = open_saved(source, Account(source.stat().st_size)).value
    change(saved)
    write_archive(path, saved, protocol=2, progress=None)
    return path


def test_an_unknown_key_hides_nothing(run, tmp_path):
    def change(saved):
        saved["optimizer"]["param_groups"][0]["betas"] = "unusual"

    path = changed(tmp_path / "x.pt", change)
    code, out, err = run("inspect", path)
    assert code == 2
    assert "betas" in err[0]
    assert "hyperparameters  not known" in out
    assert rows(out).keys() == rows(run("inspect", WILD / "swapped_same_shape" / "c.pt")[1]).keys()


def test_another_optimizer_is_outlined(run):
    code, out, err = run("inspect", WILD / "refused" / "nadam.pt")
    assert code == 2
    assert "found the state of NAdam" in err[0]
    assert out[1] == "format         PyTorch (.pt)"
    told = "optimizer: an optimizer with states of 11 parameters: exp_avg, exp_avg_sq, mu_product,"
    assert any(line.startswith(told) for line in out)
    assert any("group 0: lr=0.002, betas=(0.9, 0.999)" in line for line in out)
    assert "model: 11 weights: emb.weight, l1.weight, l1.bias and 8 more" in out


def test_what_else_torch_saves_is_outlined(run, tmp_path):
    write_archive(tmp_path / "x.pt", {"epoch": 3, "log": {"loss": 0.5}}, protocol=2, progress=None)
    _, out, err = run("inspect", tmp_path / "x.pt")
    assert out[3:5] == ["the file: epoch", "log: loss"]
    assert "expected the state dict of one optimizer, found none" in err[0]


def test_trees_without_adam_are_outlined(run, tmp_path):
    tree = {"opt": {"0": {"trace": {"w": np.zeros((2, 3), np.float32)}}}}
    (tmp_path / "x.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    code, out, err = run("inspect", tmp_path / "x.msgpack", "--set", "b1=0.8")
    assert code == 2
    assert "opt.0.trace.w: float32 of shape (2, 3)" in out
    assert "expected the state of Adam: count, mu and nu in one node" in err[0]


def test_a_damaged_file_is_an_error_alone(run, tmp_path):
    (tmp_path / "x.pt").write_bytes(GAN.read_bytes()[:-1000])
    code, out, err = run("inspect", tmp_path / "x.pt")
    assert code == 2
    assert out == []
    assert "truncated or damaged" in err[0]


def test_inferred_names_are_shown_before_they_are_refused(run):
    code, out, err = run("inspect", "--strict", WILD / "swapped_same_shape" / "c.pt")
    assert (code, err[-1]) == (2, "On the command line: --names FILE, or without --strict")
    assert rows(out)


def test_json_has_what_is_seen_and_what_is_in_the_way(run):
    code, out, _ = run("inspect", "--json", GAN)
    told = json.loads("\n".join(out))
    assert code == 2
    assert [seen["optimizer"] for seen in told["seen"]] == ["optG", "optD"]
    assert all(seen["config"]["b1"] == 0.5 for seen in told["seen"])
    assert ["optimizer" in told["obstacles"][0], "weights" in told["obstacles"][1]] == [True, True]
    code, out, _ = run("inspect", "--json", WILD / "tf1_saver")
    told = json.loads("\n".join(out))
    assert (code, told["count"], told["notes"][-1].endswith(NEEDED)) == (0, 6, True)
    assert "config" not in told
    assert all("config" not in group for group in told["groups"])
    code, out, _ = run("inspect", "--json", "--check", WILD / "tf1_saver")
    [seen] = json.loads("\n".join(out))["seen"]
    assert (code, seen["count"], "config" in seen) == (2, 6, False)


def test_a_template_of_names_is_edited_and_given_back(run, tmp_path):
    folder, names = WILD / "hf_trainer", tmp_path / "names.txt"
    assert run("inspect", folder, "--order-template", names)[0] == 0
    lines = names.read_text().splitlines()
    assert "# group 1: weight_decay=0.0" in lines
    assert "0  # (12, 8), transformer.wte.weight" in lines
    model = read_case("hf_trainer").names
    numbered = [line for line in lines if not line.startswith("#")]
    edited = [line.replace(line.split()[0], n, 1) for line, n in zip(numbered, model, strict=True)]
    names.write_text("\n".join([*lines[:3], *edited]))
    _, out, _ = run("inspect", folder, "--names", names)
    assert [name for name, row in rows(out).items() if "norm of m" in row] == model
    code, _, err = run("inspect", folder, "--order-template", names)
    assert (code, err) == (2, [f"adamx: error: {names}: exists"])
