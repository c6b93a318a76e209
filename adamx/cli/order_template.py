"""The skeleton of a file for `--names`: a line for each variable, to be edited."""

from pathlib import Path

from adamx.base.trees import listed
from adamx.checkpoint import Checkpoint
from adamx.cli.output import make_printable

__all__ = ["write_order_template"]

_MOST_CANDIDATES = 4


def write_order_template(path: Path, checkpoint: Checkpoint, source: Path) -> None:
    """Write the names of the optimizer's variables in their order, with what is known of each.

    Args:
      path: of a new text file.
      checkpoint: what was read. An unknown name is a number; beside it are the names of the weights
        of the same shape, which are the candidates.
      source: the file that it was read from.
    """
    about = [
        f"The variables of {source}, in the optimizer's order.",
        "Write the name that the model's parameter has in training instead of each one here,",
        f"and pass this file to adamx with --names {path}. Text after a # is ignored.",
    ]
    lines = [f"# {line}" for line in about]
    for index, group in enumerate(checkpoint.groups):
        if len(checkpoint.groups) > 1:
            lines.append(f"# group {index}: weight_decay={group.config.weight_decay}")
        for name in group.names:
            lines.append(f"{name}  # {_describe(name, checkpoint)}")
    text = "\n".join(map(make_printable, lines))
    with path.open("x", encoding="utf-8") as file:
        file.write(f"{text}\n")


def _describe(name: str, checkpoint: Checkpoint) -> str:
    if name not in checkpoint.mu:
        return "no moments"
    shape = checkpoint.mu[name].shape
    same = [other for other, weight in checkpoint.params.items() if weight.shape == shape]
    is_unknown = checkpoint.naming[name] == "unknown"
    return f"{shape}, {listed(same, most=_MOST_CANDIDATES)}" if same and is_unknown else f"{shape}"
