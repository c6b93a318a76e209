"""Folders as archives, and damage to their files that knows nothing of what is in them."""

import io
import zipfile
from pathlib import Path

import numpy as np

from tests.fuzz.mangling import mangled, pick

__all__ = [
    "EDITS",
    "Files",
    "emptied_file",
    "mangle",
    "pack",
    "pack_folder",
    "places",
    "removed_file",
    "removed_folder",
    "swapped_files",
    "unpack",
]

Files = dict[str, bytes]

_NEAR = 64  # bytes between the places that damage begins at


def pack_folder(folder: Path) -> bytes:
    """All files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return pack({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})


def unpack(content: bytes) -> Files:
    """The files by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(files: Files) -> bytes:
    """An archive of files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def places(content: bytes) -> np.ndarray:
    """Not of the archive: see `mangle`."""
    del content
    return np.zeros(0, int)


def mangle(content: bytes, places: np.ndarray, rng: np.random.RandomState) -> tuple[bytes, str]:
    """Bytes of one of the files changed."""
    del places
    files = unpack(content)
    name = pick(rng, [name for name, data in files.items() if data])
    starts = np.arange(0, len(files[name]), _NEAR)
    files[name], told = mangled(files[name], starts, rng)
    return pack(files), f"{name} {told}"


def removed_file(content: bytes, rng: np.random.RandomState) -> bytes:
    files = unpack(content)
    del files[pick(rng, files)]
    return pack(files)


def removed_folder(content: bytes, rng: np.random.RandomState) -> bytes:
    files = unpack(content)
    gone = pick(rng, files).rpartition("/")[0]
    return pack({name: data for name, data in files.items() if not name.startswith(f"{gone}/")})


def emptied_file(content: bytes, rng: np.random.RandomState) -> bytes:
    files = unpack(content)
    return pack({**files, pick(rng, files): b""})


def swapped_files(content: bytes, rng: np.random.RandomState) -> bytes:
    files = unpack(content)
    one, other = pick(rng, files), pick(rng, files)
    return pack({**files, one: files[other], other: files[one]})


EDITS = (removed_file, removed_folder, emptied_file, swapped_files)
