"""States that no run of Adam gives, and states that look odd and are sound."""

import contextlib
import dataclasses
import re
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import Checkpoint
from adamx.checkpoint.health import bound_ratio

SHAPE = (6, 6)


def run(config, gradients):
    """The checkpoint of a run on these gradients, from JAX."""
    params = {"w": jnp.zeros_like(gradients[0])}
    tx = config.transformation()
    state = tx.init(params)
    for g in gradients:
        _, state = tx.update({"w": g}, state, params)
    return Checkpoint.from_state(params, state, config, transformation=tx)


def make_gradients(steps, kind="normal"):
    random = np.random.default_rng(0)
    gradients = random.normal(size=(steps, *SHAPE)).astype("f4")
    if kind == "sparse":  # most entries move at few steps
        gradients *= random.uniform(size=gradients.shape) < 0.05
    elif kind == "growing":  # v lags behind as far as it can
        gradients = np.abs(gradients) * (2.0 ** np.arange(steps, dtype="f4"))[:, None, None]
    elif kind == "tiny":
        gradients *= 1e-22
    return [jnp.asarray(g) for g in gradients]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["normal", "sparse", "growing", "tiny"])
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.95, 0.9)])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_sound_states_have_no_problems(kind, b1, b2, steps):
    config = AdamConfig(b1=b1, b2=b2)
    assert run(config, make_gradients(steps, kind)).problems() == []


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.9), (0.9, 0.81), (0.95, 0.9)])
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_the_bound_is_reached(b1, b2, count):
    """By the gradients for which Cauchy and Schwarz are equal: (b1 / b2)^k, k steps ago."""
    k = np.arange(count, dtype=np.float64)
    g = (b1 / b2) ** k
    m, v = (1 - b1) * np.sum(b1**k * g), (1 - b2) * np.sum(b2**k * g * g)
    np.testing.assert_allclose(bound_ratio(AdamConfig(b1=b1, b2=b2), count), m / np.sqrt(v))


def test_the_bound_of_the_defaults():
    expected = (1 - 0.9) / np.sqrt((1 - 0.999) * (1 - 0.81 / 0.999))
    np.testing.assert_allclose(bound_ratio(AdamConfig(), np.inf), expected)


def damage(field, change, count=None):
    """A sound state with one damage: the finding, as a text, if there is one."""
    sound = run(AdamConfig(), make_gradients(30))
    arrays = {name: np.array(array) for name, array in getattr(sound, field).items()}
    change(arrays["w"])
    checkpoint = dataclasses.replace(sound, **{field: arrays})
    if count is not None:
        checkpoint = dataclasses.replace(checkpoint, count=count)
    return checkpoint


def put(value, *index):
    def change(array):
        array[index or slice(None)] = value

    return change


def scale(factor):
    def change(array):
        array *= factor

    return change


DAMAGES = {
    "nan": (damage("mu", put(np.nan, 1, 5)), r"mu/w: 1 of 36 entries, at [1, 5], not finite"),
    "inf": (damage("nu", put(np.inf, 4, 2)), r"nu/w: 1 of 36 entries, at [4, 2], not finite"),
    "below 0": (damage("nu", put(-1e-3, 0, 4)), r"nu/w: 1 of 36 entries, at [0, 4], below 0"),
    "all 0": (damage("nu", put(0)), r"nu/w: all 0, though mu is not"),
    "huge": (damage("nu", put(1e30, 2, 3)), r"nu/w: 1 of 36 entries, at [2, 3], far out: sqrt(v)"),
    "large m": (damage("mu", scale(1e4)), r"mu/w: 36 of 36 entries, the first at [0, 0], above"),
    "count 0": (damage("mu", put(1.0), 0), r"mu/w: not 0, though count is 0"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_with_the_name_and_the_number(name):
    checkpoint, finding = DAMAGES[name]
    [problem] = checkpoint.problems()
    assert str(problem).startswith(finding)
    is_refused = "below 0" in finding
    refusal = pytest.raises(ValueError, match=r"at least 0, found -0\.001")
    with (
        pytest.warns(UserWarning, match=re.escape(finding)) as caught,
        refusal if is_refused else contextlib.nullcontext(),
    ):
        checkpoint.restore({"w": jnp.zeros(SHAPE)})
    assert caught[0].filename == __file__


def test_a_count_that_is_too_small():
    growing = run(AdamConfig(), make_gradients(30, "growing"))
    [problem] = dataclasses.replace(growing, count=1).problems()
    assert "its betas allow 3.16 after 1 step and 7.27 later: is the count" in str(problem)


def test_a_count_that_is_too_large():
    fresh = run(AdamConfig(), make_gradients(1))
    [problem] = dataclasses.replace(fresh, count=1000).problems()
    assert "are as after 1 step, not 1000" in str(problem)


def test_moments_that_stay_zero():
    still = run(AdamConfig(), [jnp.zeros(SHAPE)] * 11)
    [problem] = still.problems()
    assert str(problem) == "mu/w: m and v of this and all other variables are 0 after 11 steps"
    assert run(AdamConfig(), [jnp.zeros(SHAPE)] * 3).problems() == []


def test_some_variables_may_have_no_gradients():
    """Such as what is frozen by jax.lax.stop_gradient, or is not used; or all, at first."""
    params = {"used": jnp.zeros(SHAPE), "unused": jnp.zeros(SHAPE)}
    tx = AdamConfig().transformation()
    state = tx.init(params)
    for g in make_gradients(20):
        _, state = tx.update({"used": g, "unused": jnp.zeros(SHAPE)}, state, params)
    assert Checkpoint.from_state(params, state, AdamConfig(), transformation=tx).problems() == []
    late = [jnp.zeros(SHAPE), *make_gradients(1)]
    assert run(AdamConfig(), late).problems() == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("dtype", "found"), [("bfloat16", "float32"), ("float16", "float16")])
@pytest.mark.parametrize("steps", [1, 2, 3, 30, 300])
def test_narrow_moments_of_a_run_in_jax(dtype, found, steps):
    """bfloat16 comes as float32, and v has lagged behind all the same."""
    gradients = [g.astype(dtype) for g in make_gradients(steps)]
    checkpoint = run(AdamConfig(), gradients)
    assert checkpoint.mu["w"].dtype == found
    assert checkpoint.problems() == []
    [problem] = dataclasses.replace(checkpoint, mu={"w": 100 * checkpoint.mu["w"]}).problems()
    assert "above what v allows" in str(problem)


def test_little_memory_beside_the_moments():
    m = np.full((1024, 1024), 0.01, np.float32)
    sound = dataclasses.replace(
        run(AdamConfig(), make_gradients(1)), count=30, params={}, mu={"w": m}, nu={"w": m}
    )
    tracemalloc.start()
    try:
        assert sound.problems() == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * m.nbytes  # 0.27 measured
