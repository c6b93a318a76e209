"""Hyperparameters that are given for a file that has its own."""

import re
import warnings

import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load
from tests.checkpoint.test_golden import CHECKPOINTS

KERAS = CHECKPOINTS / "keras3_model.keras"
AMSGRAD = CHECKPOINTS / "keras3_amsgrad.keras"
UNNAMED = CHECKPOINTS / "keras3.weights.h5"


def test_fields_that_are_not_given_are_kept():
    before, after = load(KERAS), load(KERAS, config={"learning_rate": 3e-4})
    assert after.config.learning_rate == 3e-4
    assert before.config.learning_rate != 3e-4
    fields = before.config.plain_fields() | {"learning_rate": 3e-4}
    assert after.config.plain_fields() == fields


def test_a_configuration_that_contradicts_the_file_warns_with_both_values():
    own = load(KERAS).config
    given = AdamConfig(learning_rate=own.learning_rate, b2=0.9, eps=own.eps)
    message = "b2 0.999, given 0.9; clip_global_norm 1.0, given None; convention 'keras', given "
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        assert load(KERAS, config=given).config == given
    assert caught[0].filename == __file__


def test_the_files_own_configuration_does_not_warn():
    own = load(KERAS).config
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(KERAS, config=own).config == own


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": 1.0}, "config: expected one of 'learning_rate'"),
        ({"b1": 1.5}, f"{KERAS}: config: b1: expected"),
        ({"amsgrad": True}, f"{KERAS}: amsgrad: the file has False, config= has True"),
        ("adam", "config: expected an AdamConfig, or a mapping of some of its fields, found str"),
    ],
)
def test_bad_fields(config, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        load(KERAS, config=config)


def test_maxima_of_another_kind():
    with pytest.raises(CheckpointError, match="only Optax corrects the bias first"):
        load(AMSGRAD, config={"convention": "optax"})
    with pytest.raises(CheckpointError, match="amsgrad: the file has True, config= has False"):
        load(AMSGRAD, config=AdamConfig(convention="keras"))


def test_a_file_without_hyperparameters_needs_all_of_them():
    with pytest.raises(CheckpointError, match="config: expected an AdamConfig, since"):
        load(UNNAMED, config={"learning_rate": 0.1})


@pytest.mark.parametrize("argument", ["optimizer", "weights"])
def test_a_file_of_one_optimizer_takes_no_key(argument):
    with pytest.raises(CheckpointError, match=f"{argument}: expected none, since .* holds one"):
        load(KERAS, **{argument: "model"})
