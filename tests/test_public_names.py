"""Public classes and the version have the names that users import."""

import pickle
import pickletools
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest

import adamx

MODULES = {module.__name__: module for module in (adamx, adamx.checkpoint, adamx.keras)}
OPTAX = {"AdamState", "AmsgradState"}  # Optax's own classes
CLASSES = [
    (module, name)
    for module in MODULES
    for name in MODULES[module].__all__
    if isinstance(getattr(MODULES[module], name), type) and name not in OPTAX
]
BUFFERS = {"float32": jnp.zeros(4)}
SCHEDULE = adamx.keras.KerasSchedule(
    "ExponentialDecay",
    (("initial_learning_rate", 0.1), ("decay_steps", 10), ("decay_rate", 0.5)),
)
FUNCTIONS = [("adamx", "fused_adam"), ("adamx", "fused_adamw")]  # pickled, and called to unpickle
INSTANCES = {
    "AdamConfig": lambda: adamx.AdamConfig(),
    "FusedOptimizer": lambda: adamx.fused_adam(1e-3, weight_decay=0.1),
    "PackedAdamState": lambda: adamx.PackedAdamState(jnp.int32(0), BUFFERS, BUFFERS),
    "PackedAmsgradState": lambda: adamx.PackedAmsgradState(jnp.int32(0), *[BUFFERS] * 3),
    "ResidualState": lambda: adamx.residual_params().init(BUFFERS),
    "StochasticRoundState": lambda: adamx.stochastic_round(0).init(BUFFERS),
    "CheckpointError": lambda: adamx.checkpoint.CheckpointError("no such name"),
    "Adam": lambda: adamx.keras.Adam(),
    "KerasSchedule": lambda: SCHEDULE,
}


def names_in_pickle(pickled):
    """What of adamx a pickle names, each as `module name`."""
    operations = pickletools.genops(pickled)
    named = [argument for code, argument, _ in operations if code.name == "GLOBAL"]
    return {name for name in named if name.startswith("adamx")}


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_classes(module, name):
    cls = getattr(MODULES[module], name)
    assert repr(cls) == f"<class '{module}.{name}'>"
    pickled = pickle.dumps(cls, protocol=2)
    assert names_in_pickle(pickled) == {f"{module} {name}"}
    assert pickle.loads(pickled) is cls


@pytest.mark.parametrize("name", INSTANCES)
def test_pickles_of_instances(name):
    instance = INSTANCES[name]()
    pickled = pickle.dumps(instance, protocol=2)
    known = {f"{module} {name}" for module, name in CLASSES + FUNCTIONS}
    assert names_in_pickle(pickled) <= known
    assert type(pickle.loads(pickled)) is type(instance)


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_examples_are_in_the_docstring_of_the_class(module, name):
    """Doctest finds that in the public module; those of methods it would pass over."""
    for member in vars(getattr(MODULES[module], name)).values():
        if callable(member) or isinstance(member, property | classmethod | staticmethod):
            assert ">>>" not in (member.__doc__ or "")


def test_version():
    project = Path(__file__).parent.parent / "pyproject.toml"
    assert adamx.__version__ == tomllib.loads(project.read_text())["project"]["version"]
