"""The attributes of other optimizers on `adamx.keras.Adam`: an error that says what to use."""

import pytest

from adamx.base.errors import AdamxError
from adamx.keras import Adam

# Of Keras 3, TensorFlow, torch, Optax and Flax.
HINTS = {
    "learning_rate": "it is called lr here",
    "alpha": "it is called lr here",
    "b1": "it is called beta_1 here",
    "beta_2_power": "",
    "eps": "make a new optimizer with Adam.from_config",
    "clipnorm": "get_config",
    "amsgrad": "use adamx.adam",
    "weight_decay": "adamx.adamw",
    "minimize": r"get_updates\(params, None, loss",
    "apply_gradients": r"get_updates\(params, None, loss.* use optimizer.transformation",
    "apply": "use optimizer.transformation",
    "update": "use optimizer.transformation",
    "step": r"get_updates\(params, None, loss",
    "compute_gradients": r"get_gradients\(loss, params",
    "zero_grad": "gradients are not kept",
    "variables": r"get_weights\(\)",
    "weights": r"get_weights\(\)",
    "get_slot": "optimizer.state",
    "state_dict": "optimizer.state",
    "load_state_dict": r"optimizer.set_weights\(weights\)",
    "init": r"optimizer.build\(params\)",
    "param_groups": "set lr",
    "count": "iterations",
    "lrr": "",
}


@pytest.mark.parametrize(("name", "hint"), HINTS.items())
def test_attributes_of_others(name, hint):
    optimizer = Adam()
    assert not hasattr(optimizer, name)
    assert getattr(optimizer, name, None) is None
    for call in (lambda: getattr(optimizer, name), lambda: setattr(optimizer, name, 0.5)):
        with pytest.raises(
            AttributeError, match=f"{name!r} of Adam does not exist.*{hint}"
        ) as caught:
            call()
        assert isinstance(caught.value, AdamxError)
        assert bool(caught.value.remedy) == bool(hint)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("epsilon", "make a new optimizer with Adam.from_config"),
        ("state", r"build\(params\) creates it, and set_weights"),
        ("transformation", "set those"),
        ("build", ""),
    ],
)
def test_attributes_that_cannot_be_set(name, hint):
    optimizer = Adam()
    with pytest.raises(AttributeError, match=f"{name!r} of Adam cannot be set.*{hint}"):
        setattr(optimizer, name, 0.5)
    assert optimizer.epsilon == 1e-8
