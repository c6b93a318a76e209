"""`adamx inspect`, as its user meets it."""

import dataclasses
import json
import re
import tracemalloc

import numpy as np
import pytest

from adamx import AdamConfig
from tests.checkpoint.checkpoint_runs import CHECKPOINTS
from tests.cli.command_runs import (
    BFLOAT16,
    KERAS,
    NAMES,
    NAMING,
    TORCH_NAMES,
    checkpoint_of,
    recording,
    rows,
    saved,
    with_entry,
)


# The places of m and v in the recorded lists of the optimizer's variables.
def interleaved(arrays):
    return [(arrays[f"opt{2 + 2 * i}"], arrays[f"opt{3 + 2 * i}"]) for i in range(8)]


def one_after_the_other(arrays):
    return [(arrays[f"opt{1 + i}"], arrays[f"opt{9 + i}"]) for i in range(8)]


def with_steps(arrays):
    return [(arrays[f"opt{3 * i + 1}"], arrays[f"opt{3 * i + 2}"]) for i in range(8)]


RECORDED = [
    pytest.param("keras3_model.keras", "keras3_model", NAMES, interleaved, id="keras3"),
    pytest.param("tf11_model.h5", "tf11", sorted(NAMES), one_after_the_other, id="tf11"),
    pytest.param("torch_names.pt", "torch_names", TORCH_NAMES, with_steps, id="torch"),
]


def largest_step(m, v, count=30, b1=0.9, b2=0.999):
    """Of a run of 30 steps."""
    return np.max(np.abs(m / (1 - b1**count)) / np.sqrt(v / (1 - b2**count)))


@pytest.mark.parametrize(("file", "resume", "names", "moments"), RECORDED)
def test_inspect_prints_the_norms_of_the_recorded_moments(run, file, resume, names, moments):
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
            "largest step": f"{largest_step(m, v):.3g}",
        }


@pytest.mark.parametrize(("file", "resume", "names", "moments"), RECORDED)
def test_inspect_json_has_the_norms_in_double_precision(run, file, resume, names, moments):
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
        "names": NAMING,
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


def test_inspect_shows_entries_that_epsilon_holds_or_that_never_moved(run, tmp_path):
    """After one step: sqrt(v^) is |g|, and the step is 1 where epsilon is small beside it."""
    g = np.array([0.0, 0.0, 1e-8, 2e-7, -1.0])
    still = np.zeros(2)
    file = saved(
        tmp_path / "state.safetensors",
        checkpoint_of({"a": 0.1 * g, "b": still}, {"a": 0.001 * g * g, "b": still}, count=1),
    )
    _, out, _ = run("inspect", file)
    a, b = rows(out)["a"], rows(out)["b"]
    assert (a["largest step"], a["below 10 eps"], a["zero"]) == ("1", "60 %", "40 %")
    assert (b["largest step"], b["below 10 eps"], b["zero"]) == ("0", "100 %", "100 %")
    _, out, _ = run("inspect", "--json", file)
    a, _ = json.loads("\n".join(out))["variables"]
    assert (a["below_eps"], a["zero"]) == (0.6, 0.4)
    assert a["largest_step"] == pytest.approx(1)


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
