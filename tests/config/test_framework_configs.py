"""Configurations of Keras and torch that are refused, or cannot be expressed there."""

import optax
import pytest

from adamx import AdamConfig
from adamx.base.errors import InvalidValue

PROMOTES = True  # Optax's clipping does


@pytest.mark.parametrize(
    ("config", "generation", "message"),
    [
        ({"lr": 0.1, "amsgrad": True}, "tf1", "amsgrad: not among the keys of a tf1 configuration"),
        ({"decay": 0.1}, "keras3", "decay: not among the keys of a keras3 configuration"),
        (
            {"gradient_accumulation_steps": 4},
            None,
            "gradient_accumulation_steps: .*optax.MultiSteps",
        ),
        ({"loss_scale_factor": 2.0}, None, "loss_scale_factor: .* scale the loss"),
        ({"adaptive_epsilon": True}, None, 'adaptive_epsilon: .*convention="torch"'),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "keras3", "clipnorm and clipvalue: expected one"),
        ({"clipnorm": 1.0, "global_clipnorm": 1.0}, "tf_keras_legacy", "clipnorm and global_clip"),
        (
            {"beta_1": 1.0},
            "tf1",
            "^beta_1: expected a finite number of at least 0 and below 1, found 1.0",
        ),
        ({"lr": -1.0}, None, "^lr: expected a finite number of at least 0, found -1.0"),
        (
            {"beta_2": 1 - 1e-9},
            "tf1",
            "^beta_2: expected a number that stays below 1 when rounded to float32, found 0.99",
        ),
        ({"clipnorm": 0.0}, "tf_keras_legacy", "^clipnorm: expected a number above 0 or None"),
        ({"lr": 0.1, "learning_rate": 0.1}, "tf_keras_legacy", "^lr: expected one learning rate"),
        ({"lr": {"class_name": "CosineDecay"}}, "tf1", "^lr: expected a number, found a schedule"),
        ({"decay": 0.1, "clipnorm": 1.0}, None, "^generation: expected one of"),
        ({"class_name": "AdamW", "config": {}}, "tf1", "^class_name: tf1 has no AdamW"),
        (
            {"class_name": "Adam", "registered_name": "my>Adam", "config": {}},
            "keras3",
            "^class_name: expected an optimizer of Keras, one of Adam, AdamW, found 'my>Adam'",
        ),
        (
            {"class_name": "Adam", "module": "my.own", "config": {}},
            "keras3",
            "^class_name: expected an optimizer of Keras, one of Adam, AdamW, "
            "found 'Adam' of another module",
        ),
        ({"class_name": "LossScaleOptimizer", "config": {}}, None, "^inner_optimizer: .* scales"),
        ({"class_name": "LossScaleOptimizerV3", "config": {}}, None, "^inner_optimizer: .* scales"),
        (
            {"class_name": "SGD", "config": {}},
            None,
            "class_name: expected an optimizer of Keras, one of Adam, AdamW",
        ),
        ({}, "keras2", "generation: expected one of 'tf1', .*, found 'keras2'"),
        (
            {"learning_rate": {"class_name": "Noisy", "config": {}}},
            "keras3",
            "Noisy",
        ),
    ],
)
def test_bad_keras_configurations(config, generation, message):
    with pytest.raises(ValueError, match=message):
        AdamConfig.from_keras(config, generation)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "^config: expected a mapping, found NoneType"),
        ({"class_name": "Adam", "config": None}, "^config: expected a mapping next to class_name"),
        ({"amsgrad": "False"}, "^amsgrad: expected True or False, found 'False'"),
        ({"epsilon": None}, "^epsilon: expected a real number .* found NoneType"),
    ],
)
def test_keras_configurations_of_the_wrong_type(config, message):
    with pytest.raises(TypeError, match=message):
        AdamConfig.from_keras(config, "keras3")


def test_adamw_has_another_default():
    for generation in ("tf_keras", "keras3"):
        serialised = {"class_name": "AdamW", "config": {"learning_rate": 0.1}}
        assert AdamConfig.from_keras(serialised, generation).weight_decay == 0.004
        assert AdamConfig.from_keras(serialised["config"], generation).weight_decay == 0


def test_legacy_takes_lr_too():
    config = {"name": "Adam", "lr": 0.1, "decay": 0.5, "clipnorm": 1.0}
    assert AdamConfig.from_keras(config) == AdamConfig.from_keras(config, "tf_keras_legacy")
    assert AdamConfig.from_keras(config).clip_norm == 1
    assert AdamConfig.from_keras(config).learning_rate == 0.1


@pytest.mark.parametrize(
    ("fields", "generation", "message"),
    [
        ({"convention": "torch"}, "keras3", "convention: a keras3 configuration cannot express"),
        ({"amsgrad": True}, "tf1", "amsgrad: a tf1 configuration cannot express amsgrad=True"),
        ({"weight_decay": 0.1}, "tf_keras_legacy", "weight_decay: a tf_keras_legacy"),
        ({"weight_decay": 0.1, "decoupled": False}, "keras3", "decoupled: a keras3"),
        ({"clip_norm": 1.0}, "tf1", "clip_norm: a tf1 configuration cannot express clip_norm=1.0"),
        (
            {"clip_global_norm": 1.0, "clip_value": 2.0},
            "keras3",
            "clip_global_norm and clip_value: .* clip_global_norm=1.0, clip_value=2.0",
        ),
        ({"clip_global_norm": 1.0, "clip_value": 2.0}, "tf_keras_legacy", "clip_value_first"),
        ({"learning_rate": optax.constant_schedule(1.0)}, "keras3", "learning_rate: a keras3"),
        ({"eps_root": 1e-3}, "keras3", "eps_root"),
        ({"maximize": True}, "keras3", "maximize"),
    ],
)
def test_what_keras_cannot_express(fields, generation, message):
    with pytest.raises(ValueError, match=message):
        AdamConfig(**{"convention": "keras"} | fields).to_keras(generation)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"weight_decay": 0.1}, "decoupled_weight_decay: expected it together with weight_decay"),
        ({"initial_lr": 0.1}, "initial_lr: unknown key .* scheduler"),
        ({"momentum": 0.9}, "momentum: unknown key of a parameter group"),
        ({"lr": -1.0}, "^lr: .* found -1.0"),
        ({"betas": (0.9, 1.0)}, r"^betas\[1\]: .* found 1.0"),
        ({"param_groups": []}, "^param_groups: expected one parameter group, found a state dict"),
    ],
)
def test_bad_parameter_groups(group, message):
    with pytest.raises(ValueError, match=message):
        AdamConfig.from_torch(group)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (None, "^param_group: expected a mapping, found NoneType"),
        ({"betas": None}, "^betas: expected two numbers, found None"),
        ({"maximize": "yes"}, "^maximize: expected True or False"),
    ],
)
def test_parameter_groups_of_the_wrong_type(group, message):
    with pytest.raises(TypeError, match=message):
        AdamConfig.from_torch(group)


@pytest.mark.parametrize(
    "fields",
    [
        {"convention": "keras"},
        {"convention": "optax", "amsgrad": True},
        {"decay": 0.1},
        {"clip_norm": 1.0},
        {"eps_root": 1e-3},
        {"nesterov": True, "convention": "optax"},
        {"learning_rate": optax.constant_schedule(1.0)},
    ],
)
def test_what_torch_cannot_express(fields):
    name = list(fields)[-1] if "nesterov" not in fields else "nesterov"
    with pytest.raises(ValueError, match=f"{name}: torch.optim cannot express"):
        AdamConfig(**{"convention": "torch"} | fields).to_torch()


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda: AdamConfig(b1=2.0), "b1"),
        (lambda: AdamConfig.from_keras({"beta_1": 2.0}, "keras3"), "beta_1"),
        (lambda: AdamConfig.from_keras({"clipnorm": -1.0}, "tf1"), "clipnorm"),
        (lambda: AdamConfig.from_keras({"use_ema": True}, "keras3"), "use_ema"),
        (lambda: AdamConfig.from_torch({"betas": (0.9, 2.0)}), "betas[1]"),
        (lambda: AdamConfig(nesterov=True).to_torch(), "nesterov"),
        (lambda: AdamConfig().to_keras("keras3"), "convention"),
    ],
)
def test_errors_have_the_field_or_the_key_in_where(call, where):
    with pytest.raises(InvalidValue) as error:
        call()
    assert error.value.where == where
    assert str(error.value).startswith(f"{where}: ")
