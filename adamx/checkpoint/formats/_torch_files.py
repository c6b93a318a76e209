"""Files of torch.save, in either of their forms."""

from pathlib import Path

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.untrusted.account import Account
from adamx.checkpoint.untrusted.torch_archive import (
    LEGACY_SIGNATURE,
    Saved,
    open_archive,
    open_legacy,
)
from adamx.checkpoint.untrusted.zip_reader import SIGNATURE

__all__ = ["open_saved"]


def open_saved(path: Path, account: Account) -> Saved:
    """What was saved; arrays stay in the file until somebody looks at them."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_SIGNATURE))
    if start.startswith(SIGNATURE):
        return open_archive(path, account=account)
    if start != LEGACY_SIGNATURE:
        raise CheckpointError("expected a file written by torch.save, found something else")
    return open_legacy(path, account)
