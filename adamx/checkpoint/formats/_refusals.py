"""What to do where a format's framework cannot express a configuration."""

import math
from collections.abc import Mapping

from adamx.base.errors import AdamxError
from adamx.checkpoint.errors import CheckpointError, convert_error
from adamx.checkpoint.frameworks import FRAMEWORKS, Framework
from adamx.config.groups import ParameterGroup

__all__ = ["OTHER_CONFIG", "explain_refusal", "suggest_config"]

OTHER_CONFIG = "To continue with other hyperparameters, pass config="


def explain_refusal(
    error: AdamxError,
    group: ParameterGroup,
    framework: Framework,
    remedies: Mapping[str, str] | None = None,
) -> CheckpointError:
    """The error for a field that a framework cannot express, with what to do about it.

    Args:
      error: of `AdamConfig.to_keras` or `to_torch`; its `where` is the field.
      group: that was to be written.
      framework: that cannot express it.
      remedies: by field, what to do.
    """
    if error.where == "convention":
        return convert_error(error, remedy=_explain_convention(group, framework))
    remedy = (remedies or {}).get(error.where, error.remedy)
    return convert_error(error, remedy=remedy, argument="checkpoint")


def _explain_convention(group: ParameterGroup, framework: Framework) -> str:
    """How to accept the other epsilon, and the one that comes closest at this step."""
    config, convention = group.config, FRAMEWORKS[framework].convention
    correction = math.sqrt(-math.expm1(group.count * math.log(config.b2))) if config.b2 else 1
    eps = config.eps / correction if convention == "torch" else config.eps * correction
    return (
        "Epsilon is placed differently there. To accept slightly different steps, use "
        "dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, "
        f'convention="{convention}")), or `adamx convert --set convention={convention}`. At this '
        f"step eps={eps:.3g} there has the effect of eps={config.eps:.3g} here"
    )


def suggest_config(error: Exception, **fields: str) -> CheckpointError:
    """The error for hyperparameters in a file that `AdamConfig` refuses."""
    own = convert_error(error, **fields)
    return own.replace(
        remedy=". ".join(filter(None, [own.remedy, OTHER_CONFIG])), argument="config"
    )
