"""The configurations of four generations of Keras, as the fields of `AdamConfig` and back."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from adamx.base.checks import check_choice
from adamx.base.errors import InvalidType, InvalidValue
from adamx.base.trees import listed
from adamx.config.keras_schedules import KerasSchedule

__all__ = ["GENERATIONS", "Generation", "fields_from_keras", "keras_from_fields", "told_generation"]

Generation = Literal["tf1", "tf_keras_legacy", "tf_keras", "keras3"]
GENERATIONS: tuple[str, ...] = get_args(Generation)

# The keys of get_config() in each generation, with the defaults of its constructor. An older file
# may lack some. Settings of a feature that is not in use have no effect.
_LEGACY = {
    "learning_rate": 1e-3,
    "decay": 0.0,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-7,
    "amsgrad": False,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "name": "Adam",
}
_CURRENT = {
    "name": "Adam",
    "learning_rate": 1e-3,
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-7,
    "amsgrad": False,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "tf1": {
        "lr": 1e-3,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "decay": 0.0,
        "epsilon": 1e-8,
        "clipnorm": None,
        "clipvalue": None,
    },
    "tf_keras_legacy": _LEGACY | {"is_legacy_optimizer": True},
    "tf_keras": _CURRENT
    | {"jit_compile": True, "is_legacy_optimizer": False, "adaptive_epsilon": False},
    "keras3": _CURRENT | {"loss_scale_factor": None, "gradient_accumulation_steps": None},
}

# Keys that only one generation has.
_TELLING: dict[str, Generation] = {
    "loss_scale_factor": "keras3",
    "gradient_accumulation_steps": "keras3",
    "jit_compile": "tf_keras",
    "adaptive_epsilon": "tf_keras",
}
# Beside lr or decay, what tf_keras's legacy optimizer has and TensorFlow 1.1 does not.
_LEGACY_MARKS = {"name", "learning_rate", "amsgrad", "global_clipnorm"}

# What `AdamConfig` calls an argument of Keras.
_NAMES = {
    "beta_1": "b1",
    "beta_2": "b2",
    "epsilon": "eps",
    "clipvalue": "clip_value",
    "global_clipnorm": "clip_global_norm",
}

_UNSUPPORTED = {
    "use_ema": "average the parameters with optax.ema, or with optax.incremental_update",
    "gradient_accumulation_steps": "wrap the transformation in optax.MultiSteps",
    "loss_scale_factor": "scale the loss, and chain optax.scale(1 / factor) before Adam",
    "adaptive_epsilon": 'use AdamConfig(convention="torch", ...), which adds epsilon as torch does',
}

_CLASSES = ("Adam", "AdamW")
_SCALERS = ("LossScaleOptimizer", "LossScaleOptimizerV3")
_PACKAGES = ("keras", "tf_keras", "tensorflow")  # whose classes these are
_ADAMW_WEIGHT_DECAY = 0.004


def fields_from_keras(
    config: Mapping[str, Any], generation: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of `AdamConfig` for a configuration of Keras; see `AdamConfig.from_keras`.

    Returns:
      The fields, and by field the key that it was read from.
    """
    class_name, config = _unwrapped(config)
    if generation is None:
        generation = told_generation(config)
    check_choice("generation", generation, GENERATIONS)
    tf1, early = generation == "tf1", generation in ("tf1", "tf_keras_legacy")
    config = _with_learning_rate(config) if generation == "tf_keras_legacy" else config
    defaults = _DEFAULTS[generation]
    if class_name == "AdamW":
        if early:
            raise InvalidValue(f"{generation} has no AdamW", where="class_name")
        defaults = defaults | {"weight_decay": _ADAMW_WEIGHT_DECAY}
    unknown = sorted(map(str, config.keys() - defaults.keys()))
    if unknown:
        raise InvalidValue(
            f"not among the keys of a {generation} configuration, which are "
            f"{listed(defaults, most=99)}",
            where=listed(unknown),
        )
    for key, instead in _UNSUPPORTED.items():
        if config.get(key) not in (None, False):
            remedy = f"instead, {instead}"
            raise InvalidValue(
                where=key, expected="it to be unset", found=repr(config[key]), remedy=remedy
            )

    c = {**defaults, **config}
    rate_key = "lr" if tf1 else "learning_rate"
    norm = "clip_global_norm" if tf1 else "clip_norm"  # TensorFlow 1.1 clips all gradients together
    keys = {new: old for old, new in _NAMES.items()} | {"learning_rate": rate_key, norm: "clipnorm"}
    rate = c[rate_key]
    if isinstance(rate, Mapping):
        if tf1:
            found = "a schedule, which tf1 does not support"
            raise InvalidValue(where="lr", expected="a number", found=found)
        rate = KerasSchedule.from_config(rate)
    fields = {
        "learning_rate": rate,
        "b1": c["beta_1"],
        "b2": c["beta_2"],
        "eps": c["epsilon"],
        "decay": c.get("decay", 0.0),
        "weight_decay": c.get("weight_decay") or 0.0,
        "amsgrad": c.get("amsgrad", False),
        "clip_value_first": generation == "tf_keras_legacy",
        "convention": "keras",
        "float32": early,
    }
    return fields | _clips(c, keys, generation), keys


def _unwrapped(config: Any) -> tuple[str, Mapping[str, Any]]:
    """The class and the configuration of an optimizer, which may be serialised with its class."""
    if not isinstance(config, Mapping):
        raise InvalidType(where="config", expected="a mapping", found=type(config).__name__)
    if "inner_optimizer" in config or str(config.get("class_name")) in _SCALERS:
        raise InvalidValue(
            where="inner_optimizer",
            expected="Adam itself",
            found="a wrapper that scales the loss",
            remedy="pass only the inner_optimizer, and scale the loss outside of the optimizer",
        )
    if "class_name" not in config:
        return "Adam", config
    registered = config.get("registered_name") or config["class_name"]
    name = str(config["class_name"]).removeprefix("Custom>")
    is_own = str(config.get("module", "keras")).partition(".")[0] not in _PACKAGES
    if is_own or name not in _CLASSES or str(registered).removeprefix("Custom>") not in _CLASSES:
        expected = f"an optimizer of Keras, one of {listed(_CLASSES)}"
        found = f"{registered!r} of another module" if is_own else repr(registered)
        raise InvalidValue(where="class_name", expected=expected, found=found)
    if not isinstance(config.get("config"), Mapping):
        found = type(config.get("config")).__name__
        raise InvalidType(where="config", expected="a mapping next to class_name", found=found)
    return name, config["config"]


def told_generation(config: Mapping[str, Any]) -> Generation:
    """The generation whose keys a configuration has."""
    if "is_legacy_optimizer" in config:
        return "tf_keras_legacy" if config["is_legacy_optimizer"] else "tf_keras"
    for key, generation in _TELLING.items():
        if key in config:
            return generation
    if ("lr" in config or "decay" in config) and _LEGACY_MARKS & config.keys():
        return "tf_keras_legacy"
    if "lr" in config:
        return "tf1"
    raise InvalidValue(
        f"expected one of {listed(GENERATIONS)}, since the keys "
        f"({listed(map(str, config), most=99)}) do not identify it: clipnorm, for example, has "
        "another meaning in TensorFlow 1.1 than in later versions of Keras",
        where="generation",
        argument="generation",
    )


def _with_learning_rate(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`lr`, which tf_keras's legacy optimizer also takes, under its newer name."""
    if "lr" not in config:
        return config
    if "learning_rate" in config:
        found = "both lr and learning_rate"
        raise InvalidValue(where="lr", expected="one learning rate", found=found)
    return {"learning_rate" if key == "lr" else key: value for key, value in config.items()}


def _clips(c: Mapping[str, Any], keys: Mapping[str, str], generation: str) -> dict[str, Any]:
    """The limits that are set; raise where the framework would silently ignore one."""
    limits = {}
    for field in ("clip_norm", "clip_global_norm", "clip_value"):
        limit = c.get(keys.get(field, ""))
        # Only tf_keras's legacy optimizer clips to a limit of 0, which AdamConfig refuses.
        if limit or (limit is not None and generation == "tf_keras_legacy"):
            limits[field] = limit
    two_norms = {"clip_norm", "clip_global_norm"} <= limits.keys()
    if two_norms or (len(limits) > 1 and generation in ("tf_keras", "keras3")):
        names = [keys[field] for field in limits]
        raise InvalidValue(
            where=" and ".join(names),
            expected=f"one of them, since {generation} applies only one",
            found=limits,
            remedy="To apply more, chain Optax's clipping before Adam",
        )
    return limits


def keras_from_fields(fields: Mapping[str, Any], generation: str) -> dict[str, Any]:
    """A configuration of Keras for the fields of an `AdamConfig`; see `AdamConfig.to_keras`.

    Raises:
      InvalidValue: Keras cannot express a field, which is the error's `where`.
    """
    check_choice("generation", generation, GENERATIONS)
    f = dict(fields)
    first, early = generation == "tf1", generation in ("tf1", "tf_keras_legacy")
    clips = [k for k in ("clip_norm", "clip_global_norm", "clip_value") if f[k] is not None]
    two_norms = {"clip_norm", "clip_global_norm"} <= set(clips)
    rate, decay = f["learning_rate"], f["decay"]
    refused = [
        ("convention", f["convention"] != "keras"),
        ("eps_root", f["eps_root"] != 0),
        ("nesterov", f["nesterov"]),
        ("bias_correction", not f["bias_correction"]),
        ("maximize", f["maximize"]),
        ("amsgrad", f["amsgrad"] and first),
        ("weight_decay", f["weight_decay"] != 0 and early),
        ("decoupled", f["weight_decay"] != 0 and not f["decoupled"]),
        ("clip_norm", f["clip_norm"] is not None and first),
        (" and ".join(clips), two_norms or (len(clips) > 1 and not early)),
        ("clip_value_first", len(clips) > 1 and early and f["clip_value_first"] == first),
        ("learning_rate", callable(rate) and (first or not isinstance(rate, KerasSchedule))),
        ("decay", decay != 0 and callable(rate) and not early),
    ]
    for field, is_refused in refused:
        if is_refused:
            found = ", ".join(f"{name}={f[name]!r}" for name in field.split(" and "))
            problem = f"a {generation} configuration cannot express {found}"
            raise InvalidValue(problem, where=field)

    # Later Keras has no learning-rate decay and does not round to float32: write a schedule and
    # the rounded numbers instead.
    if f["float32"] and not early:
        f |= {key: float(np.float32(f[key])) for key in ("b1", "b2")}
        decay = float(np.float32(decay))
        rate = rate if callable(rate) else float(np.float32(rate))
    if isinstance(rate, KerasSchedule):
        rate = rate.to_config()
    elif decay != 0 and not early:
        arguments = {
            "initial_learning_rate": rate,
            "decay_steps": 1,
            "decay_rate": decay,
            "staircase": False,
        }
        rate = KerasSchedule("InverseTimeDecay", tuple(arguments.items())).to_config()
    values = {
        "lr": rate,
        "learning_rate": rate,
        "decay": decay,
        "beta_1": f["b1"],
        "beta_2": f["b2"],
        "epsilon": f["eps"],
        "amsgrad": f["amsgrad"],
        "weight_decay": f["weight_decay"] or None,
        "clipnorm": f["clip_global_norm"] if first else f["clip_norm"],
        "global_clipnorm": f["clip_global_norm"],
        "clipvalue": f["clip_value"],
    }
    config = {key: values.get(key, default) for key, default in _DEFAULTS[generation].items()}
    if generation == "tf_keras":
        del config["adaptive_epsilon"]  # get_config of tf_keras leaves it out
    if early:  # they write only what is set
        config = {key: value for key, value in config.items() if value is not None}
        config.pop("is_legacy_optimizer", None)
    return config
