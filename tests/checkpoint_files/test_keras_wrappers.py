"""Adam within a LossScaleOptimizer, and with accumulated gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load, save
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, assert_equal
from tests.checkpoint_files.keras_cases import (
    WILD,
    change_archive,
    change_h5,
    read_truth,
    renumber,
)

SCALED, SUMMED = "keras_loss_scale", "keras_accumulation"
ENTRIES = [(SCALED, "m.keras"), (SCALED, "m.h5"), (SUMMED, "m.keras")]
NOTES = {SCALED: "LossScaleOptimizer: the loss scale, 1024.0", SUMMED: "optax.MultiSteps(..., 2)"}
# Of the weights, after five steps: measured, 6e-8.
NEAR = 1.2e-7


@pytest.fixture(params=ENTRIES, ids="/".join)
def recorded(request):
    case, entry = request.param
    return case, load(WILD / case / entry), read_truth(case)


def by_layer(arrays):
    """Without the model's name, which .h5 has before the layer's."""
    return {"/".join(name.split("/")[-2:]): array for name, array in arrays.items()}


def test_arrays_are_the_recorded_ones(recorded):
    _, checkpoint, truth = recorded
    for field, own in (("mu", "mu"), ("nu", "nu"), ("params", "param")):
        found = by_layer(getattr(checkpoint, field))
        assert found.keys() == truth[own].keys()
        for name, array in found.items():
            assert array.dtype == truth[own][name].dtype
            np.testing.assert_array_equal(array, truth[own][name])
    assert {float(checkpoint.count)} == {float(step) for step in truth["step"].values()}


def test_settings_and_notes(recorded):
    case, checkpoint, _ = recorded
    expected = {"learning_rate": 0.0010000000474974513}
    assert checkpoint.config == AdamConfig.from_keras(expected, "keras3")
    assert len(checkpoint.notes) == 1
    assert NOTES[case] in checkpoint.notes[0]
    assert not checkpoint.extra


def test_continues_as_keras_did(recorded):
    _, checkpoint, truth = recorded
    weights = {name: jnp.asarray(array) for name, array in truth["param"].items()}
    transformation, state = checkpoint.restore(weights)
    for step in range(5):
        updates, state = transformation.update(truth[f"grad{step}"], state, weights)
        weights = optax.apply_updates(weights, updates)
    moved = max(abs(weights[n] - a).max() for n, a in truth["param"].items())
    assert moved > 1e-3
    for name, array in truth["final"].items():
        np.testing.assert_allclose(weights[name], array, rtol=0, atol=NEAR)


@pytest.mark.slow
def test_accumulates_as_the_note_says():
    checkpoint, truth = load(WILD / SUMMED / "m.keras"), read_truth(SUMMED)
    weights = {name: jnp.asarray(array) for name, array in truth["param"].items()}
    transformation, inner = checkpoint.restore(weights)
    accumulating = optax.MultiSteps(transformation, 2)
    state = accumulating.init(weights)._replace(inner_opt_state=inner)
    for step in range(5):
        for _ in range(2):
            with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by a count
                updates, state = accumulating.update(truth[f"grad{step}"], state, weights)
            weights = optax.apply_updates(weights, updates)
    for name, array in truth["final"].items():
        np.testing.assert_allclose(weights[name], array, rtol=0, atol=NEAR)


def test_names_rest_on_the_order(recorded):
    """Two layers have kernels of one shape, the third another: .keras numbers the variables."""
    _, checkpoint, _ = recorded
    naming = by_layer(checkpoint.naming)
    if next(iter(checkpoint.naming)).startswith("sequential/"):
        assert set(naming.values()) == {"file"}
    else:
        expected = {f"{layer}/{role}": "inferred" for layer in "zb" for role in ("kernel", "bias")}
        assert naming == expected | {"a/kernel": "file", "a/bias": "file"}


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_written_into_a_copy(case, entry, tmp_path):
    """The wrapper's own variables stay, and both copies of the Adam's are replaced."""
    source, target = WILD / case / entry, tmp_path / entry
    checkpoint = load(source)
    assert save(target, checkpoint, template=source) == ()
    assert_equal(load(target), checkpoint)
    assert load(target).notes == checkpoint.notes


def test_a_checkpoint_of_another_step_into_a_template_that_accumulates(tmp_path):
    scaled = load(WILD / SCALED / "m.keras")
    save(tmp_path / "a.keras", scaled, template=WILD / SUMMED / "m.keras")
    assert_equal(load(tmp_path / "a.keras"), scaled)


def test_a_schedule_into_a_template_that_accumulates(tmp_path):
    """Keras would call it with the count of gradients."""
    scheduled = load(CHECKPOINTS / "keras3_schedule.keras")
    constant = load(CHECKPOINTS / "keras3_model.keras")

    def accumulate(described):
        settings = described["compile_config"]["optimizer"]["config"]
        settings["gradient_accumulation_steps"] = 2

    def add_sums(file):
        slots = file["optimizer/vars"]
        sums = [np.zeros_like(slots[str(2 + 2 * index)]) for index in range(8)]
        arrays = [slots[str(index)][()] for index in range(len(slots))]
        for index, array in enumerate([*arrays[:2], *sums, *arrays[2:]]):
            if str(index) in slots:
                del slots[str(index)]
            slots[str(index)] = array

    source = CHECKPOINTS / "keras3_model.keras"
    template = change_archive(source, tmp_path / "t.keras", accumulate, add_sums)
    save(tmp_path / "a.keras", constant, template=template)
    assert_equal(load(tmp_path / "a.keras"), constant)
    with pytest.raises(CheckpointError, match="would call the checkpoint's schedule") as caught:
        save(tmp_path / "b.keras", scheduled, template=template)
    assert caught.value.argument == "template"


def set_array(path, value):
    def edit(file):
        file[path][...] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (set_array("optimizer/vars/0", 9), "an accumulation: 9 iterations. Train"),
        (set_array("optimizer/vars/4", 1e-30), "accumulated gradients of b/kernel"),
        (set_array("optimizer/vars/4", np.nan), "accumulated gradients of b/kernel"),
    ],
)
def test_saved_in_the_middle_of_an_accumulation(edit, found, tmp_path):
    path = change_archive(WILD / SUMMED / "m.keras", tmp_path / "m.keras", edit_weights=edit)
    with pytest.raises(CheckpointError, match=f"gradient_accumulation_steps: .*{found}"):
        load(path)


def change_steps(value):
    def edit(described):
        settings = described["compile_config"]["optimizer"]["config"]
        settings["gradient_accumulation_steps"] = value

    return edit


@pytest.mark.parametrize("value", [1, 2.5, -2, True, "2", [2]])
def test_numbers_of_accumulation_that_keras_does_not_take(value, tmp_path):
    path = change_archive(WILD / SUMMED / "m.keras", tmp_path / "m.keras", change_steps(value))
    with pytest.raises(CheckpointError, match="gradient_accumulation_steps: expected None or a"):
        load(path)


def test_a_schedule_beside_accumulation(tmp_path):
    """Keras calls it with the count of gradients: measured on Keras 3.15."""

    def edit(described):
        described["compile_config"]["optimizer"]["config"]["learning_rate"] = {
            "module": "keras.optimizers.schedules",
            "class_name": "ExponentialDecay",
            "config": {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5},
        }

    def drop_rate(file):
        renumber(file["optimizer/vars"], [0, *range(2, 20)])

    path = change_archive(WILD / SUMMED / "m.keras", tmp_path / "m.keras", edit, drop_rate)
    with pytest.raises(CheckpointError, match=r"schedule\(2 \* count \+ 1\)") as caught:
        load(path)
    assert caught.value.argument == "config"
    given = load(path, config=AdamConfig(learning_rate=optax.constant_schedule(0.1)))
    assert given.count == 4
    checkpoint = load(WILD / SUMMED / "m.keras")
    save(tmp_path / "b.keras", checkpoint, template=path)  # which gets a number instead
    assert_equal(load(tmp_path / "b.keras"), checkpoint)


def test_the_two_copies_of_the_inner_variables_differ(tmp_path):
    edit = set_array("optimizer/vars/8", 0)
    path = change_archive(WILD / SCALED / "m.keras", tmp_path / "m.keras", edit_weights=edit)
    message = "optimizer/vars/8: expected the same as optimizer/inner_optimizer/vars/4"
    with pytest.raises(CheckpointError, match=message):
        load(path)


@pytest.mark.parametrize("scale", [0.0, 2.0**40])
def test_the_note_has_the_present_loss_scale(scale, tmp_path):
    edit = set_array("optimizer/vars/3", scale)
    path = change_archive(WILD / SCALED / "m.keras", tmp_path / "m.keras", edit_weights=edit)
    edit = set_array("optimizer_weights/loss_scale_optimizer/dynamic_scale", scale)
    other = change_h5(WILD / SCALED / "m.h5", tmp_path / "m.h5", edit)
    for file in (path, other):
        assert f"the loss scale, {scale!r} in the file," in load(file).notes[0]


def test_a_constant_loss_scale(tmp_path):
    """Keras divides the gradients by it: the moments are those without."""

    def edit(described):
        described["compile_config"]["optimizer"]["config"]["loss_scale_factor"] = 8.0

    source = CHECKPOINTS / "keras3_model.keras"
    checkpoint = load(change_archive(source, tmp_path / "m.keras", edit))
    assert_equal(checkpoint, load(source))
    assert ["loss_scale_factor: the loss scale, 8.0" in note for note in checkpoint.notes] == [True]
    assert save(tmp_path / "b.keras", checkpoint, template=tmp_path / "m.keras") == ()
    assert load(tmp_path / "b.keras").notes == checkpoint.notes
