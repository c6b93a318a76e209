"""How the names of Keras's variables are known, and of what framework files without one are.

The recorded model has the layers z, b (kernels of one shape) and a (of another). Keras numbers the
variables of its optimizer in the order of those that were trained when it was built.
"""

import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, PLAIN
from tests.checkpoint_files.keras_cases import WILD, change_archive, change_h5, read_truth, renumber

LAYERS = "zba"
CONFIG = AdamConfig.from_keras({"learning_rate": 0.0010000000474974513}, "keras3")


def named(layers):
    return tuple(f"{layer}/{role}" for layer in layers for role in ("kernel", "bias"))


@pytest.fixture
def model(tmp_path):
    """A file whose optimizer was built with some layers, and saved when others were trainable."""

    def make(built, flagged):
        def edit_config(described):
            optimizer = described["compile_config"]["optimizer"]
            described["compile_config"]["optimizer"] = optimizer["config"]["inner_optimizer"]
            for layer in described["config"]["layers"]:
                settings = layer["config"]
                if settings["name"] in LAYERS:
                    settings["trainable"] = settings["name"] in flagged

        def edit_weights(file):
            first = 4 + 2  # of the loss scale; iterations and learning rate
            del file["optimizer/inner_optimizer"]
            kept = [first + 4 * LAYERS.index(layer) + i for layer in built for i in range(4)]
            renumber(file["optimizer/vars"], [4, 5, *kept])

        source = WILD / "keras_loss_scale" / "m.keras"
        return change_archive(source, tmp_path / "m.keras", edit_config, edit_weights)

    return make


@pytest.mark.parametrize(
    ("built", "flagged", "inferred", "noted"),
    [
        ("zba", "zba", "zb", False),
        ("ba", "ba", "b", False),
        ("za", "za", "z", False),
        ("zba", "ba", "zb", True),  # frozen after the optimizer was built: all of the weights
        ("zba", "", "zb", True),
        ("zb", "zba", "zb", True),  # thawed: only two kernels have the shape
        ("a", "zba", "", True),  # only one has
        ("a", "zb", "", True),
    ],
)
def test_names_that_the_file_settles(built, flagged, inferred, noted, model):
    checkpoint = load(model(built, flagged))
    assert checkpoint.names == named(built)
    truth = read_truth("keras_loss_scale")
    for name in checkpoint.names:
        assert checkpoint.mu[name].tobytes() == truth["mu"][name].tobytes()
        assert checkpoint.naming[name] == ("inferred" if name[0] in inferred else "file")
    assert len(checkpoint.notes) == noted
    assert not noted or f"has variables of {', '.join(named(built))}; by the" in checkpoint.notes[0]


@pytest.mark.parametrize(("built", "flagged"), [("b", "zba"), ("ba", "zb"), ("za", "zba")])
@pytest.mark.parametrize("config", [None, CONFIG])
def test_flags_that_contradict_the_shapes(built, flagged, config, model):
    """The moments of z would come under b's name, or the reverse."""
    with pytest.raises(CheckpointError) as caught:
        load(model(built, flagged), config=config)
    for layer in flagged:
        assert f"{layer}/kernel (8, " in caught.value.expected
    assert "(8, 8), (8,)" in caught.value.found
    assert "compile=False" in caught.value.remedy


def test_flags_that_no_file_contradicts(model):
    """What was trained at first cannot be told: b was, and z is said to be."""
    checkpoint = load(model("ba", "za"))
    assert checkpoint.naming["z/kernel"] == checkpoint.naming["z/bias"] == "inferred"


def test_tensorflow_1_sorts_by_name():
    assert set(load(CHECKPOINTS / "tf11_model.h5").naming.values()) == {"inferred"}


@pytest.mark.parametrize("file", ["tfkeras_model.h5", "tfkeras_legacy_model.h5", "keras3_model.h5"])
def test_names_in_the_file(file):
    assert set(load(CHECKPOINTS / file).naming.values()) == {"file"}


def forget_names(file):
    for node in (*file["layers"].values(), file["optimizer"]):
        del node["vars"].attrs["name"]


def forget_rate(file):
    numbers = range(len(file["optimizer/vars"]))
    renumber(file["optimizer/vars"], [index for index in numbers if index != 1])


SCHEDULED = AdamConfig.from_keras(
    {
        "learning_rate": {
            "class_name": "ExponentialDecay",
            "config": {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5},
        }
    },
    "keras3",
)


@pytest.mark.parametrize(
    ("edits", "config", "framework", "notes"),
    [
        ((), PLAIN, "keras3", []),
        ((forget_names,), PLAIN, "keras3", ["nothing in the file says that its optimizer is an"]),
        ((forget_rate,), SCHEDULED, "keras3", []),
        ((forget_rate,), PLAIN, "keras3", ["the file was saved with a schedule"]),
        ((forget_rate, forget_names), PLAIN, "tf_keras", ["nothing in", "does not say whether"]),
        ((forget_rate, forget_names), SCHEDULED, "tf_keras", ["nothing", "does not say whether"]),
    ],
)
def test_whose_weights_alone(edits, config, framework, notes, tmp_path):
    """Keras 3 writes names, and a learning rate that is a number; tf_keras neither."""

    def edit(file):
        for each in edits:
            each(file)

    source = CHECKPOINTS / "keras3_frozen.weights.h5"
    checkpoint = load(change_h5(source, tmp_path / "a.weights.h5", edit), config=config)
    assert checkpoint.framework == framework
    assert len(checkpoint.notes) == len(notes)
    for found, expected in zip(checkpoint.notes, notes, strict=True):
        assert expected in found
