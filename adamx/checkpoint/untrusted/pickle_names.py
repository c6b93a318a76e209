"""Which names in a pickle are refused, and which are known."""

from adamx.checkpoint.errors import CheckpointError

__all__ = ["is_refused", "refuse_object"]

_REFUSED = (
    "__builtin__",
    "builtins",
    "nt",
    "os",
    "posix",
    "runpy",
    "subprocess",
    "sys",
    "torch",
    "torch.hub",
    "torch.storage",
)
"""Modules of which nothing may be called. A stand-in makes them harmless, too. But what calls them
was made to do harm, or is no object that somebody has beside a state dict."""

# Of those modules what makes plain values, exceptions and objects of torch.
_HARMLESS = frozenset(
    [
        *["bool", "bytearray", "dict", "float", "frozenset", "getattr", "int", "list", "object"],
        *["property", "range", "set", "slice", "str", "super", "tuple", "type", "xrange"],
        *["Generator", "Size", "_load_from_bytes", "device"],
    ]
)


def is_refused(module: str, name: str) -> bool:
    """Whether a pickle that calls this is refused as malicious."""
    if module not in _REFUSED or name in _HARMLESS:
        return False
    return not name.endswith(("Error", "Exception", "Warning"))


def refuse_object(
    name: str, expected: str = "tensors in plain dictionaries and lists"
) -> CheckpointError:
    """The error for what no state dict holds, and what is therefore not made."""
    return CheckpointError(
        expected=expected,
        found=name,
        remedy="Other objects are not loaded, since loading them may execute code. Save only the "
        "state dicts: torch.save({'model': model.state_dict(), 'optimizer': "
        "optimizer.state_dict()}, path)",
    )
