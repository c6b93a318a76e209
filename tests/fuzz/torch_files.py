"""Files of `torch.save`, archives and old ones."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz import archives, pickles
from tests.fuzz.mangling import mangled, pick

__all__ = [
    "ARCHIVE_EDITS",
    "OLD_EDITS",
    "damaged_within",
    "damaged_within_old",
    "enlarged",
    "in_old_format",
    "in_protocol_3",
    "in_protocol_4",
    "in_protocol_5",
    "old_places",
]

Edit = Callable[[bytes, np.random.RandomState], bytes]


def saved(value: Any, is_archive: bool, protocol: int = 2) -> bytes:
    """What `torch.save` writes."""
    import torch

    stream = io.BytesIO()
    torch.save(value, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=is_archive)
    return stream.getvalue()


def in_old_format(content: bytes) -> bytes:
    return saved(_loaded(content), is_archive=False)


def in_protocol_3(content: bytes) -> bytes:
    return saved(_loaded(content), is_archive=True, protocol=3)


def in_protocol_4(content: bytes) -> bytes:
    return saved(_loaded(content), is_archive=True, protocol=4)


def in_protocol_5(content: bytes) -> bytes:
    return saved(_loaded(content), is_archive=True, protocol=5)


def enlarged(content: bytes, size: int) -> bytes:
    """The same tensors, each with so many more columns that the file gets that size."""
    value = _loaded(content)
    tensors = _tensors(value)
    times = 1 + size // sum(t.numel() * t.element_size() for t in tensors)
    for tensor in tensors:
        if tensor.numel() > 1:
            tensor.data = tensor.repeat(*[1] * (tensor.ndim - 1), times)
    return saved(value, _is_archive(content))


def old_places(content: bytes) -> np.ndarray:
    """The pickles, and the sizes of storages behind them."""
    parts = pickles.split(content)
    start = len(content) - len(parts[-1])
    return np.concatenate([np.arange(start), np.repeat(np.arange(start, start + 16), 20)])


def damaged_within(content: bytes, rng: np.random.RandomState) -> tuple[bytes, str]:
    """Bytes of a member changed, and its checksum made right."""
    parts = archives.members(content)
    names = list(parts)
    is_pickle = rng.rand() < 0.8
    name = next(n for n in names if n.endswith("data.pkl")) if is_pickle else pick(rng, names)
    if not parts[name]:
        return content, "nothing"
    parts[name], told = mangled(parts[name], np.arange(len(parts[name])), rng)
    return archives.packed(parts), f"{name} {told}"


def damaged_within_old(content: bytes, rng: np.random.RandomState) -> tuple[bytes, str]:
    """Bytes of the pickle changed that tells all."""
    parts = pickles.split(content)
    parts[3], told = mangled(parts[3], np.arange(len(parts[3])), rng)
    return b"".join(parts), f"pickle {told}"


def wrong_tensor(value: Any, rng: np.random.RandomState) -> None:
    """Another shape, dtype, layout or device, or other numbers."""
    import torch

    holder, key = pick(rng, _places(value))
    tensor = holder[key]
    options = [
        lambda: tensor.T if tensor.ndim == 2 else tensor[None],
        lambda: tensor.ravel()[:-1],
        lambda: tensor.new_zeros(1).expand(1 << 20, 1 << 20),
        lambda: tensor.new_zeros(1).expand(2, *tensor.shape),
        lambda: tensor.new_zeros(1).expand(*(2,) * 40),
        lambda: tensor.double(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.bool(),
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: tensor * torch.nan,
        lambda: -tensor - 1,
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.conj(tensor.to(torch.complex64)),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.to(torch.uint16),
        lambda: None,
        lambda: "x" * 10_000,
    ]
    holder[key] = pick(rng, options)()


def wrong_step(value: Any, rng: np.random.RandomState) -> None:
    import torch

    state = value["optimizer"]["state"]
    steps = [-1, 2**31, 2**80, 0.5, float("nan"), float("inf"), None, "30", True, [30]]
    steps += [torch.tensor(-1.0), torch.tensor(torch.nan), torch.zeros(7), torch.zeros(2, 0)]
    chosen = pick(rng, steps)
    for key in state if rng.rand() < 0.5 else [pick(rng, state)]:
        state[key]["step"] = chosen


def wrong_group(value: Any, rng: np.random.RandomState) -> None:
    """A hyperparameter, or the group itself, becomes something else."""
    import torch

    groups = value["optimizer"]["param_groups"]
    web: list[Any] = []
    for _ in range(40):
        web = [web, web]
    values = [None, -1, "x" * 50_000, web, [web], {"a": web}, 10**300, float("nan"), True, ()]
    values += [torch.zeros(1).expand(*(2,) * 40), torch.tensor(0.1), (0.9,), list(range(10_000))]
    chosen = pick(rng, values)
    choice = rng.randint(4)
    if choice == 0:
        groups[0] = chosen
    elif choice == 1:
        groups[0]["\x1b[31m"] = chosen
    else:
        groups[0][pick(rng, groups[0])] = chosen
    if choice == 3:
        groups.append({**groups[0], "params": []})


def wrong_keys(value: Any, rng: np.random.RandomState) -> None:
    state = value["optimizer"]["state"]
    keys = [-1, 99, "0", None, 0.0, (1, 2), "x" * 10_000, True, "\x1b[31m"]
    state[pick(rng, keys)] = state.pop(pick(rng, state))


def wrong_entry(value: Any, rng: np.random.RandomState) -> None:
    entries = value["optimizer"]["state"]
    entry = entries[pick(rng, entries)]
    if rng.rand() < 0.5:
        entry.pop(pick(rng, entry))
    else:
        entry[pick(rng, ["max_exp_avg_sq", "momentum_buffer", "x" * 10_000, 3])] = entry["exp_avg"]


def swapped_names(value: Any, rng: np.random.RandomState) -> None:
    model = value["model"]
    one, other = pick(rng, model), pick(rng, model)
    model[one], model[other] = model[other], model[one]


def strange_names(value: Any, rng: np.random.RandomState) -> None:
    model = value["model"]
    names = ["", "x" * 50_000, "\x1b[31m", "a.b.weight", "\ud800", "weight"]
    model[pick(rng, names)] = model.pop(pick(rng, model))


def more_optimizers(value: Any, rng: np.random.RandomState) -> None:
    for index in range(rng.randint(1, 20)):
        value["x" * 1000 + str(index)] = dict(value["optimizer"])


def long_places(value: Any, rng: np.random.RandomState) -> None:
    """Keys whose every combination would take gigabytes to tell."""
    del rng
    value["x" * 100_000] = [[] for _ in range(10_000)]


_VALUE_EDITS = (
    wrong_tensor,
    wrong_tensor,
    wrong_tensor,
    wrong_step,
    wrong_group,
    wrong_group,
    wrong_keys,
    wrong_entry,
    swapped_names,
    strange_names,
    more_optimizers,
    long_places,
)


def _edited_value(edit: Callable[[Any, np.random.RandomState], None]) -> Edit:
    def edited(content: bytes, rng: np.random.RandomState) -> bytes:
        value = _loaded(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            edit(value, rng)
            return saved(value, _is_archive(content))

    edited.__name__ = edit.__name__
    return edited


def _edited_pickle(edit: Edit) -> Edit:
    def edited(content: bytes, rng: np.random.RandomState) -> bytes:
        parts = archives.members(content)
        name = next(name for name in parts if name.endswith("data.pkl"))
        return archives.packed({**parts, name: edit(parts[name], rng)})

    edited.__name__ = edit.__name__
    return edited


def _edited_old_pickle(edit: Edit) -> Edit:
    def edited(content: bytes, rng: np.random.RandomState) -> bytes:
        parts = pickles.split(content)
        place = 3 if rng.rand() < 0.9 else rng.randint(5)
        parts[place] = edit(parts[place], rng) if place == 3 else pickles.crowd(parts[place], rng)
        return b"".join(parts)

    edited.__name__ = edit.__name__
    return edited


def archive_behind(content: bytes, rng: np.random.RandomState) -> bytes:
    """An old file with an allocation in it, and an archive behind it, which is harmless."""
    parts = pickles.split(content)
    parts[3] = pickles.allocation(parts[3], rng)
    return b"".join(parts) + saved({"a": 1}, is_archive=True)


def lying_storage(content: bytes, rng: np.random.RandomState) -> bytes:
    parts = pickles.split(content)
    value = int(pick(rng, [0, 1, 1 << 20, 1 << 40, (1 << 63) - 1]))
    parts[5] = value.to_bytes(8, "little") + parts[5][8:]
    return b"".join(parts)


def script(content: bytes, rng: np.random.RandomState) -> bytes:
    """A member that makes torch take the archive for TorchScript."""
    del rng
    parts = archives.members(content)
    prefix = next(iter(parts)).partition("/")[0]
    return archives.packed({**parts, f"{prefix}/constants.pkl": b"\x80\x02)."})


ARCHIVE_EDITS: tuple[Edit, ...] = (
    *archives.EDITS,
    *map(_edited_value, _VALUE_EDITS),
    *map(_edited_pickle, pickles.EDITS),
    script,
)
OLD_EDITS: tuple[Edit, ...] = (
    *map(_edited_value, _VALUE_EDITS),
    *map(_edited_old_pickle, pickles.EDITS),
    *map(_edited_old_pickle, pickles.EDITS),
    archive_behind,
    lying_storage,
    lying_storage,
)


def _is_archive(content: bytes) -> bool:
    return content.startswith(b"PK")


def _loaded(content: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _places(value: Any) -> list[tuple[dict[Any, Any], Any]]:
    """Each tensor's dictionary and key."""
    holders = [value["model"], *value["optimizer"]["state"].values()]
    return [(holder, key) for holder in holders for key in holder]


def _tensors(value: Any) -> list[Any]:
    return [holder[key] for holder, key in _places(value)]
