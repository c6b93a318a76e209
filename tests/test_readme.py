"""The README says what is true."""

import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import adamx

PROMOTES = True  # the examples use Optax's schedules

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(BLOCKS) == 7
    assert "slope" in capsys.readouterr().out
    later = [adamx.checkpoint.load(f"later.{suffix}") for suffix in ("safetensors", "keras")]
    assert [checkpoint.count for checkpoint in later] == [600, 600]
    np.testing.assert_allclose(namespace["params"]["slope"], 3, atol=1e-3)
    np.testing.assert_allclose(namespace["params"]["offset"], 2, atol=1e-3)
    assert len(jax.tree.leaves(namespace["state"])) == 6
    assert len(namespace["weights"]) == 5
    assert namespace["restored"].iterations == 300
    # Steps of 1e-3, for which there is no bfloat16 beside 1: the mean is float32's to 3 errors.
    assert namespace["low"].dtype == "bfloat16"
    wide, tx = jnp.ones(()), adamx.adamw(1e-3)
    state = tx.init(wide)
    for _ in range(100):
        updates, state = tx.update(4 * (wide * 2 - 1), state, wide)
        wide += updates
    low = np.asarray(namespace["low"], np.float64)
    assert abs(low.mean() - wide) < 3 * low.std() / np.sqrt(low.size)
    kernel = namespace["layer_state"][0].mu["kernel"]
    assert kernel.addressable_data(0).shape == (64 // jax.device_count(), 32)


def test_exactly_two_commands():
    commands = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert commands == [
        'pip install -e ".[examples]" && python examples/train_digits.py\n',
        'pip install -e ".[test]" && pytest -n 2\n',
    ]


def test_names_exist():
    for name in set(re.findall(r"`adamx\.(\w+)", README)):
        assert hasattr(adamx, name)
