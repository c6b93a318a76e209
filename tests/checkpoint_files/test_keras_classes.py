"""Files of Keras whose optimizer is another one: refused by name, whatever `config` is given."""

import json

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, CLIPPED, PLAIN
from tests.checkpoint_files.keras_cases import WILD, change_archive, change_h5

# What a serialised optimizer has instead, and what the error calls it; None if it is Keras's Adam.
ARCHIVES = [
    ("keras3_model.keras", {"class_name": "Lamb"}, "Lamb"),
    ("keras3_model.keras", {"class_name": "Nadam"}, "Nadam"),
    ("keras3_model.keras", {"class_name": "Adamax"}, "Adamax"),
    ("keras3_model.keras", {"class_name": "Muon"}, "Muon"),
    ("keras3_model.keras", {"class_name": "ScheduleFreeAdamW"}, "ScheduleFreeAdamW"),
    ("keras3_model.keras", {"module": "mine", "registered_name": "Adam"}, "Adam, a class of"),
    ("keras3_model.keras", {"module": None, "registered_name": "Custom>Adam"}, "Custom>Adam, a"),
    ("keras3_model.keras", {"class_name": "Addons>AdamW"}, "Addons>AdamW, a class of"),
    ("keras3_model.keras", {"module": "keras.src.optimizers.adam"}, None),
    ("tfkeras_model.keras", {"class_name": "Nadam"}, "Nadam"),
    ("tfkeras_model.keras", {"module": None, "registered_name": "Custom>Adam"}, "Custom>Adam, a"),
    ("tfkeras_model.keras", {"registered_name": "Custom>Adam"}, None),
]
MODELS = [
    ("keras3_model.h5", "Lamb", "Lamb"),
    ("keras3_model.h5", "Custom>Adam", "Custom>Adam, a class of"),
    ("keras3_model.h5", "Adam", None),
    ("tfkeras_model.h5", "Custom>Nadam", "Custom>Nadam"),
    ("tfkeras_model.h5", "Addons>AdamW", "Addons>AdamW, a class of"),
    ("tfkeras_model.h5", "Custom>Adam", None),
    ("tfkeras_legacy_model.h5", "Adamax", "Adamax"),
    ("tfkeras_legacy_model.h5", "Adam", None),
    ("tf11_model.h5", "Nadam", "Nadam"),
]


def own_config(file):
    return load(CHECKPOINTS / file).config


def check(path, config, name, where="class_name"):
    """Refused with that name, with and without a configuration; or read."""
    for given in (None, config):
        if name is None:
            load(path, config=given)
            continue
        with pytest.raises(CheckpointError) as caught:
            load(path, config=given)
        assert caught.value.where == f"{path}: {where}"
        assert caught.value.found.startswith(name)


@pytest.mark.parametrize(("file", "change", "name"), ARCHIVES)
def test_archives(file, change, name, tmp_path):
    def edit(described):
        described["compile_config"]["optimizer"].update(change)

    path = change_archive(CHECKPOINTS / file, tmp_path / file, edit)
    check(path, own_config(file), name)


@pytest.mark.parametrize(("file", "class_name", "name"), MODELS)
def test_whole_models(file, class_name, name, tmp_path):
    def edit(opened):
        training = json.loads(opened.attrs["training_config"])
        training["optimizer_config"]["class_name"] = class_name
        opened.attrs["training_config"] = np.bytes_(json.dumps(training))

    path = change_h5(CHECKPOINTS / file, tmp_path / file, edit)
    check(path, own_config(file), name)


@pytest.mark.parametrize("change", [{"class_name": "Lamb"}, {"class_name": "LossScaleOptimizer"}])
def test_within_a_loss_scale(change, tmp_path):
    def edit(described):
        described["compile_config"]["optimizer"]["config"]["inner_optimizer"].update(change)

    path = change_archive(WILD / "keras_loss_scale" / "m.keras", tmp_path / "m.keras", edit)
    config = AdamConfig.from_keras({"learning_rate": 1e-3}, "keras3")
    check(path, config, change["class_name"], "inner_optimizer")


def rename(name):
    def edit(file):
        file["optimizer/vars"].attrs["name"] = name

    return edit


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("lamb", "Lamb"),
        ("nadam_3", "Nadam"),
        ("adamax_12", "Adamax"),
        ("schedule_free_adam_w", "ScheduleFreeAdamW"),
        ("rm_sprop_1", "RMSprop"),
    ],
)
def test_weights_alone_of_another_name(name, class_name, tmp_path):
    path = change_h5(CHECKPOINTS / "keras3.weights.h5", tmp_path / "a.weights.h5", rename(name))
    with pytest.raises(CheckpointError, match=f"called {name}, as Keras calls its {class_name}"):
        load(path, config=CLIPPED)


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        (rename("adam"), None),
        (rename("adam_w_2"), None),
        (rename("my_optimizer"), "only its name, 'my_optimizer'"),
        (lambda file: file["optimizer/vars"].attrs.pop("name"), "nothing in the file says that"),
    ],
)
def test_weights_alone_of_no_telling_name(edit, note, tmp_path):
    path = change_h5(CHECKPOINTS / "keras3.weights.h5", tmp_path / "a.weights.h5", edit)
    notes = load(path, config=CLIPPED).notes
    assert len(notes) == (note is not None)
    assert not note or note in notes[0]


def test_weights_alone_with_negative_squares(tmp_path):
    """Ftrl has as many variables as Adam; of those that would be squares, some are below 0."""

    def edit(file):
        file["optimizer/vars/5"][0] = -1e-9
        del file["optimizer/vars"].attrs["name"]

    path = change_h5(CHECKPOINTS / "keras3_frozen.weights.h5", tmp_path / "a.weights.h5", edit)
    with pytest.raises(CheckpointError, match="second moment of 1 with no number below 0"):
        load(path, config=PLAIN)
