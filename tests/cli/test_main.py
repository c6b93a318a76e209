"""The command `adamx`, as its user meets it: what it prints, where, and its exit code."""

import dataclasses
import errno
import io
import json
import re
import subprocess
import sys
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

import adamx.cli.main
from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, load, save
from adamx.cli.main import main
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, assert_equal

BFLOAT16 = np.dtype(jnp.bfloat16)
KERAS = CHECKPOINTS / "keras3_model.keras"
NUMBERED = CHECKPOINTS / "keras3.weights.h5"
TORCH = CHECKPOINTS / "torch_adam.pt"
NAMES = [f"{layer}/{key}" for layer in ("in", "b2", "b10", "out") for key in ("kernel", "bias")]


@pytest.fixture
def run(capsys):
    """Run the command: its exit code, and the lines of both outputs."""

    def ran(*argv):
        code = main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return ran


def recording(name):
    with np.load(CHECKPOINTS / f"{name}_resume.npz") as arrays:
        return dict(arrays)


def rows(lines):
    """The table that stands below the empty line: by name of a variable its cells by column."""
    head, *body = (re.split(r" {2,}", line.strip()) for line in lines[lines.index("") + 1 :])
    return {cells[0]: dict(zip(head, cells, strict=False)) for cells in body}


def checkpoint_of(mu, nu=None, **fields):
    nu = {name: np.abs(array) for name, array in mu.items()} if nu is None else nu
    given = {"framework": "jax", "version": None, "config": AdamConfig(), "count": 3, "params": {}}
    return Checkpoint(**{**given, "names": tuple(mu), "mu": mu, "nu": nu, **fields})


def saved(path, checkpoint, **fields):
    save(path, dataclasses.replace(checkpoint, **fields))
    return path


def with_entry(arrays, name, value, index=0):
    changed = {key: array.copy() for key, array in arrays.items()}
    changed[name].reshape(-1)[index] = value
    return changed


# The places of m and v in the recorded lists of the optimizer's variables.
def interleaved(arrays):
    return [(arrays[f"opt{2 + 2 * i}"], arrays[f"opt{3 + 2 * i}"]) for i in range(8)]


def one_after_the_other(arrays):
    return [(arrays[f"opt{1 + i}"], arrays[f"opt{9 + i}"]) for i in range(8)]


def with_steps(arrays):
    return [(arrays[f"opt{3 * i + 1}"], arrays[f"opt{3 * i + 2}"]) for i in range(8)]


TORCH_NAMES = [name.replace("/", ".").replace("kernel", "weight") for name in NAMES]
RECORDED = [
    pytest.param("keras3_model.keras", "keras3_model", NAMES, interleaved, id="keras3"),
    pytest.param("tf11_model.h5", "tf11", sorted(NAMES), one_after_the_other, id="tf11"),
    pytest.param("torch_names.pt", "torch_names", TORCH_NAMES, with_steps, id="torch"),
]


@pytest.mark.parametrize(("file", "resume", "names", "moments"), RECORDED)
def test_inspect_prints_the_norms_of_the_recorded_moments(run, file, resume, names, moments):
    if file.endswith(".pt"):
        pytest.importorskip("torch")
    code, out, err = run("inspect", CHECKPOINTS / file)
    assert (code, err) == (0, [])
    table = rows(out)
    assert list(table) == names
    for name, (m, v) in zip(names, moments(recording(resume)), strict=True):
        m, v = m.astype(np.float64), v.astype(np.float64)
        assert table[name] == {
            "variable": name,
            "shape": str(m.shape),
            "dtype": "float32",
            "norm of m": f"{np.linalg.norm(m):.6g}",
            "norm of sqrt(v)": f"{np.linalg.norm(np.sqrt(v)):.6g}",
        }


@pytest.mark.parametrize(("file", "resume", "names", "moments"), RECORDED)
def test_inspect_json_has_the_norms_in_double_precision(run, file, resume, names, moments):
    if file.endswith(".pt"):
        pytest.importorskip("torch")
    _, out, _ = run("inspect", "--json", CHECKPOINTS / file)
    variables = json.loads("\n".join(out))["variables"]
    assert [variable["name"] for variable in variables] == names
    for variable, (m, v) in zip(variables, moments(recording(resume)), strict=True):
        m, v = m.astype(np.float64), v.astype(np.float64)
        assert variable["shape"] == list(m.shape)
        assert variable["norm_m"] == pytest.approx(np.linalg.norm(m), rel=1e-14)
        assert variable["norm_sqrt_v"] == pytest.approx(np.linalg.norm(np.sqrt(v)), rel=1e-14)
        assert set(variable["nonfinite"].values()) == {0}


def test_inspect_prints_what_the_file_says_of_the_run(run):
    _, out, _ = run("inspect", KERAS)
    head = dict(line.split(maxsplit=1) for line in out[: out.index("")])
    assert head == {
        "file": str(KERAS),
        "framework": "Keras 3.15.1",
        "count": "30 steps",
        "learning_rate": "0.01 in float32",
        "b1": "0.9",
        "b2": "0.999",
        "eps": "1e-07",
        "clip_global_norm": "1.0",
        "convention": "keras",
    }


def test_inspect_json_has_every_hyperparameter(run):
    _, out, _ = run("inspect", "--json", CHECKPOINTS / "keras3_schedule.keras")
    facts = json.loads("\n".join(out))
    assert (facts["framework"], facts["version"], facts["count"]) == ("keras3", "3.15.1", 30)
    config = facts["config"]
    assert config.keys() == {field.name for field in dataclasses.fields(AdamConfig)}
    assert config["learning_rate"]["class_name"] == "InverseTimeDecay"
    assert config["learning_rate"]["config"]["decay_rate"] == 0.001
    assert (config["eps"], config["amsgrad"], config["clip_norm"]) == (1e-7, False, None)


def test_inspect_lists_weights_without_moments_last(run):
    file = CHECKPOINTS / "tf11_frozen.h5"
    fixed = ["frozen/kernel", "frozen/bias", "norm/moving_mean", "norm/moving_variance"]
    _, out, _ = run("inspect", file)
    assert list(rows(out))[-4:] == fixed
    assert rows(out)["frozen/kernel"] == {
        "variable": "frozen/kernel",
        "shape": "(16, 16)",
        "dtype": "float32",
    }
    _, out, _ = run("inspect", "--json", file)
    facts = json.loads("\n".join(out))
    assert [variable["name"] for variable in facts["without_moments"]] == fixed
    assert not {variable["name"] for variable in facts["variables"]} & set(fixed)


def test_inspect_measures_maxima_and_averages(run):
    _, out, _ = run("inspect", CHECKPOINTS / "keras3_amsgrad.keras")
    v_max = recording("keras3_amsgrad")["opt18"].astype(np.float64)
    norm = np.linalg.norm(np.sqrt(v_max))
    assert rows(out)["in/kernel"]["norm of sqrt(v_max)"] == f"{norm:.6g}"
    _, out, _ = run("inspect", "--json", CHECKPOINTS / "keras3_ema.keras")
    extra = json.loads("\n".join(out))["extra"]
    assert len(extra) == 9
    assert extra["ema_momentum"]["norm"] == pytest.approx(0.9)
    average = recording("keras3_ema")["opt2"].astype(np.float64)
    assert extra["average/in/kernel"]["norm"] == pytest.approx(np.linalg.norm(average))


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_inspect_flags_what_is_not_finite(run, tmp_path):
    healthy = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}
    file = saved(
        tmp_path / "state.safetensors",
        checkpoint_of(
            with_entry(healthy, "a", np.nan, 4),
            with_entry(with_entry(healthy, "a", -1e-9, 2), "b", np.inf),
            params=with_entry(healthy, "b", -np.inf, 3),
        ),
    )
    code, out, _ = run("inspect", file)
    assert code == 0
    assert rows(out)["a"]["NOT FINITE"] == "1 in m, 1 in sqrt(v)"
    assert rows(out)["b"]["NOT FINITE"] == "1 in sqrt(v), 1 in weight"
    assert (rows(out)["a"]["norm of m"], rows(out)["b"]["norm of sqrt(v)"]) == ("nan", "inf")
    _, out, _ = run("inspect", "--json", file)
    a, b = json.loads("\n".join(out), parse_constant=no_constant)["variables"]
    assert (a["norm_m"], b["norm_m"], b["norm_sqrt_v"]) == ("nan", 2.0, "inf")
    assert a["nonfinite"] == {"m": 1, "sqrt_v": 1, "weight": 0}
    assert b["nonfinite"] == {"m": 0, "sqrt_v": 1, "weight": 1}


def test_inspect_shows_any_shape_dtype_and_name(run, tmp_path):
    mu = {
        "[bold]layers[0]": np.full((3, 5), -2, BFLOAT16),
        ":smile: \x1b[31m\n": np.ones((), np.float16),
        "empty" * 50: np.ones((0, 2)),
    }
    nu = {name: np.abs(array).astype(np.float64) for name, array in mu.items()}
    file = saved(tmp_path / "state.safetensors", checkpoint_of(mu, nu))
    code, out, _ = run("inspect", file)
    assert code == 0
    table = rows(out)
    assert list(table) == ["[bold]layers[0]", r":smile: \x1b[31m\n", "empty" * 50]
    assert table["[bold]layers[0]"]["dtype"] == "m bfloat16, v float64"
    assert table["[bold]layers[0]"]["norm of m"] == f"{np.sqrt(15 * 4):.6g}"
    assert table["empty" * 50]["norm of m"] == "0"
    assert "\x1b" not in "".join(out)


def test_columns_are_aligned(run, tmp_path):
    """By what a terminal shows: a Chinese character is two columns wide, an accent none."""
    mu = {"a": np.ones(2), "权重" * 5: np.ones((10, 20)), "e\u0301e": np.full(1, 1e12)}
    _, out, _ = run("inspect", saved(tmp_path / "x.safetensors", checkpoint_of(mu)))
    table = out[out.index("") + 1 :]
    shown = [line.replace("\u0301", "").replace("权重", "wide") for line in table]
    assert [line.index("float64") for line in shown[1:]] == [shown[0].index("dtype")] * 3
    assert [line.index("(") for line in shown[1:]] == [shown[0].index("shape")] * 3
    assert {len(line) for line in shown} == {len(shown[0])}


def test_arrays_of_many_blocks(run, tmp_path):
    ones = {"a": np.ones((101, 1001), np.float32)}
    files = [
        saved(tmp_path / f"{i}.safetensors", checkpoint_of(mu, ones, params={"a": mu["a"]}))
        for i, mu in enumerate((ones, with_entry(with_entry(ones, "a", 4), "a", 3, -1)))
    ]
    _, out, _ = run("inspect", files[1])
    assert rows(out)["a"]["norm of m"] == f"{np.sqrt(101 * 1001 - 2 + 16 + 9):.6g}"
    _, out, _ = run("diff", *files)
    assert re.split(r" {2,}", out[2]) == ["a", "3 in 2 of 101101", "3 in 2 of 101101"]

    bad = with_entry(with_entry(ones, "a", np.nan), "a", np.inf, -1)
    _, out, _ = run("inspect", saved(tmp_path / "bad.safetensors", checkpoint_of(bad, ones)))
    assert rows(out)["a"]["NOT FINITE"] == "2 in m"


def test_inspect_of_integers(run, tmp_path):
    mu = {"a": np.ones(1, np.float32)}
    params = {**mu, "seed": np.array([3 << 40, 4 << 40])}
    file = saved(tmp_path / "state.safetensors", checkpoint_of(mu, params=params))
    _, out, _ = run("inspect", "--json", file)
    (seed,) = json.loads("\n".join(out))["without_moments"]
    assert seed == {
        "name": "seed",
        "shape": [2],
        "dtype": "int64",
        "dtype_v": "int64",
        "norm_weight": float(5 << 40),
        "nonfinite": {"weight": 0},
    }


def test_inspect_of_no_variables(run, tmp_path):
    file = saved(tmp_path / "state.safetensors", checkpoint_of({}))
    code, out, _ = run("inspect", file)
    assert (code, out[-1]) == (0, "(none)")


def test_inspect_takes_little_more_memory_than_the_file(run, tmp_path):
    rng = np.random.default_rng(0)
    mu = {"a": rng.standard_normal((4096, 1024), dtype=np.float32)}
    file = saved(tmp_path / "state.safetensors", checkpoint_of(mu))
    del mu
    tracemalloc.start()
    try:
        run("inspect", file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.stat().st_size > 32 << 20
    assert 1 <= peak / file.stat().st_size < 1.5


@pytest.mark.parametrize("command", ["inspect", "convert", "diff"])
@pytest.mark.parametrize("file", ["keras3_model.keras", "tf11_model.h5", "keras3.weights.h5"])
def test_a_damaged_file_is_one_line_that_names_it(run, tmp_path, command, file):
    damaged = tmp_path / file
    damaged.write_bytes((CHECKPOINTS / file).read_bytes()[:20_000])
    other = {"inspect": [], "convert": [tmp_path / "new.safetensors"], "diff": [KERAS]}[command]
    code, out, err = run(command, damaged, *other)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"adamx: error: {damaged}: truncated or damaged ")
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_damaged_template_is_an_error_that_names_it(run, tmp_path):
    template, target = tmp_path / "template.keras", tmp_path / "new.keras"
    template.write_bytes(KERAS.read_bytes()[:20_000])
    code, out, err = run("convert", KERAS, target, "--template", template)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"adamx: error: {template}: truncated or damaged ")
    assert not target.exists()


def test_errors_of_the_operating_system_are_one_line(run, tmp_path):
    missing = tmp_path / "missing.keras"
    expected = (2, [], [f"adamx: error: {missing}: No such file or directory"])
    assert run("inspect", missing) == expected
    assert run("diff", KERAS, missing) == expected
    assert run("convert", KERAS, tmp_path / "new.h5", "--template", missing) == expected
    assert run("convert", KERAS, tmp_path / "new.safetensors", "--order", missing) == expected


@pytest.mark.parametrize(
    "argv",
    [[], ["inspect"], ["convert", "a"], ["diff", "a"], ["convert", "a", "b", "--set", "c=1"]],
)
def test_bad_arguments(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: adamx")


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"adamx {adamx.__version__}\n"


@pytest.fixture
def settings(tmp_path):
    """Write a configuration of Keras as JSON."""

    def written(**config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return path

    return written


def test_numbered_weights_need_a_configuration(run, settings):
    code, _, err = run("inspect", NUMBERED)
    assert code == 2
    assert err[-1] == "On the command line: --config FILE"

    config = settings(learning_rate=0.01, beta_1=0.25, loss_scale_factor=None)
    code, out, _ = run("inspect", NUMBERED, "--config", config)
    assert code == 0
    assert "b1             0.25" in out
    assert list(rows(out)) == NAMES


def test_a_configuration_may_not_tell_its_generation(run, settings):
    config = settings(learning_rate=0.01)
    code, _, err = run("inspect", NUMBERED, "--config", config)
    assert code == 2
    assert err[0].startswith(f"adamx: error: {config}: generation: expected one of tf1, ")
    assert err[-1] == "On the command line: --generation NAME"
    code, _, _ = run("inspect", NUMBERED, "--config", config, "--generation", "keras3")
    assert code == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"lr": -1}', "\xff"])
def test_a_malformed_configuration_is_named(run, tmp_path, text):
    config = tmp_path / "config.json"
    config.write_bytes(text.encode("latin-1"))
    code, _, err = run("inspect", NUMBERED, "--config", config)
    assert code == 2
    assert err[0].startswith(f"adamx: error: {config}: ")


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


def test_convert_and_back(run, tmp_path):
    ours, back = tmp_path / "state.safetensors", tmp_path / "back.keras"
    carried = "carried 30 steps, config, moments of 8 variables, 8 weights; not carried: nothing"
    assert run("convert", KERAS, ours) == (0, [f"{ours}: {carried}"], [])

    template = CHECKPOINTS / "keras3_schedule.keras"  # another run of the same network
    code, _, _ = run("diff", ours, template)
    assert code == 1
    assert run("convert", ours, back, "--template", template) == (0, [f"{back}: {carried}"], [])
    same = "A and B are the same optimizer state, bit for bit: 30 steps, moments of 8 variables, "
    for pair in ((KERAS, back), (back, ours), (CHECKPOINTS / "keras3_model.h5", back)):
        assert run("diff", *pair) == (0, [same + "8 weights"], [])


def test_convert_says_what_it_could_not_carry(run, tmp_path):
    pytest.importorskip("torch")
    argv = (CHECKPOINTS / "keras3_ema.keras", tmp_path / "new.pt", "--set", "convention=torch")
    _, out, _ = run("convert", *argv)
    averages = ", ".join(f"average/{name}" for name in NAMES[:4])
    assert out == [
        f"{argv[1]}: carried 30 steps, config, moments of 8 variables; not carried: 8 weights, "
        f"{averages} and 5 more; changed the place of epsilon from keras to torch"
    ]
    target = tmp_path / "new.weights.h5"
    _, out, _ = run("convert", KERAS, target, "--template", NUMBERED)
    assert out == [
        f"{target}: carried 30 steps, moments of 8 variables, 8 weights; not carried: config"
    ]


def test_convert_names_the_weights_that_it_could_not_carry(run, tmp_path):
    pytest.importorskip("torch")
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
    assert out == [
        f"{target}: carried 30 steps, config, moments of 8 variables, 12 weights; not carried: "
        "params/norm.num_batches_tracked; changed the place of epsilon from torch to keras"
    ]


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
    monkeypatch.setattr(adamx.cli.main, "load", lambda *_, **__: pytest.fail("it was read"))
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
    pytest.importorskip("torch")
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
    pytest.importorskip("torch")
    source, target = CHECKPOINTS / "keras3_amsgrad.keras", tmp_path / "new.pt"
    code, _, err = run("convert", source, target)
    assert code == 2
    assert "adamx convert --set convention=torch" in err[0]
    assert not target.exists()
    code, out, _ = run("convert", source, target, "--set", "convention=torch")
    assert code == 0
    assert out[-1].endswith("; changed the place of epsilon from keras to torch")
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
        ("b1=2", "--set b1: expected a finite number from 0 to below 1, found 2"),
        ("eps=small", "--set eps: expected a real number or a scalar array, found str 'small'"),
        ("convention=optax", "--set convention: AMSGrad's maxima in keras are not those in optax"),
        ("nesterov=True", '--set nesterov: expected convention "optax" beside it'),
    ],
)
def test_set_refuses(run, tmp_path, setting, told):
    source, target = CHECKPOINTS / "keras3_amsgrad.keras", tmp_path / "new.safetensors"
    code, _, err = run("convert", source, target, "--set", setting)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith(f"adamx: error: {told}")
    assert not target.exists()


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


def test_interrupted(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(adamx.cli.main, "load", interrupted)
    assert run("inspect", KERAS) == (130, [], [])


class Terminal(io.StringIO):
    def isatty(self):  # noqa: D102
        return True


def test_progress_is_for_who_waits_at_a_terminal(monkeypatch, tmp_path):
    def shown(target, error):
        monkeypatch.setattr(sys, "stderr", error)
        assert main(["convert", str(KERAS), str(tmp_path / target)]) == 0
        return error.getvalue()

    assert shown("small.safetensors", Terminal()) == ""
    monkeypatch.setattr(adamx.cli.output, "_LARGE", 0)
    assert shown("unseen.safetensors", io.StringIO()) == ""
    seen = shown("seen.safetensors", Terminal())
    assert "reading keras3_model.keras" in seen
    assert "writing seen.safetensors" in seen
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert shown("without_rich.safetensors", Terminal()) == ""


def test_as_a_module_for_a_reader_that_leaves():
    command = [sys.executable, "-m", "adamx", "inspect", str(KERAS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout.splitlines()[0]) == ("", f"file              {KERAS}")
    assert list(rows(done.stdout.splitlines())) == NAMES
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 141)
