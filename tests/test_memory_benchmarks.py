"""What `python -m benchmarks.memory` measures, on tiny sizes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("sklearn")  # whose digits one of the trainings has

from benchmarks import closed_loop, footprint, memory, open_loop
from benchmarks.forms import FORMS
from benchmarks.trainings import TRAININGS, digits_network, gru, transformer

PROMOTES = True  # Optax's parts do


def test_directions_in_float32_are_exact():
    names = ("float32", "bfloat16, to nearest")
    forms = {name: FORMS[name] for name in names}
    rows = {row.form: row for row in open_loop.measure(digits_network(), forms, 3)}
    assert rows["float32"].error < 1e-5
    assert 1e-4 < rows[names[1]].error < 0.05
    assert all(abs(row.size - 1) < 0.01 for row in rows.values())


def test_a_run_in_float32_is_that_of_optax():
    training, steps = digits_network(), 4
    params_key, draw_key, _ = jax.random.split(jax.random.key(1), 3)
    params, losses = training.init(params_key), []
    tx = optax.adam(closed_loop.schedule(steps))
    state = tx.init(params)
    for t in range(steps):
        batch = training.draw(jax.random.fold_in(draw_key, t))
        loss, grads = jax.value_and_grad(training.loss)(params, *batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
    found = closed_loop.train(training, FORMS["float32"], steps, [0, 1])
    expected = np.mean(losses), training.held_out_loss(params)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)
    assert found[0, 0] != found[1, 0]


def test_the_standard_error_of_a_mean():
    assert closed_loop.estimate(np.array([1.0, 2.0, 3.0, 4.0])) == (2.5, np.sqrt(5 / 12))


def test_what_is_held_out_is_never_drawn():
    digits = digits_network()
    images, labels = digits.held_out
    assert images.shape == (1, 297, 64)
    assert labels.shape == (1, 297)
    drawn, _ = jax.vmap(digits.draw)(jax.random.split(jax.random.key(0), 200))
    assert not np.any(np.all(drawn.reshape(-1, 1, 64) == images, axis=-1))


@pytest.mark.parametrize(
    ("training", "classes"),
    [(transformer(width=16, blocks=1), 128), (gru(width=16), 128), (digits_network(), 32)],
    ids=TRAININGS,
)
def test_losses_begin_near_those_of_a_guess(training, classes):
    params, of_guess = training.init(jax.random.key(0)), np.log(classes)
    loss = training.loss(params, *training.draw(jax.random.key(1)))
    assert of_guess - 0.2 < loss < of_guess + 1
    assert abs(training.held_out_loss(params) - loss) < 0.3


def test_closed_loop(monkeypatch, capsys):
    forms = ("float32", "8 bits", "flashoptim-jax", "float32, read in bfloat16")
    forms = (*forms, "8 bits + residual")
    monkeypatch.setattr(closed_loop, "FORMS", {name: FORMS[name] for name in forms})
    monkeypatch.setitem(sys.modules, "flashoptim_jax", None)
    argv = ["memory", "closed", "--steps", "2", "--seeds", "2", "--only", "digits"]
    monkeypatch.setattr(sys, "argv", argv)
    memory.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: 2 steps, 2 seeds; mean ± standard error"
    assert "  flashoptim-jax skipped: flashoptim_jax is not installed" in lines
    rows = {line[:37].strip(): line[37:].split() for line in lines[2:]}
    assert "minus float32, read in bfloat16" in rows
    float32, ours = rows["float32"], rows["8 bits"]
    for of_mean, of_difference in (0, 3), (6, 9):  # mean ± error, difference ± error; twice
        difference = float(ours[of_mean]) - float(float32[of_mean // 2])
        assert float(ours[of_difference]) == pytest.approx(difference, abs=2e-5)
    assert lines[-1].startswith("  digits ")


def test_bytes_between_steps():
    params = {"w": jax.ShapeDtypeStruct((64, 1024), jnp.float32)}
    sizes = {name: footprint.at_rest(FORMS[name], params) for name in FORMS if "jax" not in name}
    # A count and keys of 4 to 8 bytes each are in it.
    assert sizes == pytest.approx(
        {
            "float32": 12,
            "8 bits": 6.1875,
            "bfloat16, to nearest": 8,
            "bfloat16, v at random": 8,
            "float32, read in bfloat16": 12,
            "8 bits + residual": 5.1875,
            "8 bits, weights at random": 4.1875,
        },
        abs=1e-3,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", footprint.OPTIMIZERS)
def test_the_peak_of_a_process(name):
    first, second = footprint.measure(name, 16)
    assert first.parameters == second.parameters
    assert first.xla == second.xla > 8 * first.parameters
    assert first.process > first.xla
