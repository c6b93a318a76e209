"""What the names in a pickle of `torch.save` stand for, each a module and a name in it."""

__all__ = [
    "BYTES",
    "COMPLEX",
    "CONTAINERS",
    "ITEM_SIZES",
    "NUMPY_SCALARS",
    "OBJECTS",
    "REFUSED",
    "SETS",
    "TENSORS",
    "TORCH_OBJECTS",
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

# Placeholders make these modules harmless, too. But what calls them was made to do harm, or is no
# object that somebody has beside a state dict.
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
