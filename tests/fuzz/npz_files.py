"""`.npz` files: damage to arrays and their headers, with checksums that are right."""

import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adamx.checkpoint import load, save
from tests.fuzz import archives
from tests.fuzz.mangling import mangled, pick

__all__ = ["EDITS", "as_npz", "as_packed_npz", "damaged_within", "enlarged"]

Edit = Callable[[bytes, np.random.RandomState], bytes]

_HEADER = 128  # bytes, of most arrays


def as_npz(content: bytes) -> bytes:
    """The moments in a `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old.keras"), Path(folder, "new.npz")
        old.write_bytes(content)
        save(new, load(old))
        return new.read_bytes()


def as_packed_npz(content: bytes) -> bytes:
    """The same as `numpy.savez_compressed` writes it."""
    stream = io.BytesIO()
    with np.load(io.BytesIO(as_npz(content))) as arrays:
        np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def enlarged(content: bytes, size: int) -> bytes:
    """With one variable more, of that size."""
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    with np.load(io.BytesIO(content)) as arrays:
        more = {key: rng.random(size // 8, np.float32) for key in ("mu/large", "nu/large")}
        np.savez(stream, **arrays, **more)
    return stream.getvalue()


def damaged_within(content: bytes, rng: np.random.RandomState) -> tuple[bytes, str]:
    """Bytes of a member changed."""
    parts = archives.members(content)
    name = pick(rng, parts)
    starts = np.arange(min(_HEADER, len(parts[name])))
    parts[name], told = mangled(parts[name], starts, rng)
    return archives.packed(parts, _any_method(rng)), f"{name} {told}"


def strange_header(content: bytes, rng: np.random.RandomState) -> bytes:
    """A dtype, a shape or an order that is not that of the numbers, or none at all."""
    dtypes = ["'<f4'", "'|O'", "'<f8'", "'>f4'", "'<c8'", "'<U4'", "[('a', '<f4')]", "'<f0'"]
    descr = pick(rng, dtypes)
    shape = pick(rng, ["(8,)", "()", "(1099511627776, 1099511627776)", "(0, 9999999999999999999)"])
    shape = pick(rng, [shape, "(-1,)", f"({'1, ' * 99})", "x" * 60_000, "(0,)", "((8,),)"])
    order = pick(rng, ["True", "False", "None"])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return _with_member(content, rng, lambda part: _join(text, part[_HEADER:]))


def strange_version(content: bytes, rng: np.random.RandomState) -> bytes:
    version = bytes(rng.randint(0, 4, 2).tolist())
    return _with_member(content, rng, lambda part: part[:6] + version + part[8:])


def lying_header_size(content: bytes, rng: np.random.RandomState) -> bytes:
    size = pick(rng, [0, 1, 127, 129, 0xFFFF]).to_bytes(2, "little")
    return _with_member(content, rng, lambda part: part[:8] + size + part[10:])


def pickled(content: bytes, rng: np.random.RandomState) -> bytes:
    """An array of objects, which numpy.load would not make without being asked to either."""
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    return _with_member(content, rng, lambda _: stream.getvalue())


def renamed(content: bytes, rng: np.random.RandomState) -> bytes:
    parts = archives.members(content)
    names = ["count", "mu", "nu.npy", "mu/.npy", "/.npy", "x.npy", "\x1b[31m.npy"]
    names.append("mu/" + "a/" * 30_000)
    old = pick(rng, parts)
    return archives.packed({pick(rng, names) if n == old else n: x for n, x in parts.items()})


def strange_values(content: bytes, rng: np.random.RandomState) -> bytes:
    """An array of another kind or shape, written as NumPy does."""
    values = [np.ones(3), np.ones((2, 2), int), np.array("text"), np.array(-1), np.array(np.nan)]
    stream = io.BytesIO()
    np.save(stream, pick(rng, values))
    return _with_member(content, rng, lambda _: stream.getvalue())


def deflated_zeros(content: bytes, rng: np.random.RandomState) -> bytes:
    """An array that deflates to next to nothing."""
    parts = archives.members(content)
    stream = io.BytesIO()
    np.save(stream, np.zeros(1 << 24, np.uint8))
    parts[pick(rng, parts)] = stream.getvalue()
    return archives.packed(parts, zipfile.ZIP_DEFLATED)


EDITS: tuple[Edit, ...] = (
    *archives.EDITS,
    strange_header,
    strange_version,
    lying_header_size,
    pickled,
    renamed,
    strange_values,
    deflated_zeros,
)


def _with_member(
    content: bytes, rng: np.random.RandomState, change: Callable[[bytes], bytes]
) -> bytes:
    parts = archives.members(content)
    name = pick(rng, parts)
    return archives.packed({**parts, name: change(parts[name])}, _any_method(rng))


def _join(header: bytes, data: bytes) -> bytes:
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + data


def _any_method(rng: np.random.RandomState) -> int:
    return pick(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
