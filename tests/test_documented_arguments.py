"""Every line of the tables in docs/reference/configurations.md."""

import dataclasses
import re
from pathlib import Path

import pytest

from adamx import AdamConfig

DOCS = Path(__file__).parents[1] / "docs" / "reference" / "configurations.md"
GENERATIONS = ("tf1", "tf_keras_legacy", "tf_keras", "keras3")

SAMPLES = {
    "lr": 0.1,
    "learning_rate": 0.1,
    "decay": 0.1,
    "beta_1": 0.8,
    "beta_2": 0.9,
    "epsilon": 0.1,
    "amsgrad": True,
    "weight_decay": 0.1,
    "decoupled_weight_decay": True,
    "clipnorm": 2.0,
    "global_clipnorm": 2.0,
    "clipvalue": 2.0,
    "gradient_accumulation_steps": 4,
    "loss_scale_factor": 2.0,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 5,
    "name": "other",
    "betas": (0.8, 0.9),
    "eps": 0.1,
    "maximize": True,
    "initial_lr": 0.1,
    "params": [0, 1],
    "param_names": ["a", "b"],
}


def table():
    """(argument, family, cell) for every cell of the documented tables."""
    columns = GENERATIONS
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        if line.startswith("| argument of torch"):
            columns = ("torch",)
        elif line.startswith("| `"):
            argument, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            yield from ((argument.strip("`"), *pair) for pair in zip(columns, cells, strict=True))


@pytest.mark.parametrize(("argument", "family", "cell"), list(table()))
def test_documented_table(argument, family, cell):
    def read(config):
        if family == "torch":
            return AdamConfig.from_torch(config)
        return AdamConfig.from_keras(config, family)

    base = {"decoupled_weight_decay": False} if family == "torch" else {}
    changed = base | {argument: SAMPLES.get(argument, True)}
    if cell in ("error", "-"):
        with pytest.raises(ValueError, match=argument):
            read(changed)
        return
    before, after = map(dataclasses.asdict, (read(base), read(changed)))
    fields = [name for name in after if after[name] != before[name]]
    assert fields == ([] if cell == "no effect" else re.findall(r"`(\w+)`", cell))


CURRENT = "name learning_rate weight_decay clipnorm global_clipnorm clipvalue use_ema ema_momentum "
CURRENT += "ema_overwrite_frequency beta_1 beta_2 epsilon amsgrad "
CONSTRUCTORS = {
    "tf1": "lr beta_1 beta_2 epsilon decay clipnorm clipvalue",
    "tf_keras_legacy": "name lr learning_rate decay beta_1 beta_2 epsilon amsgrad clipnorm "
    "global_clipnorm clipvalue is_legacy_optimizer",
    "tf_keras": CURRENT + "jit_compile is_legacy_optimizer adaptive_epsilon",
    "keras3": CURRENT + "loss_scale_factor gradient_accumulation_steps",
}


@pytest.mark.parametrize("generation", CONSTRUCTORS)
def test_the_table_is_complete(generation):
    """The arguments of the constructors, and what else their configurations hold."""
    documented = {a for a, family, cell in table() if family == generation and cell != "-"}
    assert documented == set(CONSTRUCTORS[generation].split())
