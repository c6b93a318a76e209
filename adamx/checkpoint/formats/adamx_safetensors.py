"""adamx's own file: safetensors, with all of a checkpoint and a checksum over every byte."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import Naming
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._eight_bit_arrays import (
    PARTS,
    describe_codes,
    list_codes,
    read_codes,
)
from adamx.checkpoint.formats._groups_json import read_groups, write_groups
from adamx.checkpoint.frameworks import Framework
from adamx.checkpoint.untrusted.account import Account, Progress, parse_json
from adamx.checkpoint.untrusted.safetensors_file import HEADER_START, read_header

__all__ = ["Safetensors"]

_VERSION = 2  # 1 had one group, and neither naming nor remarks
_WITH_CODES = 3  # has moments in 8 bits, too
_ARRAYS = ("params", "mu", "nu", "nu_max", "extra")
_BLANK = "0" * 64  # instead of the checksum while it is computed
_BLOCK = 1 << 22


class Safetensors(FileFormat):
    """A safetensors file that describes itself.

    The header's metadata are `format` ("adamx"), `checkpoint`, a JSON object with what is no array,
    and `sha256`: of the whole file with 64 zeros instead of the checksum itself.
    """

    name = "safetensors"
    title = "adamx"
    names = "told"
    suffixes = (".safetensors",)
    extra = "checkpoint"
    packages = ("safetensors",)

    def matches(self, head: Head) -> bool:
        """Whether a JSON object follows a length that is below the file's size."""
        length = int.from_bytes(head.start[:HEADER_START], "little")
        return head.start[HEADER_START : HEADER_START + 1] == b"{" and length < head.size

    def check(self, checkpoint: Checkpoint, template: Source | None) -> None:
        """Raise unless the configuration can be written down."""
        del template
        write_groups(checkpoint.groups)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read what `write` wrote; arrays are always read."""
        del values
        from safetensors import safe_open

        account = _check_header(source.path)
        with (
            safe_open(source.path, framework="numpy", backend="pread") as file,
            ThreadPoolExecutor(1) as pool,
        ):
            metadata = file.metadata() or {}
            if metadata.get("format") != "adamx":
                raise CheckpointError(
                    expected="a .safetensors file written by adamx",
                    found="one of another program: it holds weights, but no optimizer state that "
                    "adamx knows",
                    remedy="use the file with the optimizer's state, such as optimizer.pt, or the "
                    "folder that has it and the weights",
                )
            written = metadata.get("sha256", "")
            check = pool.submit(_compute_checksum, source.path, written, source.progress)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if check.result()[0] != written:
                raise CheckpointError(
                    "the checksum is wrong: the file was damaged after it was written"
                )
        described = parse_json(metadata["checkpoint"], account)
        if described["version"] not in (1, _VERSION, _WITH_CODES):
            raise CheckpointError(
                expected=f"a version of the format up to {_WITH_CODES}",
                found=f"{described['version']!r:.20}",
                remedy="use a newer adamx",
            )
        _check_described(described, arrays)
        decoded = read_codes(described.get("eight_bit"), arrays)
        fields: dict[str, Any] = {field: {} for field in _ARRAYS}
        for key in described["arrays"]:
            field, _, name = key.partition("/")
            if field not in PARTS:
                fields[field][name] = arrays[key]
            elif field.endswith("_codes"):
                moment = field.removesuffix("_codes")
                fields[moment][name] = decoded[f"{moment}/{name}"]
        return Checkpoint(
            framework=described["framework"],
            version=described["framework_version"],
            groups=read_groups(described),
            naming=described.get("naming") or _guess_naming(described),
            transformed=described["transformed"],
            ordered=described.get("ordered", described["framework"] != "jax"),
            quantised=described.get("quantised", False),
            not_read=described.get("not_read", ()),
            notes=described.get("notes", ()),
            **fields,
        )

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write all of a checkpoint."""
        del template
        from safetensors.numpy import save_file

        codes, arrays = list_codes(new), {}
        for field in _ARRAYS:
            for name, array in getattr(new, field).items():
                parts = {field: array}
                if name in codes and field in ("mu", "nu"):
                    moment = getattr(codes[name], field)
                    parts = {f"{field}_{part}": x for part, x in moment._asdict().items()}
                for part, x in parts.items():
                    arrays[f"{part}/{name}"] = np.ascontiguousarray(x).reshape(x.shape)
        described = {
            "version": _WITH_CODES if codes else _VERSION,
            "framework": new.framework,
            "framework_version": new.version,
            "groups": write_groups(new.groups),
            "naming": dict(new.naming),
            "transformed": new.transformed,
            "ordered": new.ordered,
            "quantised": new.quantised,
            "not_read": list(new.not_read),
            "notes": list(new.notes),
            "arrays": list(arrays),
        } | ({"eight_bit": describe_codes(codes)} if codes else {})
        metadata = {
            "format": "adamx",
            "checkpoint": json.dumps(described, allow_nan=False),
            "sha256": _BLANK,
        }
        save_file(arrays, target.path, metadata)
        with target.path.open("r+b") as file, ThreadPoolExecutor(1) as pool:
            pool.submit(os.fsync, file.fileno())  # the disk is busy while the checksum is computed
            digest, start = _compute_checksum(target.path, _BLANK, target.progress)
            file.seek(start)
            file.write(digest.encode())
        return []


def _check_header(path: Path) -> Account:
    """Raise if the header is not in the file, or takes too much memory; return what is left."""
    size = path.stat().st_size
    account = Account(size)
    header = read_header(path, account)
    account.spend(size - HEADER_START - len(header))
    return account


def _check_described(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise unless what is no array has the right types, and names every array once."""
    remarks = [*described.get("not_read", ()), *described.get("notes", ())]
    texts = [described["framework"], *described["arrays"], *remarks]
    if not all(isinstance(text, str) for text in texts):
        raise CheckpointError("expected strings as names and notes")
    for flag in ("transformed", "ordered", "quantised"):
        if not isinstance(described.get(flag, True), bool):
            raise CheckpointError(where=flag, expected="true or false")
    if not set(described.get("naming", {}).values()) <= set(get_args(Naming)):
        raise CheckpointError(where="naming", expected=f"one of {get_args(Naming)} for each name")
    if described["framework"] not in get_args(Framework):
        raise CheckpointError(f"expected a framework, found {described['framework']!r:.80}")
    if len(described["arrays"]) != len(arrays) or set(described["arrays"]) != arrays.keys():
        raise CheckpointError("expected the arrays that the file lists, found others")


def _guess_naming(described: Mapping[str, Any]) -> dict[str, Naming]:
    """Version 1 did not tell how names were known: those of torch may have been inferred."""
    if described["framework"] != "torch" or "names" not in described:
        return {}
    return {name: "inferred" for name in described["names"] if not name.isdecimal()}


def _compute_checksum(path: Path, written: str, progress: Progress | None) -> tuple[str, int]:
    """The checksum, with zeros instead of the one `written`; and where that begins."""
    marker = f'"sha256":"{written}"'.encode()
    with path.open("rb") as file:
        length = file.read(HEADER_START)
        header = file.read(min(int.from_bytes(length, "little"), path.stat().st_size))
        if len(written) != len(_BLANK) or header.count(marker) != 1:
            raise CheckpointError("the file's header has no checksum: it was damaged or changed")
        start = header.index(marker) + len(marker) - len(_BLANK) - 1
        digest = hashlib.sha256(length + header[:start] + _BLANK.encode())
        digest.update(header[start + len(_BLANK) :])
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest(), HEADER_START + start


register(Safetensors())
