"""Load the compiled kernel, and register it with XLA.

Nothing is loaded before a step is first compiled, or `status` is called.
"""

import ctypes
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from adamx.native.probe import find_fault, flushes_subnormals

__all__ = ["NORM", "STEP", "Status", "is_registered", "status"]

# The version of the kernel's arguments and attributes; see `kInterface` in ffi.cc.
_INTERFACE = 4
# The names under which XLA knows it.
STEP, NORM = f"adamx_step_v{_INTERFACE}", f"adamx_norm_v{_INTERFACE}"
_LIBRARY = "libadamx_native.so"


@dataclasses.dataclass(frozen=True)
class Status:
    """Whether the compiled kernel is used; as a boolean, `in_use`.

    Attributes:
      in_use: whether `adamx.fused_adam` calls it, where it applies.
      reason: why, or why not and what to do.
      instruction_set: the one that was chosen for this processor ("avx512", "avx2", "baseline");
        None where the kernel is not in use.
    """

    in_use: bool
    reason: str
    instruction_set: str | None = None

    def __bool__(self) -> bool:
        return self.in_use


def status() -> Status:
    """Whether the compiled kernel is in use and, if not, why.

    It does not initialise JAX's backends.

    Example:
      >>> import adamx
      >>> bool(adamx.native.status()) == adamx.native.status().in_use
      True
    """
    return _refused[0] if _refused else _loaded()[0]


def is_registered() -> bool:
    """Register the kernel with XLA as `STEP` and `NORM`, once; return whether it is registered.

    Compiling a step calls it. Call it before you load an executable that another process compiled.
    """
    return bool(_loaded()[0]) and _register()


@functools.cache
def _loaded() -> tuple[Status, ctypes.CDLL | None]:
    if os.environ.get("ADAMX_NATIVE") == "0":
        return Status(False, "turned off by the environment variable ADAMX_NATIVE=0"), None
    # An editable installation has the library in another folder than this file.
    paths = [Path(folder) / _LIBRARY for folder in sys.modules[__package__ or ""].__path__]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return Status(False, _why_absent([path.parent for path in paths])), None
    flushed_before = flushes_subnormals()
    try:
        library = ctypes.CDLL(str(path))
        compiled = library.adamx_ffi_major(), library.adamx_ffi_minor()
        interface = library.adamx_interface()
        _ = library.adamx_probe  # which older libraries do not have
        library.adamx_instruction_set.restype = ctypes.c_char_p
        instruction_set = library.adamx_instruction_set().decode()
    except (OSError, AttributeError) as error:
        return Status(False, f"{path} could not be loaded: {error}"), None
    if interface != _INTERFACE:
        reason = (
            f"{path} belongs to another version of adamx: expected interface {_INTERFACE}, found "
            f"{interface}. Reinstall adamx"
        )
        return Status(False, reason), None
    fault = None
    if flushes_subnormals() and not flushed_before:
        fault = "loading it makes subnormal numbers zero in the whole program"
    elif wrong := find_fault(library):
        fault = f"it computes wrong results: {wrong}"
    if fault is not None:
        reason = (
            f"{path} was compiled with flags such as -ffast-math: {fault}. Reinstall adamx without "
            "them in CXXFLAGS and LDFLAGS"
        )
        return Status(False, reason), None
    try:
        known = _ffi_version()
    except (OSError, KeyError) as error:
        return Status(False, f"jaxlib does not state its version of XLA's FFI: {error!r}"), None
    if compiled[0] != known[0] or compiled[1] > known[1]:
        reason = (
            f"compiled for version {_dotted(compiled)} of XLA's foreign function interface (FFI), "
            f"but jaxlib has {_dotted(known)}: reinstall adamx with this jaxlib installed"
        )
        return Status(False, reason), None
    return Status(True, f"{path.name}, compiled for {instruction_set}", instruction_set), library


def _why_absent(folders: Sequence[Path]) -> str:
    """Why there is no library, and what to do: wheels have no sources, checkouts no library."""
    sources = next((folder for folder in folders if (folder / "CMakeLists.txt").is_file()), None)
    if sources is not None:
        root = sources.parent.parent
        return (
            f"not compiled: adamx is imported from its source tree, {root}, which has no compiled "
            f"library. Run `pip install -e {root}`, which needs a C++ compiler, or start Python in "
            "another folder to use an installed adamx"
        )
    return (
        "not compiled: there was no C++ compiler when adamx was installed, or it failed. Install "
        "one, then reinstall adamx with `pip install --force-reinstall --no-deps --no-cache-dir -v`"
    )


def _ffi_version() -> tuple[int, int]:
    """The version of XLA's foreign function interface in jaxlib, read from its header.

    It is checked before anything is registered: a library that is too new fails only when the
    backend is initialised, and the backend fails with it.
    """
    header = Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h"
    numbers = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text()))
    return int(numbers["MAJOR"]), int(numbers["MINOR"])


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


_refused: list[Status] = []  # empty unless XLA refused the handler


@functools.cache
def _register() -> bool:
    library = _loaded()[1]
    assert library is not None
    try:
        for name, symbol in ((STEP, "adamx_step"), (NORM, "adamx_norm")):
            handler = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # XLA's own, of several types
        _refused.append(Status(False, f"XLA refused the kernel: {error}"))
    return not _refused
