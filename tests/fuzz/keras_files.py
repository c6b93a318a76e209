"""`.keras` archives: damage within their members, whose checksums are then made right again."""

import functools
import json
from collections.abc import Callable

import numpy as np

from tests.fuzz import archives, hdf5_edits, hdf5_files
from tests.fuzz.configurations import strange_json
from tests.fuzz.mangling import mangled

__all__ = ["EDITS", "damaged_within", "enlarged"]

Edit = Callable[[bytes, np.random.RandomState], bytes]

_WEIGHTS, _CONFIG, _METADATA = "model.weights.h5", "config.json", "metadata.json"


@functools.lru_cache(maxsize=32)
def _weight_places(content: bytes) -> np.ndarray:
    return hdf5_files.places(content)


def damaged_within(content: bytes, rng: np.random.RandomState) -> tuple[bytes, str]:
    """Bytes of a member changed."""
    parts = archives.members(content)
    name = str(rng.choice([_WEIGHTS, _WEIGHTS, _WEIGHTS, _CONFIG, _METADATA]))
    part = parts[name]
    places = _weight_places(part) if name == _WEIGHTS else np.arange(len(part))
    parts[name], told = mangled(part, places, rng)
    return archives.packed(parts), f"{name} {told}"


def enlarged(content: bytes, size: int) -> bytes:
    """An archive whose weights have that size."""
    parts = archives.members(content)
    return archives.packed({**parts, _WEIGHTS: hdf5_files.enlarged(parts[_WEIGHTS], size)})


def strange_config(content: bytes, rng: np.random.RandomState) -> bytes:
    parts = archives.members(content)
    name = _CONFIG if rng.rand() < 0.8 else _METADATA
    text = strange_json(parts[name].decode(), rng)
    return archives.packed({**parts, name: text.encode("utf-8", "surrogatepass")})


def strange_optimizer(content: bytes, rng: np.random.RandomState) -> bytes:
    """The part of the configuration that is most looked at."""
    parts = archives.members(content)
    config = json.loads(parts[_CONFIG])
    part = json.dumps(config["compile_config"]["optimizer"])
    config["compile_config"]["optimizer"] = "@"
    text = json.dumps(config).replace('"@"', strange_json(part, rng) or "0")
    return archives.packed({**parts, _CONFIG: text.encode("utf-8", "surrogatepass")})


def _within(edit: Edit) -> Edit:
    def edited(content: bytes, rng: np.random.RandomState) -> bytes:
        parts = archives.members(content)
        return archives.packed({**parts, _WEIGHTS: edit(parts[_WEIGHTS], rng)})

    edited.__name__ = edit.__name__
    return edited


EDITS = (
    *archives.EDITS,
    *map(_within, hdf5_edits.EDITS),
    strange_config,
    strange_config,
    strange_optimizer,
    strange_optimizer,
)
