"""Models of Keras 3 and tf_keras, as recorded, in files of Keras and of adamx.

`framework` is "keras3", "tfkeras" or "tfkeras_legacy", as in tests/golden/make_checkpoints.py.
"""

from adamx.checkpoint import load, save
from adamx.config.adam_config import AdamConfig
from tests.golden import resume_data
from tests.golden.make_checkpoints import Keras
from tests.live.resuming import (
    CHECKPOINTS,
    HALF,
    Recorded,
    assert_near,
    assert_same,
    half_way,
)


def opened(framework, run, path):
    """The model of a file, and its optimizer.

    Of a `.keras` file Keras has all from the file, of a `.weights.h5` the weights and moments. Of
    Keras 3's `.h5` of a whole model they are given to it one by one, since `load_model` drops the
    moments.
    """
    model = Keras(framework, run, str(path))
    if framework == "keras3":  # a file from TensorFlow says not to, and that rounds otherwise
        model.model.jit_compile = True
    return model


def loaded(path, run):
    """By adamx, with the run's hyperparameters where the file has none."""
    has_none = path.name.endswith(".weights.h5")
    return load(path, config=AdamConfig.from_keras(run.config, "keras3") if has_none else None)


def written(framework, run, checkpoint, ending, folder, order=None):
    """A file by adamx, which has all of the checkpoint.

    The template is what Keras saved of the model after one step from other first weights.
    """
    template = folder / f"template{ending}"
    model = Keras(framework, run._replace(seed=run.seed + 1))
    model.train(list(resume_data.batches(run.seed))[:1])
    model.save(str(template))
    left = save(folder / f"a{ending}", checkpoint, template=template, order=order)
    assert left == (("config",) if ending == ".weights.h5" else ())
    return folder / f"a{ending}"


def finals(model):
    return [*model.weights().values()]


def assert_recorded_goes_on(framework, file, resume, folder, bound):
    """A recorded file and adamx's copy of it train on to the same bits, and as recorded."""
    name, ending = _parts(file)
    recorded, original = Recorded.of(name, resume), CHECKPOINTS / file
    checkpoint = loaded(original, recorded.run)
    path = written(framework, recorded.run, checkpoint, ending, folder)
    model = opened(framework, recorded.run, path)
    expected = opened(framework, recorded.run, original)
    assert_same(_arrays(model), _arrays(expected))
    for each in (model, expected):
        each.train(recorded.batches)
    assert_same(_arrays(model), _arrays(expected))
    assert_near(finals(model), recorded.final, bound)


def assert_uninterrupted(framework, file, resume, folder):
    """With a save, adamx and a load between the steps, the bits are those of a run without."""
    name, ending = _parts(file)
    run = Recorded.of(name, resume).run
    batches = list(resume_data.batches(run.seed))
    expected = Keras(framework, run)
    expected.train(batches[: resume_data.BEFORE])
    expected.save(str(folder / f"original{ending}"))
    expected.train(batches[resume_data.BEFORE :])

    checkpoint = loaded(folder / f"original{ending}", run)
    model = opened(framework, run, written(framework, run, checkpoint, ending, folder))
    model.train(batches[resume_data.BEFORE :])
    assert_same(_arrays(model), _arrays(expected))


def assert_half_in_jax(framework, file, resume, folder, bound):
    """JAX trains a recorded file on for 15 steps, and Keras for the next 15."""
    name, ending = _parts(file)
    recorded = Recorded.of(name, resume)
    checkpoint = loaded(CHECKPOINTS / file, recorded.run)
    half = half_way(checkpoint, recorded, order=recorded.paths)
    path = written(framework, recorded.run, half, ending, folder)
    model = opened(framework, recorded.run, path)
    model.train(recorded.batches[HALF:])
    assert_near(finals(model), recorded.final, bound)


def _parts(file):
    """The name and the ending."""
    name, dot, ending = file.partition(".")
    return name, dot + ending


def _arrays(model):
    """Of all weights, and of the optimizer's variables."""
    return [*model.weights().values(), *model.optimizer_weights().values()]
