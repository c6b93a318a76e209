"""Adam for JAX, complete."""

from adamx import checkpoint, keras, native
from adamx.base.blockwise import EightBitMoment
from adamx.base.eight_bit import EightBit
from adamx.base.version import __version__
from adamx.config.adam_config import AdamConfig
from adamx.fused.layout import PackedAdamState, PackedAmsgradState
from adamx.fused.optimizer import FusedOptimizer, fused_adam, fused_adamw
from adamx.fused.packed import pack, unpack
from adamx.state.arrays import from_numpy, get_weights, set_weights, to_numpy
from adamx.state.describe import describe_sharding
from adamx.state.gradients import reduce_scatter
from adamx.state.quantize import dequantize_moments, quantize_moments
from adamx.state.residuals import full_params, split_params
from adamx.state.sharding import zero_sharding
from adamx.transforms.adam import AdamState, AmsgradState, adam, adamw, scale_by_adam
from adamx.transforms.residual import ResidualState, residual_params
from adamx.transforms.rounding import StochasticRoundState, stochastic_round
from adamx.transforms.schedules import inverse_time_decay

__all__ = [
    "AdamConfig",
    "AdamState",
    "AmsgradState",
    "EightBit",
    "EightBitMoment",
    "FusedOptimizer",
    "PackedAdamState",
    "PackedAmsgradState",
    "ResidualState",
    "StochasticRoundState",
    "__version__",
    "adam",
    "adamw",
    "checkpoint",
    "dequantize_moments",
    "describe_sharding",
    "from_numpy",
    "full_params",
    "fused_adam",
    "fused_adamw",
    "get_weights",
    "inverse_time_decay",
    "keras",
    "native",
    "pack",
    "quantize_moments",
    "reduce_scatter",
    "residual_params",
    "scale_by_adam",
    "set_weights",
    "split_params",
    "stochastic_round",
    "to_numpy",
    "unpack",
    "zero_sharding",
]


def __dir__() -> list[str]:
    return __all__
