"""What is looked at in a file of `torch.save`, most of it before torch opens it."""

import io
from pathlib import Path

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.pickle_scan import check_pickle, refuse_object
from adamx.checkpoint.untrusted.zip_reader import (
    SIGNATURE,
    Member,
    list_members,
    read_member,
    verify,
)

__all__ = ["LEGACY_SIGNATURE", "check_file", "check_real", "verify_members"]

# The magic number with which torch.save began before it wrote archives, pickled.
LEGACY_SIGNATURE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5
_SCRIPT = "constants.pkl"  # a member that archives of TorchScript have
_LEAST_PER_TENSOR = 100  # bytes, most of them in the pickle


def check_file(path: Path) -> bool:
    """Refuse what torch's loader trusts without looking; return whether the file is an archive."""
    size = path.stat().st_size
    account = Account(size)
    with path.open("rb") as file:
        if file.read(4) == SIGNATURE:
            _check_archive(path, account)
            return True
        file.seek(0)
        if file.read(len(LEGACY_SIGNATURE)) != LEGACY_SIGNATURE:
            raise CheckpointError("expected a file of torch.save, found something else")
        file.seek(0)
        storages: dict[str, int] = {}
        for _ in range(_LEGACY_PICKLES):
            storages |= check_pickle(file, account, size // _LEAST_PER_TENSOR)
        if sum(storages.values()) > size - file.tell():
            raise CheckpointError("its tensors claim more bytes than the file has")
    return False


def _check_archive(path: Path, account: Account) -> None:
    count, pickles = 0, []
    for member in list_members(path):
        if _last(member) == _SCRIPT:
            raise refuse_object("a program of TorchScript")
        count += 1
        pickles += [member] if _last(member) == "data.pkl" else []
    if len(pickles) != 1:
        raise CheckpointError(f"expected one data.pkl in the archive, found {len(pickles)}")
    account.spend(2 * pickles[0].size)  # torch reads it once more
    saved = io.BytesIO(read_member(path, pickles[0]))
    storages = check_pickle(saved, account, count)
    missing = set(storages)
    for member in list_members(path):
        key = _last(member)
        if storages.get(key, 0) > member.size:
            raise CheckpointError(
                f"{member.name}: expected {storages[key]} bytes, found {member.size}"
            )
        missing.discard(key)
    if missing:
        raise CheckpointError(f"the values of {len(missing)} tensors are not in the archive")


def verify_members(path: Path) -> None:
    """Raise unless the checksums of an archive are right."""
    for member in list_members(path):
        verify(path, member)


def _last(member: Member) -> str:
    """The last part of the name; torch's loader does not tell cases apart."""
    return member.name.lower().rpartition("/")[2]


def check_real(where: str, array: np.ndarray) -> None:
    """Refuse complex moments, which torch and adamx keep in different ways."""
    if np.iscomplexobj(array):
        raise CheckpointError(
            where=where,
            expected="real numbers",
            found=f"{array.dtype}: torch has a second moment for the real and the imaginary part "
            "of each, adamx one for both",
        )
