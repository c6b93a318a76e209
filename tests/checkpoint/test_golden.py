"""Files that the frameworks saved half-way, continued in JAX to where they went on themselves."""

import pytest

from adamx.checkpoint import load
from tests.checkpoint.checkpoint_runs import (
    CHECKPOINTS,
    RECORDED,
    difference,
    flat,
    recorded_weights,
    recording,
    restored,
    train,
)

FRAMEWORKS = {"tf11": "tf1", "tfkeras": "tf_keras", "keras3": "keras3", "torch": "torch"}


@pytest.fixture(params=RECORDED, ids=lambda recorded: recorded.file)
def recorded(request):
    return request.param


@pytest.fixture
def checkpoint(recorded):
    return load(CHECKPOINTS / recorded.file, config=recorded.config)


def test_weights_are_the_saved_ones(recorded, checkpoint):
    arrays = recording(recorded)
    weights, fixed, *_ = restored(checkpoint, recorded)
    saved = recorded_weights(arrays, recorded, "saved", checkpoint.framework == "torch")
    assert difference(weights | fixed, saved) == 0
    assert flat(weights | fixed).keys() == saved.keys()


def test_every_count_is_the_saved_one(recorded, checkpoint):
    *_, state = restored(checkpoint, recorded)
    assert checkpoint.count == 30
    counts = [part.count for part in state if "count" in getattr(part, "_fields", ())]
    has_schedule = checkpoint.config.decay or callable(checkpoint.config.learning_rate)
    assert [int(count) for count in counts] == [30] * (2 if has_schedule else 1)


@pytest.mark.sampled(2)
def test_continues_as_the_framework_did(recorded, checkpoint):
    arrays = recording(recorded)
    is_torch = checkpoint.framework == "torch"
    weights, fixed, transformation, state = restored(checkpoint, recorded)
    saved = recorded_weights(arrays, recorded, "saved", is_torch)
    final = recorded_weights(arrays, recorded, "final", is_torch)
    epsilon = 1e-5 if is_torch else 1e-3
    weights, _ = train(weights, fixed, transformation, state, int(arrays["seed"]), epsilon)
    assert difference(weights, saved) > 0.1  # they moved
    assert difference(weights, final) <= min(2e-6, 2 * recorded.measured)


@pytest.mark.sampled(3)
def test_without_moments_it_ends_elsewhere(recorded, checkpoint):
    arrays = recording(recorded)
    is_torch = checkpoint.framework == "torch"
    weights, fixed, transformation, _ = restored(checkpoint, recorded)
    fresh = transformation.init(weights)
    weights, _ = train(
        weights, fixed, transformation, fresh, int(arrays["seed"]), 1e-5 if is_torch else 1e-3
    )
    assert difference(weights, recorded_weights(arrays, recorded, "final", is_torch)) > 0.01


def test_framework_and_version(recorded, checkpoint):
    start = recorded.file.partition("_")[0].partition(".")[0]
    expected = FRAMEWORKS[start] + ("_legacy" if "legacy_" in recorded.file else "")
    assert checkpoint.framework == (expected if start == "tfkeras" else FRAMEWORKS[start])
    versions = {"tf11": "2.0.0-tf", "tfkeras": "2.21.0", "keras3": "3.15.1", "torch": None}
    is_weights = recorded.file.endswith(".weights.h5")
    assert checkpoint.version == (None if is_weights else versions[start])


def test_moments_are_those_that_the_framework_listed(recorded, checkpoint):
    arrays = recording(recorded)
    if recorded.resume in ("torch_adam", "torch_adam_amsgrad", "torch_adamw"):
        pytest.skip("these recordings have no list of the optimizer's variables")
    listed = [arrays[f"opt{i}"] for i in range(sum(key.startswith("opt") for key in arrays) // 2)]
    held = [*checkpoint.mu.values(), *checkpoint.nu.values(), *checkpoint.nu_max.values()]
    held += [array for name, array in checkpoint.extra.items() if name.startswith("average")]
    as_bytes = sorted(array.tobytes() for array in listed if array.ndim)
    assert sorted(array.tobytes() for array in held) == as_bytes
