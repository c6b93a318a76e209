"""Which names in a pickle are refused, and which are known."""

from adamx.checkpoint.errors import CheckpointError

__all__ = [
    "BYTES",
    "COMPLEX",
    "CONTAINERS",
    "ITEM_SIZES",
    "NUMBERS",
    "NUMPY_SCALARS",
    "OBJECTS",
    "REFUSED",
    "SETS",
    "TENSORS",
    "TORCH_OBJECTS",
    "is_refused",
    "refuse_object",
]

ITEM_SIZES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch ComplexFloatStorage": 8,
    "torch ComplexDoubleStorage": 16,
    "torch.storage UntypedStorage": 1,
}
TENSORS = [f"torch._utils _rebuild_tensor{version}" for version in ("", "_v2", "_v3")]
CONTAINERS = ["collections Counter", "collections OrderedDict", "collections defaultdict"]
OBJECTS = [
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor",
    "torch.serialization _get_layout",
]
TORCH_OBJECTS = frozenset([*TENSORS, *OBJECTS, "torch.storage UntypedStorage"])
"""What of torch is called, and the one kind of storage that is named by its class."""

NUMPY_SCALARS = ("numpy._core.multiarray scalar", "numpy.core.multiarray scalar")
"""What NumPy 2 and 1 call what makes a number of theirs."""

SETS = ["__builtin__ frozenset", "__builtin__ set", "builtins frozenset", "builtins set"]
COMPLEX = ["__builtin__ complex", "builtins complex"]
BYTES = ["__builtin__ bytes", "builtins bytes"]

REFUSED = (
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

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
"""NumPy's codes of kinds of number."""

# Of those modules what makes plain values, exceptions and objects of torch.
_HARMLESS = frozenset(
    [
        *["bool", "bytearray", "dict", "float", "frozenset", "getattr", "int", "list", "object"],
        *["property", "range", "set", "slice", "str", "super", "tuple", "type"],
        *["Generator", "Size", "_load_from_bytes", "device"],
    ]
)


def is_refused(module: str, name: str) -> bool:
    """Whether a pickle that calls this was made to do harm."""
    if module not in REFUSED or name in _HARMLESS:
        return False
    return not name.endswith(("Error", "Exception", "Warning"))


def refuse_object(
    name: str, expected: str = "tensors in plain dictionaries and lists"
) -> CheckpointError:
    """The error for what no state dict holds, and what is therefore not made."""
    return CheckpointError(
        expected=expected,
        found=name,
        remedy="Other objects are not loaded, since loading them may execute code. Save the state "
        "dicts alone: torch.save({'model': model.state_dict(), 'optimizer': "
        "optimizer.state_dict()}, path)",
    )
