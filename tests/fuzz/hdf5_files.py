"""HDF5 files: where their structures are, larger ones, and those that somebody made to do harm."""

import io
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from adamx.checkpoint.files import plain_text

__all__ = ["EDITS", "enlarged", "in_new_format", "places", "with_edit"]

Edit = Callable[[h5py.File, np.random.RandomState], None]

_SIGNATURES = rb"TREE|HEAP|SNOD|GCOL|OHDR|OCHK|FRHP|FHDB|FHIB|FSHD|FSSE|BTHD|BTLF|BTIN"
_TEBI = 1 << 20  # squared: the entries of an array that is said to have terabytes


def places(content: bytes) -> np.ndarray:
    """Where structures begin."""
    found = [match.start() for match in re.finditer(_SIGNATURES, content)]
    found += [match.start() - 40 for match in re.finditer(rb"weight_names|layer_names", content)]
    found += [match.start() - 40 for match in re.finditer(rb"(training|model)_config", content)]
    with h5py.File(io.BytesIO(content)) as file:
        for path in [*_groups(file), *_datasets(file)]:
            address = h5py.h5o.get_info(file[path].id).addr
            found += [address, address + 96, address + 192]
    found += [*range(0, 2048, 96), *range(len(content) - 4096, len(content), 96)]
    return np.clip(found, 0, len(content) - 1)


def enlarged(content: bytes, size: int) -> bytes:
    """The same variables, each with so many more columns that the file gets that size."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        arrays = {path: file[path][()] for path in _datasets(file)}
        times = 1 + size // sum(array.nbytes for array in arrays.values())
        for path, array in arrays.items():
            if array.size > 1:
                _replace(file, path, np.tile(array, times))
    return stream.getvalue()


def in_new_format(content: bytes) -> bytes:
    """With the structures that HDF5 has had since 1.8, which Keras does not write."""
    stream = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as old, h5py.File(stream, "w", libver="latest") as new:
        new.attrs.update(old.attrs)
        for name in old:
            old.copy(name, new)
    return stream.getvalue()


def with_edit(edit: Edit) -> Callable[[bytes, np.random.RandomState], bytes]:
    """A function of the file's content."""

    def edited(content: bytes, rng: np.random.RandomState) -> bytes:
        stream = io.BytesIO(content)
        with h5py.File(stream, "r+") as file:
            edit(file, rng)
        return stream.getvalue()

    edited.__name__ = edit.__name__
    return edited


def wrong_shape(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = _any_array(file, rng)
    shapes = [array.T, array[None], array.ravel()[:-1], array.ravel(), np.zeros((0, *array.shape))]
    _replace(file, path, shapes[rng.randint(len(shapes))])


def wrong_dtype(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = _any_array(file, rng)
    dtypes = ["<f2", ">f4", "<f8", "<i4", ">i8", "<u1", "S8", "?", "<c8", "V4", "i4,f4", "3<f4"]
    dtype = np.dtype(dtypes[rng.randint(len(dtypes))])
    _replace(file, path, np.zeros(array.shape, dtype))


def wrong_bfloat16(file: h5py.File, rng: np.random.RandomState) -> None:
    path, _ = _any_array(file, rng)
    values = [b"bfloat16", "bfloat16", np.arange(3), np.arange(4096) + 0.5, h5py.Empty("S8")]
    file[path].attrs["dtype"] = values[rng.randint(len(values))]


def odd_number(file: h5py.File, rng: np.random.RandomState) -> None:
    """A number of 3 bytes."""
    path, array = _any_array(file, rng)
    del file[path]
    if rng.rand() < 0.5:
        dtype = h5py.h5t.IEEE_F32LE.copy()
        dtype.set_fields(23, 15, 8, 0, 15)
        dtype.set_precision(24)
    else:
        dtype = h5py.h5t.STD_I32LE.copy()
    dtype.set_size(3)
    space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, path.encode(), dtype, space)


def wrong_numbers(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = _any_array(file, rng)
    values = [np.nan, -1.0, np.inf, 1e30, 0.5, 2.0**31, 2.0**53]
    with np.errstate(all="ignore"):
        file[path][...] = np.full(array.shape, values[rng.randint(len(values))])


def wrong_steps(file: h5py.File, rng: np.random.RandomState) -> None:
    paths = [path for path in _datasets(file) if re.search(r"iter|vars/0$", path)]
    values = [-1, 2**31, 2**62, -(2**63), np.nan, -0.5, np.inf, np.array([1, 2]), np.array([30])]
    _replace(file, _pick(rng, paths), np.asarray(values[rng.randint(len(values))]))


def removed(file: h5py.File, rng: np.random.RandomState) -> None:
    del file[_any_path(file, rng)]


def moved(file: h5py.File, rng: np.random.RandomState) -> None:
    one, other = _any_dataset(file, rng), _any_dataset(file, rng)
    if one != other:
        file.move(one, "put_by")
        file.move(other, one)
        file.move("put_by", other)


def renamed(file: h5py.File, rng: np.random.RandomState) -> None:
    names = ["99", "007", "-1", "x" * 60_000, "\x1b[31m", b"\xff\xfe", "vars", "१", "0 "]
    path = _any_dataset(file, rng)
    file[path].parent.move(path.rpartition("/")[2], _pick(rng, names))


def swapped_names(file: h5py.File, rng: np.random.RandomState) -> None:
    owner, name, names = _any_names(file, rng)
    rng.shuffle(names)
    owner.attrs[name] = names


def strange_names(file: h5py.File, rng: np.random.RandomState) -> None:
    owner, name, names = _any_names(file, rng)
    values: list[Any] = [
        names[:1] * len(names),
        names[:-1],
        [*names, "missing"],
        [f"../{n}" for n in names],
        ["", *names[1:]],
        ["/", *names[1:]],
        ["."] * 2,
        names[0],
        np.arange(17),
        np.zeros((3, 0)),
        np.asarray(names, "S").reshape(1, -1),
        np.array([b"\xff\xfe"] * len(names)),
        ["\x1b[31m" + "x" * 5000 + n for n in names],
        h5py.Empty("S10"),
        np.zeros(3, "i4,S4"),
        np.nan,
    ]
    owner.attrs[name] = values[rng.randint(len(values))]


def many_names(file: h5py.File, rng: np.random.RandomState) -> None:
    """Short names, each of which takes more memory than its byte."""
    owner, name, _ = _any_names(file, rng)
    if rng.rand() < 0.5:
        owner.attrs[name] = np.full(60_000, b"a", "S1")
        return
    owner.attrs.pop(name, None)
    for index in range(200):
        owner.attrs[f"{name}{index}"] = np.full(60_000, b"a", "S1")


def claimed_chunked(file: h5py.File, rng: np.random.RandomState) -> None:
    """Terabytes of which no chunk was written."""
    path = _any_dataset(file, rng)
    del file[path]
    file.create_dataset(path, (_TEBI, _TEBI), "f4", chunks=(64, 64), fillvalue=1)


def claimed_contiguous(file: h5py.File, rng: np.random.RandomState) -> None:
    """Terabytes for which no place in the file was taken."""
    path = _any_dataset(file, rng)
    del file[path]
    shapes = [(_TEBI, _TEBI), (1 << 60,), (1 << 40,), (2,) * 32, (1 << 33,)]
    shape = shapes[rng.randint(len(shapes))]
    h5py.h5d.create(
        file.id, path.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape)
    )


def compressed(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = _any_array(file, rng)
    if array.size > 1:
        del file[path]
        file.create_dataset(path, data=array, compression="gzip", shuffle=True)


def chunked_bomb(file: h5py.File, rng: np.random.RandomState) -> None:
    """Zeros that deflate to next to nothing."""
    path = _any_dataset(file, rng)
    del file[path]
    file.create_dataset(path, data=np.zeros(1 << 22, "f4"), compression="gzip", chunks=True)


def external_link(file: h5py.File, rng: np.random.RandomState) -> None:
    path = _any_path(file, rng)
    del file[path]
    file[path] = h5py.ExternalLink(_pick(rng, ["/etc/passwd", "/dev/zero", "even.h5"]), "/")


def soft_link(file: h5py.File, rng: np.random.RandomState) -> None:
    """To itself, to the root, or to another dataset."""
    path = _any_path(file, rng)
    target = _pick(rng, [f"/{path}", "/", f"/{_any_dataset(file, rng)}"])
    del file[path]
    file[path] = h5py.SoftLink(target)


def hard_link_cycle(file: h5py.File, rng: np.random.RandomState) -> None:
    paths = [*_groups(file)]
    file[_pick(rng, paths)]["again"] = file[_pick(rng, ["/", *paths])]


def hard_link_web(file: h5py.File, rng: np.random.RandomState) -> None:
    """Groups with two ways to the next, 40 times: 2 ** 40 paths."""
    group = file[_pick(rng, [*_groups(file)])]
    for _ in range(40):
        group = group.create_group("a")
        group.parent["b"] = group


def overlapping(file: h5py.File, rng: np.random.RandomState) -> None:
    """Many names of one dataset."""
    path = max(_datasets(file), key=lambda path: file[path].nbytes)
    group = file[path].parent
    for index in range(300):
        group[str(20 + index)] = file[path]
    owner, name, names = _any_names(file, rng)
    if name == "weight_names":
        owner.attrs[name] = [*names, *(str(20 + index) for index in range(300))]


def deep(file: h5py.File, rng: np.random.RandomState) -> None:
    group = file[_pick(rng, [*_groups(file)])]
    for _ in range(rng.randint(50, 500)):
        group = group.create_group("g")
    group["x"] = np.zeros(3)


def many_groups(file: h5py.File, rng: np.random.RandomState) -> None:
    group = file[_pick(rng, [*_groups(file)])]
    for index in range(500):
        group.create_group(f"more{index}")


def many_datasets(file: h5py.File, rng: np.random.RandomState) -> None:
    group = file[_pick(rng, [*_groups(file)])]
    for index in range(500):
        group[str(100 + index)] = np.float32(index)


def external_storage(file: h5py.File, rng: np.random.RandomState) -> None:
    path, array = _any_array(file, rng)
    del file[path]
    shape = array.shape or (1,)
    external = [(_pick(rng, ["/etc/passwd", "/dev/zero"]), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(path, shape, "f4", external=external)


def virtual(file: h5py.File, rng: np.random.RandomState) -> None:
    """A dataset whose values, and perhaps whose shape, are told by another file."""
    path, array = _any_array(file, rng)
    del file[path]
    shape = array.shape or (1,)
    layout = h5py.VirtualLayout(shape, "f4", maxshape=(None, *shape[1:]))
    source = h5py.VirtualSource("odd.h5", "x", shape, maxshape=(None, *shape[1:]))
    everything = slice(0, h5py.h5s.UNLIMITED)
    layout[everything] = source[everything]
    file.create_virtual_dataset(path, layout)


def large_attribute(file: h5py.File, rng: np.random.RandomState) -> None:
    owner, name, _ = _any_names(file, rng)
    values = [np.zeros(60_000, "S1"), np.array([b"x" * 60_000]), "x" * 1_000_000, "é\U0001f600" * 9999]
    owner.attrs[name] = values[rng.randint(len(values))]


def repeated_text(file: h5py.File, rng: np.random.RandomState) -> None:
    """One long text, and names that all are that one: `with_shared_text` makes them so."""
    owner, name, _ = _any_names(file, rng)
    owner.attrs[name] = ["x" * 30_000, *[""] * 3000]


def strange_config(file: h5py.File, rng: np.random.RandomState) -> None:
    name = _pick(rng, ["training_config", "model_config", "keras_version"])
    old = file.attrs.get(name, "{}")
    text = strange_json(old if isinstance(old, str) else old.decode(), rng)
    file.attrs[name] = text if len(text) < 60_000 or rng.rand() < 0.5 else text.encode()


def strange_version(file: h5py.File, rng: np.random.RandomState) -> None:
    values: list[Any] = ["9" * 5000 + ".0", "", "x", "-1.0", np.arange(3), "3.0", "2.0", "2.0.0-tf"]
    file.attrs["keras_version"] = values[rng.randint(len(values))]


def text_as_array(file: h5py.File, rng: np.random.RandomState) -> None:
    name = _pick(rng, ["training_config", "keras_version", "model_config"])
    values: list[Any] = [["{}"] * 9, np.float32(3), h5py.Empty("f4"), np.zeros(5000), b"\xff\xfe"]
    file.attrs[name] = values[rng.randint(len(values))]


EDITS: tuple[Edit, ...] = (
    wrong_shape,
    wrong_dtype,
    wrong_bfloat16,
    odd_number,
    wrong_numbers,
    wrong_steps,
    removed,
    moved,
    renamed,
    swapped_names,
    strange_names,
    many_names,
    claimed_chunked,
    claimed_contiguous,
    compressed,
    chunked_bomb,
    external_link,
    soft_link,
    hard_link_cycle,
    hard_link_web,
    overlapping,
    deep,
    many_groups,
    many_datasets,
    external_storage,
    virtual,
    large_attribute,
    strange_config,
    strange_config,
    strange_version,
    text_as_array,
)


def with_shared_text(content: bytes) -> bytes:
    """Let the empty texts after a long one be that one, which stands in the file once."""
    match = re.search(re.escape(struct.pack("<I", 30_000)) + rb".{8}.{4}", content, re.DOTALL)
    if match is None:
        return content
    return content.replace(bytes(16) * 3000, match[0] * 3000)


def strange_json(text: str, rng: np.random.RandomState) -> str:
    """A configuration with one value changed, or none at all."""
    whole = ["[" * 100_000, '{"a":' * 100_000, "[" + "[]," * 100_000 + "[]]", "null", "3", '""', ""]
    whole += ['{"class_name":1}', "[1e999]", '{"a": "\\ud800"}', "9" * 5000, text[: len(text) // 2]]
    if rng.rand() < 0.4:
        return whole[rng.randint(len(whole))]
    try:
        described = json.loads(text)
    except ValueError:
        return text[::-1]
    slots = list(_slots(described))
    if slots:
        container, key = slots[rng.randint(len(slots))]
        values = [None, -1, 0.5, 1e400, float("nan"), 10**400, "x", "x" * 100_000, [], {}]
        values += [[[[]]], {"a": {"b": 1}}, True, "\x1b[2J", "\ud800", [0] * 50_000]
        container[key] = values[rng.randint(len(values))]
    return json.dumps(described)


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _slots(value[key])


def _walk(file: h5py.File) -> Iterator[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    file.visititems(lambda path, node: found.append((path, node)))
    return iter(found)


def _groups(file: h5py.File) -> Iterator[str]:
    return (path for path, node in _walk(file) if isinstance(node, h5py.Group))


def _datasets(file: h5py.File) -> list[str]:
    return [path for path, node in _walk(file) if isinstance(node, h5py.Dataset)]


def _pick(rng: np.random.RandomState, choices: Any) -> Any:
    choices = list(choices)
    return choices[rng.randint(len(choices))]


def _any_path(file: h5py.File, rng: np.random.RandomState) -> str:
    return _pick(rng, [*_groups(file), *_datasets(file)])


def _any_dataset(file: h5py.File, rng: np.random.RandomState) -> str:
    return _pick(rng, _datasets(file))


def _any_array(file: h5py.File, rng: np.random.RandomState) -> tuple[str, np.ndarray]:
    path = _any_dataset(file, rng)
    return path, file[path][()]


def _any_names(file: h5py.File, rng: np.random.RandomState) -> tuple[Any, str, list[str]]:
    """A group, its attribute that tells names, and the names."""
    groups = [file[path] for path in _groups(file)]
    pairs = itertools.product(groups, ("weight_names", "layer_names", "name"))
    found = [(group, name) for group, name in pairs if np.size(group.attrs.get(name, ()))]
    group, name = _pick(rng, found or [(groups[-1], "name")])
    names = [plain_text(n) for n in np.ravel(group.attrs.get(name, "x"))]
    return group, name, names


def _replace(file: h5py.File, path: str, array: np.ndarray) -> None:
    del file[path]
    file[path] = array
