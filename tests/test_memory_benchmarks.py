"""What `python -m benchmarks.memory` measures, on tiny sizes."""

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")  # whose digits one of the trainings has

from benchmarks import open_loop
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
