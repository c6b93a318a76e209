"""Adam for JAX, complete."""

from adamx.schedules import inverse_time_decay
from adamx.transform import AdamState, AmsgradState, adam, adamw, scale_by_adam
from adamx.weights import from_numpy, get_weights, set_weights, to_numpy

__all__ = [
    "AdamState",
    "AmsgradState",
    "adam",
    "adamw",
    "from_numpy",
    "get_weights",
    "inverse_time_decay",
    "scale_by_adam",
    "set_weights",
    "to_numpy",
]
