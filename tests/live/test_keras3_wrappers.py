"""Optimizers of Keras 3 that wrap, accumulate, or were built when other layers were trained.

Its backend is JAX, which the environment must say before Keras is imported: `KERAS_BACKEND=jax`.
"""

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load, save
from tests.golden import resume_data

keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.live,
    # Keras's variables know NumPy 1 alone.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PROMOTES = True
GIVEN = AdamConfig.from_keras({"learning_rate": 0.01}, "keras3")

LAYERS = ("z", "b", "a")


def build(make_optimizer, frozen=(), sizes=(8, 8, 8)):
    """A compiled model of dense layers, not yet trained."""
    layers = [keras.layers.Input((8,))]
    layers += [keras.layers.Dense(s, name=n) for n, s in zip(LAYERS, sizes, strict=True)]
    model = keras.Sequential(layers)
    freeze(model, frozen)
    model.compile(make_optimizer(), loss="mse")
    return model


def freeze(model, frozen):
    for layer in model.layers:
        layer.trainable = layer.name not in frozen


def adam(**settings):
    return lambda: keras.optimizers.Adam(0.01, **settings)


def scaled(**settings):
    return lambda: keras.optimizers.LossScaleOptimizer(adam(**settings)(), initial_scale=64.0)


def train(model, steps):
    size = model.output_shape[-1]
    for x, _ in list(resume_data.batches(3))[:steps]:
        model.train_on_batch(x, x[:, :size])


def moments(optimizer):
    """By name of the variable its first moment."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    variables = [v for v in inner.variables if v.path.endswith("_momentum")]
    return {"/".join(v.path.split("_")[-3:-1]): np.asarray(v) for v in variables}


def assert_moments(checkpoint, optimizer):
    expected = moments(optimizer)
    assert checkpoint.names == tuple(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.mu[name], array)


WRAPPED = {
    "scaled": (scaled(), 4, 4),
    "scaled, AMSGrad": (scaled(amsgrad=True), 3, 3),
    "accumulated": (adam(gradient_accumulation_steps=2), 4, 2),
    "accumulated, averages": (adam(gradient_accumulation_steps=3, use_ema=True), 6, 2),
    "both": (scaled(gradient_accumulation_steps=2), 4, 2),
    "constant scale": (adam(loss_scale_factor=8.0), 3, 3),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_what_wraps_adam(case, tmp_path):
    """Keras goes on from adamx's copy to the same bits."""
    make, steps, updates = WRAPPED[case]
    model = build(make)
    train(model, steps)
    model.save(tmp_path / "a.keras")
    checkpoint = load(tmp_path / "a.keras")
    assert checkpoint.count == updates
    assert checkpoint.notes
    assert_moments(checkpoint, model.optimizer)

    other = build(make)
    train(other, 1)
    other.save(tmp_path / "template.keras")
    save(tmp_path / "b.keras", checkpoint, template=tmp_path / "template.keras")
    copy = keras.models.load_model(tmp_path / "b.keras")
    original = keras.models.load_model(tmp_path / "a.keras")
    for each in (copy, original):
        train(each, 4)
    pairs = [(original.weights, copy.weights)]
    pairs += [(original.optimizer.variables, copy.optimizer.variables)]
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs, strict=True):
            if not a.path.endswith("step_counter"):  # not carried
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b), a.path)


@pytest.mark.parametrize("make", [adam(gradient_accumulation_steps=2)])
def test_saved_in_the_middle_of_an_accumulation(make, tmp_path):
    model = build(make)
    train(model, 3)
    model.save(tmp_path / "a.keras")
    with pytest.raises(CheckpointError, match="in the middle of an accumulation: 3 iterations"):
        load(tmp_path / "a.keras")


@pytest.mark.parametrize(
    ("built", "saved", "sizes", "known"),
    [
        ("", "", (8, 8, 8), "inferred"),
        ("z", "z", (8, 8, 8), "inferred"),
        ("", "z", (8, 8, 8), "inferred"),  # all weights have moments
        ("z", "", (8, 8, 8), None),  # those of z and b, or of z and a, or of b and a
        ("zb", "", (8, 8, 4), "file"),  # the only ones of that shape
        ("b", "a", (8, 8, 4), None),
        ("a", "", (8, 8, 4), "inferred"),
    ],
)
def test_frozen_or_thawed_since(built, saved, sizes, known, tmp_path):
    model = build(adam(), built, sizes)
    train(model, 3)
    freeze(model, saved)
    path = tmp_path / "a.keras"
    model.save(path)
    if known is None:
        with pytest.raises(CheckpointError, match="fit more than one choice of weights"):
            load(path)
        return
    checkpoint = load(path)
    assert_moments(checkpoint, model.optimizer)
    assert set(checkpoint.naming.values()) - {"file"} == {known} - {"file"}


def test_what_the_error_says_to_do(tmp_path):
    model = build(adam(), "z")
    train(model, 3)
    freeze(model, "")
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras", compile=False)
    freeze(again, "z")
    again.compile(adam()(), loss="mse")
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "a.keras")
    again.save(tmp_path / "b.keras")
    checkpoint = load(tmp_path / "b.keras")
    assert checkpoint.count == 3
    assert_moments(checkpoint, model.optimizer)


def test_a_schedule_is_called_with_the_count_of_gradients(tmp_path):
    """Why accumulation beside a schedule is refused."""
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.0])
    model = build(lambda: keras.optimizers.Adam(rate, gradient_accumulation_steps=2))
    train(model, 2)
    before = [np.asarray(w) for w in model.weights]
    train(model, 2)  # the second update, after 3 gradients: 1 update would be within the boundary
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    model.save(tmp_path / "a.keras")
    with pytest.raises(CheckpointError, match=r"schedule\(2 \* count \+ 1\)"):
        load(tmp_path / "a.keras")


@pytest.mark.parametrize("name", ["Lamb", "Nadam", "Adamax", "Muon", "ScheduleFreeAdamW"])
def test_other_optimizers(name, tmp_path):
    model = build(lambda: getattr(keras.optimizers, name)(0.01))
    train(model, 2)
    for ending in (".keras", ".h5", ".weights.h5"):
        path = tmp_path / f"a{ending}"
        (model.save_weights if ending == ".weights.h5" else model.save)(path)
        with pytest.raises(CheckpointError, match=name):
            load(path, config=GIVEN)
