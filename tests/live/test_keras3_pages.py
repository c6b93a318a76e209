"""The parts of a documentation's page that are Keras's, run with Keras 3.

Its backend is JAX, which the environment must say before Keras is imported: `KERAS_BACKEND=jax`.
"""

import numpy as np
import pytest

from adamx.checkpoint import load
from tests.live.pages import run_page

pytest.importorskip("keras")
pytest.importorskip("sklearn")  # the page's digits
pytestmark = [
    pytest.mark.live,
    # Keras's variables know NumPy 1 alone.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PROMOTES = True


def test_keras(monkeypatch, tmp_path):
    """The program saves such a file as the page's; what JAX made of it continues in Keras."""
    names = {}
    run_page("guides/keras.md", names, names, monkeypatch, tmp_path)
    written, golden = load("digits_keras.keras"), names["checkpoint"]
    assert (written.naming, written.config) == (golden.naming, golden.config)
    assert written.count == golden.count == 600
    model, images, digits = (names[name] for name in ("model", "images", "digits"))
    assert int(model.optimizer.iterations) == names["later"].count + -(-len(digits) // 128)
    found = np.asarray(model.predict_on_batch(images)).argmax(-1)
    assert (found == digits).mean() > 0.97
