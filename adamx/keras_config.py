"""The configurations of four generations of Keras, as the fields of `AdamConfig` and back."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from adamx.checks import check_choice, listed
from adamx.keras_schedules import KerasSchedule

__all__ = ["GENERATIONS", "Generation", "fields_from_keras", "keras_from_fields"]

Generation = Literal["tf1", "tf_keras_legacy", "tf_keras", "keras3"]
GENERATIONS: tuple[str, ...] = get_args(Generation)

# What get_config() of each generation holds, with the defaults of its constructor. An older file
# may lack some; what a configuration says of a feature that it does not use has no effect.
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

# Keys that one generation alone has, tried in this order.
_TELLING = {
    "lr": "tf1",
    "loss_scale_factor": "keras3",
    "gradient_accumulation_steps": "keras3",
    "jit_compile": "tf_keras",
    "adaptive_epsilon": "tf_keras",
    "decay": "tf_keras_legacy",
}

_UNSUPPORTED = {
    "use_ema": "average the parameters with optax.ema, or with optax.incremental_update",
    "gradient_accumulation_steps": "wrap the transformation in optax.MultiSteps",
    "loss_scale_factor": "scale the loss, and chain optax.scale(1 / factor) before",
    "adaptive_epsilon": 'this is AdamConfig(convention="torch", ...), which adds epsilon as torch',
}

_CLASSES = ("Adam", "AdamW")


def fields_from_keras(config: Mapping[str, Any], generation: str | None) -> dict[str, Any]:
    """The fields of `AdamConfig` for a configuration of Keras; see `AdamConfig.from_keras`."""
    config = _unwrapped(config)
    if generation is None:
        generation = _told_generation(config)
    check_choice("generation", generation, GENERATIONS)
    defaults = _DEFAULTS[generation]
    unknown = sorted(config.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"{listed(unknown)}: not among the keys of a {generation} configuration, which are "
            f"{listed(defaults, most=99)}"
        )
    for key, instead in _UNSUPPORTED.items():
        if config.get(key) not in (None, False):
            raise ValueError(f"{key}: expected none, found {config[key]!r}; instead, {instead}")

    c = {**defaults, **config}
    clips = {key: c[key] for key in ("clipnorm", "global_clipnorm", "clipvalue") if c.get(key)}
    _check_clips(clips, generation)
    early = generation in ("tf1", "tf_keras_legacy")
    rate = c["lr"] if generation == "tf1" else c["learning_rate"]
    # In TensorFlow 1.1 clipnorm is the norm of all gradients together.
    norm, global_norm = clips.get("clipnorm"), clips.get("global_clipnorm")
    return {
        "learning_rate": KerasSchedule.from_config(rate) if isinstance(rate, Mapping) else rate,
        "b1": c["beta_1"],
        "b2": c["beta_2"],
        "eps": c["epsilon"],
        "decay": c.get("decay", 0.0),
        "weight_decay": c.get("weight_decay") or 0.0,
        "amsgrad": c.get("amsgrad", False),
        "clip_norm": None if generation == "tf1" else norm,
        "clip_global_norm": norm if generation == "tf1" else global_norm,
        "clip_value": clips.get("clipvalue"),
        "clip_value_first": generation == "tf_keras_legacy",
        "convention": "keras",
        "float32": early,
    }


def _unwrapped(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration itself, of an optimizer that was serialised with its class."""
    if "class_name" not in config:
        return config
    name = str(config["class_name"]).removeprefix("Custom>")
    if name not in _CLASSES:
        raise ValueError(f"class_name: expected one of {listed(_CLASSES)}, found {name!r}")
    return config["config"]


def _told_generation(config: Mapping[str, Any]) -> str:
    if "is_legacy_optimizer" in config:
        return "tf_keras_legacy" if config["is_legacy_optimizer"] else "tf_keras"
    for key, generation in _TELLING.items():
        if key in config:
            return generation
    raise ValueError(
        f"generation: expected one of {listed(GENERATIONS)}, since the keys "
        f"{listed(config, most=99)} do not tell it: clipnorm, say, means one thing in TensorFlow "
        "1.1 and another in later Keras"
    )


def _check_clips(clips: Mapping[str, float], generation: str) -> None:
    """Raise where the framework would refuse, or leave one of them out without a word."""
    wrong = len(clips) > 1 and generation in ("tf_keras", "keras3")
    if wrong or {"clipnorm", "global_clipnorm"} <= clips.keys():
        raise ValueError(
            f"{' and '.join(clips)}: expected one of them alone, of which {generation} applies no "
            f"more; found {clips}. Chain Optax's clipping before for more"
        )


def keras_from_fields(fields: Mapping[str, Any], generation: str) -> dict[str, Any]:
    """A configuration of Keras for the fields of an `AdamConfig`; see `AdamConfig.to_keras`."""
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
            raise ValueError(f"{field}: a {generation} configuration cannot express {found}")

    # Later Keras has no decay, and does not round to float32: it gets what that means.
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
        serialised = {"class_name": "InverseTimeDecay", "config": arguments}
        rate = KerasSchedule.from_config(serialised).to_config()
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
