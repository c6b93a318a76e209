"""Adam for JAX, complete."""

from adamx import checkpoint, keras
from adamx.config import AdamConfig
from adamx.schedules import inverse_time_decay
from adamx.transform import AdamState, AmsgradState, adam, adamw, scale_by_adam
from adamx.weights import from_numpy, get_weights, set_weights, to_numpy

__all__ = [
    "AdamConfig",
    "AdamState",
    "AmsgradState",
    "adam",
    "adamw",
    "checkpoint",
    "from_numpy",
    "get_weights",
    "inverse_time_decay",
    "keras",
    "scale_by_adam",
    "set_weights",
    "to_numpy",
]
