"""`adamx diff`, as its user meets it."""

import dataclasses
import re

import numpy as np
import pytest

import adamx
from adamx.checkpoint import load
from tests.checkpoint.checkpoint_runs import CHECKPOINTS
from tests.checkpoint_files.wild_cases import WILD
from tests.cli.command_runs import (
    BFLOAT16,
    KERAS,
    NAMES,
    NUMBERED,
    checkpoint_of,
    recording,
    saved,
    with_entry,
)


def test_diff_gives_a_configuration_only_to_the_file_without(run, settings):
    config = settings(learning_rate=0.01, global_clipnorm=0.5, loss_scale_factor=None)
    assert run("diff", NUMBERED, KERAS, "--config", config) == (
        0,
        [
            "learning_rate: 0.01 in A, 0.01 in float32 in B, the same in float32",
            "clip_global_norm: 0.5 in A, 1.0 in B",
            "A and B are the same optimizer state, bit for bit: 30 steps, moments of 8 variables, "
            "8 weights",
        ],
        [],
    )


@pytest.mark.parametrize(
    ("field", "column"), [("mu", "m"), ("nu", "v"), ("nu_max", "v_max"), ("params", "weight")]
)
def test_diff_finds_one_bit(run, tmp_path, field, column):
    source = CHECKPOINTS / "keras3_amsgrad.keras"
    old = load(source)
    arrays = getattr(old, field)
    bits = arrays["b2/bias"].view(np.int32).copy()
    bits[3] ^= 1
    changed = {**arrays, "b2/bias": bits.view(np.float32)}
    other = saved(tmp_path / "other.safetensors", old, **{field: changed})
    size = abs(float(arrays["b2/bias"][3]) - float(changed["b2/bias"][3]))
    code, out, err = run("diff", source, other)
    assert (code, err) == (1, [])
    assert out == [
        "the largest differences, and how many entries differ:",
        f"variable  {column}",
        f"b2/bias   {size:.3g} in 1 of 16",
        "A and B are not the same optimizer state",
    ]


def test_diff_shows_the_largest_difference_by_variable(run):
    a, b = KERAS, CHECKPOINTS / "keras3_schedule.keras"
    code, out, _ = run("diff", a, b)
    assert code == 1
    ours, theirs = recording("keras3_model"), recording("keras3_schedule")
    for i, name in enumerate(NAMES):  # the schedule's has no learning rate in its list
        cells = []
        for x, y in (
            (ours[f"opt{2 + 2 * i}"], theirs[f"opt{1 + 2 * i}"]),
            (ours[f"opt{3 + 2 * i}"], theirs[f"opt{2 + 2 * i}"]),
            (ours[f"saved{i}"], theirs[f"saved{i}"]),
        ):
            largest = np.abs(x.astype(np.float64) - y).max()
            cells.append(f"{largest:.3g} in {np.count_nonzero(x != y)} of {x.size}")
        line = next(line for line in out if line.startswith(f"{name} "))
        assert re.split(r" {2,}", line) == [name, *cells]


def test_diff_leaves_out_settings_without_effect(run, tmp_path):
    target = tmp_path / "new.h5"
    argv = (KERAS, target, "--template", CHECKPOINTS / "tfkeras_legacy_model.h5")
    assert run("convert", *argv)[0] == 0
    assert load(KERAS).config.clip_value_first != load(target).config.clip_value_first
    code, out, _ = run("diff", KERAS, target)
    assert code == 0
    assert out[:-1] == ["float32: False in A, True in B"]


def test_diff_of_counts(run, tmp_path):
    other = saved(tmp_path / "other.safetensors", load(KERAS), count=31)
    assert run("diff", KERAS, other) == (
        1,
        ["count: 30 steps in A, 31 in B", "A and B are not the same optimizer state"],
        [],
    )


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (np.nan, np.nan, None),
        (np.inf, np.inf, None),
        (np.nan, 1.0, "nan in 1 of 6"),
        (np.inf, -np.inf, "inf in 1 of 6"),
        (0.0, -0.0, "0 in 1 of 6"),
    ],
)
def test_diff_of_special_numbers(run, tmp_path, x, y, told):
    arrays = {"a": np.full((2, 3), 7, np.float32)}
    files = [
        saved(
            tmp_path / f"{name}.safetensors", checkpoint_of(with_entry(arrays, "a", value), arrays)
        )
        for name, value in (("x", x), ("y", y))
    ]
    for pair in (files, files[::-1]):
        code, out, _ = run("diff", *pair)
        assert code == (0 if told is None else 1)
        assert told is None or f"a         {told}" in out


def test_diff_compares_unlike_dtypes_in_the_wider_one(run, tmp_path):
    narrow = {"a": np.array([0.5, 0.1], BFLOAT16), "b": np.array([3.0], np.float32)}
    nu = {"a": np.ones(2, np.float32), "b": np.ones(1, np.float32)}
    wide = {name: array.astype(np.float64) for name, array in narrow.items()}
    x = saved(tmp_path / "x.safetensors", checkpoint_of(narrow, nu))
    y = saved(tmp_path / "y.safetensors", checkpoint_of(wide, nu))
    z = saved(tmp_path / "z.safetensors", checkpoint_of(with_entry(wide, "a", 0.1, 1), nu))
    assert run("diff", x, y)[0] == run("diff", y, x)[0] == 0
    size = abs(0.1 - float(narrow["a"][1]))
    for pair in ((x, z), (z, x)):
        code, out, _ = run("diff", *pair)
        assert (code, out[2]) == (1, f"a         {size:.3g} in 1 of 2")


def test_diff_of_integers_beyond_double_precision(run, tmp_path):
    mu = {"a": np.ones(1, np.float32)}
    files = [
        saved(
            tmp_path / f"{i}.safetensors", checkpoint_of(mu, params={**mu, "seed": np.array([i])})
        )
        for i in (2**60, 2**60 + 1)
    ]
    code, out, _ = run("diff", *files)
    assert (code, out[2]) == (1, "seed      0 in 1 of 1")


def test_diff_of_other_variables_is_an_error(run, tmp_path):
    other = saved(tmp_path / "x.safetensors", checkpoint_of({"hidden": np.ones(2, np.float32)}))
    code, out, err = run("diff", KERAS, other)
    assert (code, out) == (2, [])
    assert err[0].startswith(f"adamx: error: {KERAS} and {other}: ")
    assert "  hidden: not in A, shape (2,)" in err
    assert "  out/bias: in A, but not in B, shape (4,)" in err
    assert [sum(name in line for line in err) for name in ("hidden", "out/bias")] == [1, 1]
    assert "the checkpoint" not in " ".join(err)


def test_diff_without_weights_compares_the_state(run, tmp_path):
    other = saved(tmp_path / "x.safetensors", load(KERAS), params={})
    for side, pair in (("A", (KERAS, other)), ("B", (other, KERAS))):
        code, out, _ = run("diff", *pair)
        assert (code, out[0]) == (0, f"only in {side}: 8 weights")


@pytest.mark.parametrize(
    ("file", "lost", "told"),
    [
        ("keras3_ema.keras", {"extra": {}}, "average/in/kernel, "),
        ("keras3_amsgrad.keras", {"nu_max": {}}, "v_max"),
    ],
)
def test_diff_misses_what_only_one_state_has(run, tmp_path, file, lost, told):
    old = load(CHECKPOINTS / file)
    config = dataclasses.replace(old.config, amsgrad=False)
    other = saved(tmp_path / "x.safetensors", old, config=config, **lost)
    for side, pair in (("A", (CHECKPOINTS / file, other)), ("B", (other, CHECKPOINTS / file))):
        code, out, _ = run("diff", *pair)
        assert code == 1
        assert any(line.startswith(f"only in {side}: {told}") for line in out)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_diff_needs_no_hyperparameters(run, tmp_path, amsgrad):
    """A state of arrays has none, and they are not what is compared."""
    state = adamx.adam(1e-3, amsgrad=amsgrad).init({"w": np.ones(3, np.float32)})
    np.savez(tmp_path / "a.npz", **adamx.to_numpy(state))
    code, out, err = run("diff", tmp_path / "a.npz", tmp_path / "a.npz")
    assert (code, err) == (0, [])
    assert out == [
        "hyperparameters are not compared: not both files hold them",
        "A and B are the same optimizer state, bit for bit: 0 steps, moments of 1 variable",
    ]
    code, out, _ = run("diff", tmp_path / "a.npz", tmp_path / "a.npz", "--set", "amsgrad=True")
    assert code == (0 if amsgrad else 2)


def test_diff_does_not_warn_of_hyperparameters_that_it_made_up(run):
    """A file of TensorFlow 1 holds some, and a given configuration is compared with them."""
    file = WILD / "tf1_saver"
    code, out, err = run("diff", file, file)
    assert (code, err) == (0, [])
    assert out[0] == "hyperparameters are not compared: not both files hold them"
    _, _, err = run("diff", file, file, "--set", "b1=0.9")
    assert "config= contradicts the file, and is used: convention 'keras'" in err[0]
