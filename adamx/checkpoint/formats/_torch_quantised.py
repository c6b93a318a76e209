"""Moments that optimizers for torch keep in 8 or 4 bits, as float32.

bitsandbytes and torchao: an entry is a code's number in a table, times the scale of its block.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._torch_tensors import read_values, to_array
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.stand_ins import StandIn
from adamx.checkpoint.untrusted.torch_tensors import TensorStandIn

__all__ = ["dequantise_entry"]

_BITSANDBYTES = "__bnb_optimizer_quant_state__"
_BLOCKS = (256, 2048)  # entries; newer and older bitsandbytes


def dequantise_entry(
    where: str, entry: Mapping[str, Any], account: Account
) -> tuple[dict[str, Any], bool]:
    """The state of a parameter with moments under torch's keys; and whether they were quantised.

    Raises:
      CheckpointError: codes, tables and scales do not fit together, or are of an unknown kind.
    """
    new, changed = dict(entry), False
    within = new.pop(_BITSANDBYTES, None)
    if isinstance(within, Mapping):
        new |= within
    for scratch in ("max1", "max2", "new_max1", "new_max2", "gnorm_vec"):
        new.pop(scratch, None)
    if "state1" in new:
        for number, key in ((1, "exp_avg"), (2, "exp_avg_sq")):
            codes = new.pop(f"state{number}", None)
            table, scales = (new.pop(f"{kind}{number}", None) for kind in ("qmap", "absmax"))
            if codes is None:
                raise CheckpointError(where=where, expected=f"state{number}", found="none")
            if table is None:  # a small array, which is not quantised
                new[key] = codes
                continue
            changed = True
            new[key] = _look_up(f"{where}/state{number}", codes, table, scales, None, account)
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        kind = new[key].name if isinstance(new.get(key), StandIn | TensorStandIn) else ""
        if kind.rpartition(".")[2] == "OptimState8bit":
            parts = new[key].attributes
            codes, table, scales = (parts.get(part) for part in ("codes", "qmap", "scale"))
            block = parts.get("block_size")
            new[key] = _look_up(f"{where}/{key}", codes, table, scales, block, account)
            changed = True
        elif "OptimState" in kind:
            raise CheckpointError(
                where=f"{where}/{key}",
                expected="moments in 8 bits or more",
                found=kind,
                remedy="save optimizer states of torchao's 8-bit Adam or of torch's own",
            )
    return new, changed


def _look_up(
    where: str, codes: Any, table: Any, scales: Any, block: Any, account: Account
) -> np.ndarray:
    """The numbers that codes stand for."""
    arrays = {"codes": codes, "table": table, "scales": scales}
    for name, array in arrays.items():
        arrays[name] = to_array(f"{where} ({name})", array, account.size)
    read = read_values(arrays, account)
    codes, table, scales = (read[name] for name in ("codes", "table", "scales"))
    sizes = [block] if block is not None else _BLOCKS
    fitting = [
        size
        for size in sizes
        if type(size) is int and size > 0 and scales.shape == (-(-codes.size // size),)
    ]
    wide = np.dtype(np.float32)
    if codes.dtype != np.uint8 or table.shape != (256,) or {table.dtype, scales.dtype} != {wide}:
        raise CheckpointError(
            where=where,
            expected="codes of uint8, and 256 numbers and scales of float32",
            found=f"{codes.dtype}, {table.shape} {table.dtype}, {scales.dtype}",
        )
    if not fitting:
        raise CheckpointError(
            where=where,
            expected=f"a scale for each block of {_list_sizes(sizes)} of {codes.size} numbers",
            found=scales.shape,
        )
    account.allow(4 * codes.size)  # each code has one byte in the file, and four here
    account.spend(4 * codes.size)
    values = table[codes.reshape(-1)]
    values *= np.repeat(scales, fitting[0])[: codes.size]
    return values.reshape(codes.shape)


def _list_sizes(sizes: Any) -> str:
    return " or ".join(map(str, sizes))
