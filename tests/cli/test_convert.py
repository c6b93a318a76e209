"""`adamx convert`, as its user meets it: what it prints, and what it leaves behind."""

import dataclasses
import errno
import re

import numpy as np
import pytest

import adamx.cli.loading
import adamx.cli.output
from adamx.checkpoint import load, save
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, assert_equal
from tests.cli.command_runs import KERAS, NAMES, NAMING, NUMBERED, TORCH, TORCH_NAMES


def test_a_damaged_template_is_an_error_that_names_it(run, tmp_path):
    template, target = tmp_path / "template.keras", tmp_path / "new.keras"
    template.write_bytes(KERAS.read_bytes()[:20_000])
    code, out, err = run("convert", KERAS, target, "--template", template)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"adamx: error: {template}: truncated or damaged ")
    assert not target.exists()


def test_convert_and_back(run, tmp_path):
    ours, back = tmp_path / "state.safetensors", tmp_path / "back.keras"
    carried = "carried 30 steps, config, moments of 8 variables, 8 weights; not carried: nothing"
    naming = f"names: {NAMING}"
    assert run("convert", KERAS, ours) == (0, [f"{ours}: {carried}", naming], [])

    template = CHECKPOINTS / "keras3_schedule.keras"  # another run of the same network
    code, _, _ = run("diff", ours, template)
    assert code == 1
    code, out, _ = run("convert", ours, back, "--template", template)
    assert (code, out) == (0, [f"{back}: {carried}", naming])
    same = "A and B are the same optimizer state, bit for bit: 30 steps, moments of 8 variables, "
    for pair in ((KERAS, back), (back, ours), (CHECKPOINTS / "keras3_model.h5", back)):
        assert run("diff", *pair) == (0, [same + "8 weights"], [])


def test_convert_says_what_it_could_not_carry(run, tmp_path):
    argv = (CHECKPOINTS / "keras3_ema.keras", tmp_path / "new.pt", "--set", "convention=torch")
    _, out, _ = run("convert", *argv)
    averages = ", ".join(f"average/{name}" for name in NAMES[:4])
    assert out == [
        f"{argv[1]}: carried 30 steps, config, moments of 8 variables; not carried: 8 weights, "
        f"{averages} and 5 more; changed the position of epsilon from keras to torch",
        f"names: {NAMING}",
    ]
    target = tmp_path / "new.weights.h5"
    _, out, _ = run("convert", KERAS, target, "--template", NUMBERED)
    assert out == [
        f"{target}: carried 30 steps, moments of 8 variables, 8 weights; not carried: config",
        f"names: {NAMING}",
    ]


def test_convert_names_the_weights_that_it_could_not_carry(run, tmp_path):
    source, target = CHECKPOINTS / "torch_frozen.pt", tmp_path / "new.keras"
    order = tmp_path / "order.txt"
    names = [
        *("in/kernel", "in/bias", "frozen/kernel", "frozen/bias", "norm/gamma", "norm/beta"),
        *("norm/moving_mean", "norm/moving_variance", "(nothing in Keras)"),
        *("b10/kernel", "b10/bias", "out/kernel", "out/bias"),
    ]
    order.write_text("\n".join(names))
    template = CHECKPOINTS / "keras3_frozen.keras"
    argv = ("--template", template, "--order", order, "--set", "convention=keras")
    _, out, _ = run("convert", source, target, *argv)
    assert out[0] == (
        f"{target}: carried 30 steps, config, moments of 8 variables, 12 weights; not carried: "
        "params/norm.num_batches_tracked; changed the position of epsilon from torch to keras"
    )
    assert out[1].startswith(
        "names: 10 of 10 inferred from the order of the model's weights; of the"
    )


def test_convert_replaces_a_file_only_by_force(run, tmp_path):
    target = tmp_path / "state.safetensors"
    target.write_text("precious")
    code, _, err = run("convert", KERAS, target)
    assert (code, err) == (2, [f"adamx: error: {target}: exists; --force replaces it"])
    assert target.read_text() == "precious"
    assert run("convert", KERAS, target, "--force")[0] == 0
    assert_equal(load(target), load(KERAS))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("missing/state.safetensors", "No such file or directory"),
        ("missing/deeper/state.npz", "No such file or directory"),
        ("file/state.safetensors", "Not a directory"),
        ("folder", "Is a directory"),
    ],
)
def test_convert_to_where_no_file_can_be(run, tmp_path, monkeypatch, target, told):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    path, to = tmp_path / target, ("--to", "safetensors", "--force")
    with pytest.raises(OSError, match=f"{told}: '{path}'") as caught:
        save(path, load(KERAS), format="safetensors")
    assert caught.value.filename == str(path)
    monkeypatch.setattr(adamx.cli.loading, "load", lambda *_, **__: pytest.fail("it was read"))
    assert run("convert", KERAS, path, *to) == (2, [], [f"adamx: error: {path}: {told}"])
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "folder"]


def test_an_error_while_writing_names_the_target(run, tmp_path, monkeypatch):
    target = tmp_path / "state.safetensors"

    def full(_, file, *__):
        raise OSError(errno.ENOSPC, "No space left on device", file)

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    told = f"adamx: error: {target}: No space left on device"
    assert run("convert", KERAS, target) == (2, [], [told])
    assert list(tmp_path.iterdir()) == []


def test_convert_names_the_template_that_does_not_fit(run, tmp_path):
    template = CHECKPOINTS / "keras3_frozen.keras"
    code, out, err = run("convert", KERAS, tmp_path / "new.keras", "--template", template)
    assert (code, out) == (2, [])
    assert err[0] == (
        f"adamx: error: {template}: the variables of the checkpoint do not fit the template:"
    )
    assert [line for line in err if "b2/bias" in line] == [
        "  b2/bias: in the checkpoint, but not in the template, shape (16,)"
    ]


def test_convert_to_a_format_that_no_suffix_tells(run, tmp_path):
    target = tmp_path / "state"
    code, _, err = run("convert", KERAS, target)
    assert (code, err[-1]) == (2, "On the command line: --to FORMAT")
    assert run("convert", KERAS, target, "--to", "safetensors")[0] == 0
    assert_equal(load(target), load(KERAS))


def test_convert_to_keras_asks_for_a_template(run, tmp_path):
    code, _, err = run("convert", KERAS, tmp_path / "new.keras")
    assert (code, err[-1]) == (2, "On the command line: --template FILE")


def test_order_names_the_variables_of_the_target(run, tmp_path):
    order, target = tmp_path / "order.txt", tmp_path / "new.keras"
    arguments = ["convert", TORCH, target, "--template", KERAS, "--set", "convention=keras"]
    code, _, err = run(*arguments)
    assert (code, err[-1]) == (2, "On the command line: --order FILE")

    order.write_text("# Keras's names\n\n" + "\n".join(f"  {name}  # one" for name in NAMES))
    assert run(*arguments, "--order", order)[0] == 0
    new, old = load(target), load(TORCH)
    for name, torch_name in zip(NAMES, TORCH_NAMES, strict=True):
        assert np.array_equal(new.mu[name], old.mu[torch_name].T)
        assert np.array_equal(new.params[name], old.params[torch_name].T)

    assert run("diff", TORCH, target)[0] == 2
    code, out, _ = run("diff", TORCH, target, "--order", order)
    assert (code, out[1]) == (0, "convention: torch in A, keras in B")

    swapped = [NAMES[i] for i in (0, 1, 4, 5, 2, 3, 6, 7)]  # b2 and b10 have the same shapes
    order.write_text("\n".join(swapped))
    code, out, _ = run("diff", TORCH, target, "--order", order)
    assert code == 1
    differing = {line.split()[0] for line in out if re.match(r"\w+/", line)}
    assert differing == {"b2/kernel", "b2/bias", "b10/kernel", "b10/bias"}


def test_another_place_of_epsilon_has_to_be_asked_for(run, tmp_path):
    source, target = CHECKPOINTS / "keras3_amsgrad.keras", tmp_path / "new.pt"
    code, _, err = run("convert", source, target)
    assert code == 2
    assert "adamx convert --set convention=torch" in err[0]
    assert not target.exists()
    code, out, _ = run("convert", source, target, "--set", "convention=torch")
    assert code == 0
    assert out[0].endswith("; changed the position of epsilon from keras to torch")
    assert load(target).config.convention == "torch"


def test_set_changes_hyperparameters(run, tmp_path):
    target = tmp_path / "new.safetensors"
    new = ["eps=1e-5", "clip_global_norm=None", "amsgrad=False"]
    _, out, _ = run("convert", KERAS, target, *(word for text in new for word in ("--set", text)))
    assert out[0].endswith(
        "; changed eps from 1e-07 to 1e-05; changed clip_global_norm from 1.0 to None"
    )
    old = load(KERAS).config
    assert load(target).config == dataclasses.replace(old, eps=1e-5, clip_global_norm=None)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("b1=2", "--set b1: expected a finite number of at least 0 and below 1, found 2"),
        ("eps=small", "--set eps: expected a real number or a scalar array, found str 'small'"),
        ("convention=optax", "--set convention: AMSGrad's maxima in keras are not those in optax"),
        ("nesterov=True", '--set nesterov: expected convention="optax" with it'),
    ],
)
def test_set_refuses(run, tmp_path, setting, told):
    source, target = CHECKPOINTS / "keras3_amsgrad.keras", tmp_path / "new.safetensors"
    code, _, err = run("convert", source, target, "--set", setting)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith(f"adamx: error: {told}")
    assert not target.exists()
