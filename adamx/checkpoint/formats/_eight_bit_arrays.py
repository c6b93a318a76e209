"""Moments in 8 bits in a file: codes and scales as arrays, and what says how to read them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adamx.base.blockwise import CODE_VERSION, EightBitMoment, group_size
from adamx.base.coded import Coded, decode_coded, find_codes
from adamx.base.eight_bit import GROUPS, expected_forms
from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError

__all__ = ["PARTS", "describe_codes", "list_codes", "read_codes"]

PARTS = ("mu_codes", "mu_scales", "nu_codes", "nu_scales")
"""What stands before the slash in the names of these arrays."""


def list_codes(checkpoint: Checkpoint) -> dict[str, Coded]:
    """The codes of the variables whose moments have them."""
    found = {name: find_codes(m, checkpoint.nu[name]) for name, m in checkpoint.mu.items()}
    return {name: coded for name, coded in found.items() if coded is not None}


def describe_codes(codes: Mapping[str, Coded]) -> dict[str, Any]:
    """What `read_codes` has to know, as JSON takes it."""
    groups = {name: group_size(coded.nu) for name, coded in codes.items()}
    return {"version": CODE_VERSION, "groups": groups}


def read_codes(described: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The moments for which codes in a file stand, as arrays that remember them.

    They take four times the memory of their codes.

    Args:
      described: what `describe_codes` returned; None if the file has no such moments.
      arrays: all of the file, of which those with `PARTS` before the slash are read.

    Returns:
      float32 arrays with the keys `mu/<name>` and `nu/<name>`.

    Raises:
      CheckpointError: codes of another version; one array is missing, left over or misshapen, or
        has another dtype: the error names it.
    """
    described = {"version": CODE_VERSION, "groups": {}} if described is None else described
    groups = described.get("groups") if isinstance(described, Mapping) else None
    if not isinstance(groups, Mapping):
        raise CheckpointError(where="eight_bit", expected="a version, and groups by name")
    if described.get("version") != CODE_VERSION:
        raise CheckpointError(
            where="eight_bit",
            expected=f"moments in version {CODE_VERSION} of the code in 8 bits",
            found=f"version {described.get('version')!r:.20}",
            remedy="convert the file to .npz with the adamx that wrote it",
        )
    keys = [f"{part}/{name}" for name in groups for part in PARTS]
    left_over = sorted({key for key in arrays if key.partition("/")[0] in PARTS} - set(keys))
    if left_over:
        raise CheckpointError(
            where=listed(left_over), expected="only codes of the variables that have a group"
        )
    codes = {name: _check(name, group, arrays) for name, group in groups.items()}
    decoded = {}
    for name, coded in codes.items():
        for field, array in zip(("mu", "nu"), decode_coded(coded), strict=True):
            decoded[f"{field}/{name}"] = array
    return decoded


def _check(name: str, group: Any, arrays: Mapping[str, np.ndarray]) -> Coded:
    """The codes of one variable, if they fit together."""
    if type(group) is not int or group not in GROUPS:
        raise CheckpointError(
            where=f"eight_bit: {name}",
            expected=f"a group of {GROUPS[0]} to {GROUPS[-1]} elements, a power of two",
            found=f"{group!r:.40}",
        )
    parts = {f"{part}/{name}": arrays.get(f"{part}/{name}") for part in PARTS}
    for key, array in parts.items():
        if array is None:
            raise CheckpointError(
                where=key, expected="an array, as for all moments in 8 bits", found="none"
            )
    for field in ("mu", "nu"):
        if f"{field}/{name}" in arrays:
            raise CheckpointError(
                where=f"{field}/{name}", expected="codes alone, or this array", found="both"
            )
    found: list[Any] = list(parts.values())
    shape, other = found[0].shape, found[2].shape
    if shape != other:
        raise CheckpointError(
            where=f"{PARTS[0]}/{name}, {PARTS[2]}/{name}",
            expected="codes of one shape",
            found=f"{shape} and {other}",
        )
    if not shape or shape[-1] < group or 0 in shape:
        raise CheckpointError(
            where=f"{PARTS[0]}/{name}",
            expected=f"an array of at least {group} elements along the last axis",
            found=f"shape {shape}",
        )
    wanted = jax.tree.leaves(expected_forms(shape, group))
    for key, array, form in zip(parts, found, wanted, strict=True):
        if (array.shape, array.dtype) != (form.shape, form.dtype):
            raise CheckpointError(
                where=key,
                expected=f"{form.dtype} of shape {form.shape}, for groups of {group}",
                found=f"{array.dtype} of shape {array.shape}",
            )
    return Coded(EightBitMoment(*found[:2]), EightBitMoment(*found[2:]))
