"""The moments of a run in JAX as `numpy.savez` writes what `adamx.to_numpy` returned."""

import io
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from struct import unpack_from

import numpy as np

from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.consistency import check_amsgrad
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._counts import read_count
from adamx.checkpoint.trees import MOMENTS, name_moment
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE, Member, list_members, open_member

__all__ = ["NumpyNpz"]

_SUFFIX = ".npy"
_VERSION = b"\x93NUMPY\x01\x00"
# As numpy.save writes it; a dtype of numbers, since others may be pickles.
_HEADER = re.compile(
    rb"\{'descr': '([<>|][iufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), \} *\n"
)
_PER_ARRAY = 400  # bytes of memory that an array takes beside its numbers


class NumpyNpz(FileFormat):
    """`count`, `mu/<path>`, `nu/<path>`, `nu_max/<path>`; of one array alone `mu` and `nu`."""

    name = "npz"
    title = "NumPy, adamx.to_numpy alone"
    names = "told"
    suffixes = (".npz",)
    holds_config = False

    def matches(self, head: Head) -> bool:
        """Whether an archive begins with an array."""
        if not head.start.startswith(SIGNATURE) or len(head.start) < 30:
            return False
        end = 30 + unpack_from("<H", head.start, 26)[0]
        return head.start[30:end].endswith(_SUFFIX.encode())

    def check(self, checkpoint: Checkpoint, template: Source | None) -> None:
        """Raise for a layout, which the file could not tell."""
        del template
        if checkpoint.transformed:
            raise CheckpointError(
                where="layout",
                expected="arrays in the layout of the tree",
                found="those that layout= of from_state changed",
                remedy="omit layout=, or save as .safetensors, which records the change",
                argument="layout",
            )

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read all arrays, stored or deflated."""
        del values  # there are no templates
        config = source.config
        assert config is not None  # holds_config is False
        account = Account(source.path.stat().st_size)
        found = _list_arrays(source.path, account)
        fields: dict[str, dict[str, np.ndarray]] = {field: {} for field in ("count", *MOMENTS)}
        with source.path.open("rb") as file:
            for key in list(found):
                field, _, name = key.partition("/")
                array = _read_array(file, found.pop(key))
                if array.dtype.kind not in ("iu" if field == "count" else "fc"):
                    kind = "a whole number" if field == "count" else "floating-point numbers"
                    raise CheckpointError(where=key, expected=kind, found=array.dtype)
                fields[field][name] = array
                if source.progress:
                    source.progress(array.nbytes)
        check_amsgrad(bool(fields["nu_max"]), config)
        return Checkpoint(
            framework="jax",
            version=None,
            config=config,
            count=read_count("count", fields.pop("count")[""]),
            names=tuple(fields["mu"]),
            params={},
            mu=fields["mu"],
            nu=fields["nu"],
            nu_max=fields["nu_max"],
            ordered=False,  # trees are sorted
        )

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write count and moments; bfloat16, which NumPy lacks, as float32."""
        del template
        narrow = new.count <= np.iinfo(np.int32).max
        arrays = {"count": np.asarray(new.count, np.int32 if narrow else np.int64)}
        for field in MOMENTS:
            for name, array in getattr(new, field).items():
                own = array if array.dtype.isbuiltin == 1 else array.astype(np.float32)
                arrays[name_moment(field, name)] = own
        with target.path.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        if target.progress:
            target.progress(target.path.stat().st_size)
        return [*(f"params/{name}" for name in new.params), *new.extra, "config"]


def _list_arrays(path: Path, account: Account) -> dict[str, Member]:
    """The members of the archive by the name of their array; their memory is charged."""
    found: dict[str, Member] = {}
    for member in list_members(path, deflated=True):
        account.spend(_PER_ARRAY + member.size)
        key = member.name.removesuffix(_SUFFIX)
        if key in found:
            raise CheckpointError(f"the archive has two members called {member.name}")
        found[key] = member
    others = [key for key in found if key != "count" and key.partition("/")[0] not in MOMENTS]
    if others or not {"count", "mu", "nu"} <= {key.partition("/")[0] for key in found}:
        raise CheckpointError(
            expected="the arrays of adamx.to_numpy: count, mu/<path>, nu/<path>",
            found=listed(others or found) or "none",
        )
    return found


def _read_array(file: io.BufferedReader, member: Member) -> np.ndarray:
    """An array, in the machine's byte order, whose checksum is right."""
    content = open_member(file, member)
    start = content.read(10)
    header = content.read(int.from_bytes(start[8:], "little"))
    match = _HEADER.fullmatch(header)
    if not start.startswith(_VERSION) or match is None:
        shown = header.decode("latin1").strip()
        raise CheckpointError(
            where=member.name,
            expected="an array of numbers as numpy.savez writes it",
            found=f"{shown:.100}" or "something else",
        )
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(part) for part in match[3].split(b",") if part.strip())
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != member.size - len(start) - len(header):
        raise CheckpointError(
            where=member.name,
            expected=f"{nbytes} bytes for shape {shape}",
            found=member.size - len(start) - len(header),
        )
    data = bytearray(nbytes)
    if content.readinto(data) != nbytes:
        raise ValueError(f"{member.name}: the archive ends too early")
    if content.read(1) or zlib.crc32(data, zlib.crc32(start + header)) != member.checksum:
        raise ValueError(f"{member.name}: the checksum is wrong")
    array = np.ndarray(shape, dtype, data, order="F" if match[2] == b"True" else "C")
    return array if dtype.isnative else array.byteswap(True).view(dtype.newbyteorder("="))


register(NumpyNpz())
