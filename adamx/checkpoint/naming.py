"""How the names of a checkpoint's variables are known, in words."""

from collections import defaultdict

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError

__all__ = ["check_told", "describe_naming", "list_interchangeable"]


def list_interchangeable(checkpoint: Checkpoint) -> list[list[str]]:
    """Variables of one shape whose names were inferred: another order would give no error."""
    shapes = defaultdict(list)
    for name, array in checkpoint.mu.items():
        if checkpoint.naming[name] == "inferred":
            shapes[array.shape].append(name)
    return [names for names in shapes.values() if len(names) > 1]


def describe_naming(checkpoint: Checkpoint) -> str:
    """One line: whether the file tells the names, and what could be interchanged if not."""
    ways = list(checkpoint.naming.values())
    if all(how == "file" for how in ways):
        return "stored in the file"
    if all(how == "unknown" for how in ways):
        return "unknown: the file has only positions"
    inferred = sum(how == "inferred" for how in ways)
    counts = f"{inferred} of {len(ways)} inferred from the order of the model's weights"
    same = list_interchangeable(checkpoint)
    if not same:
        return f"{counts}; no two have the same shape"
    pairs = "; ".join(listed(names, most=4) for names in same[:3])
    more = f"; and {len(same) - 3} more shapes" if len(same) > 3 else ""
    return f"{counts}; of the same shape: {pairs}{more}"


def check_told(checkpoint: Checkpoint) -> None:
    """Raise unless the file tells the name of every variable."""
    if any(how != "file" for how in checkpoint.naming.values()):
        raise CheckpointError(
            where="names",
            expected="variables whose names are stored in the file",
            found=describe_naming(checkpoint),
            remedy="save the names in the program that has the model, with "
            "adamx.checkpoint.torch_names, and pass them: load(path).rename(names)",
            argument="strict",
        )
