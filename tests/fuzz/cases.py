"""The mutated files: which format, which file of it, and what is done to it, told by a number."""

import dataclasses
import functools
import itertools
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from adamx.checkpoint import load, save
from tests.checkpoint_folders.coded_runs import code
from tests.fuzz import (
    adamx_files,
    archives,
    bundle_files,
    flax_files,
    folders,
    hdf5_edits,
    hdf5_files,
    hugging_face_files,
    keras_files,
    npz_files,
    orbax_files,
    rank_files,
    torch_files,
)
from tests.fuzz.mangling import mangled

__all__ = ["FORMATS", "LARGE", "Format", "case", "cases"]

LARGE = 8 << 20

Edit = Callable[[bytes, np.random.RandomState], bytes]

_GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
      ending: of its name.
      files: among the golden ones.
      places: where structures begin.
      edits: changes that know what they change.
      within: damage to what a checksum would shield, and the checksum made right.
      enlarged: a larger file of the same variables.
      read: gives the content of a file; of a folder, an archive of it; of several files, what
        `harness.put` writes as such.
      made: of each of the golden ones, what files are made.
      mangle: damages content without knowing what it means.
    """

    ending: str
    files: Sequence[str]
    places: Callable[[bytes], np.ndarray]
    edits: Sequence[Edit]
    enlarged: Callable[[bytes, int], bytes]
    within: Callable[[bytes, np.random.RandomState], tuple[bytes, str]] | None = None
    made: Sequence[Callable[[bytes], bytes]] = (bytes,)
    read: Callable[[Path], bytes] = Path.read_bytes
    mangle: Callable[[bytes, np.ndarray, np.random.RandomState], tuple[bytes, str]] = mangled

    @functools.cached_property
    def seeds(self) -> list[bytes]:
        """Files that load; the last is the large one."""
        golden = [self.read(_GOLDEN / name) for name in self.files]
        small = [make(content) for content, make in itertools.product(golden, self.made)]
        return [*small, self.enlarged(small[0], LARGE)]

    @functools.cached_property
    def seed_places(self) -> list[np.ndarray]:
        """Of each of the files, the places of structures."""
        return [self.places(content) for content in self.seeds]


def _as_adamx(content: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old.keras"), Path(folder, "new.safetensors")
        old.write_bytes(content)
        save(new, load(old))
        return new.read_bytes()


def _as_coded(content: bytes) -> bytes:
    """With the moments in 8 bits whose last axis has a group of 8."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(_as_adamx(content))
        save(path, code(load(path)))
        return path.read_bytes()


def _enlarged_coded(content: bytes, size: int) -> bytes:
    del content
    source = (_GOLDEN / "keras3_model.keras").read_bytes()
    return _as_coded(keras_files.enlarged(source, size))


def _enlarged_adamx(content: bytes, size: int) -> bytes:
    del content
    source = (_GOLDEN / "keras3_amsgrad.keras").read_bytes()
    return _as_adamx(keras_files.enlarged(source, size))


def _hdf5(ending: str, *files: str) -> Format:
    is_model = ending == ".h5"
    edits = hdf5_edits.EDITS + (hdf5_edits.MODEL_EDITS if is_model else ())
    return Format(ending, files, hdf5_files.places, edits, hdf5_files.enlarged)


def _keras(*files: str) -> Format:
    return Format(
        ".keras",
        files,
        archives.places,
        keras_files.EDITS,
        keras_files.enlarged,
        keras_files.damaged_within,
    )


def _of_folders(
    ending: str,
    files: Sequence[str],
    edits: Sequence[Edit],
    enlarged: Callable[[bytes, int], bytes],
    *made: Callable[[bytes], bytes],
) -> Format:
    """A kind of folder: an archive of it is the content, of which one file is damaged."""
    return Format(
        ending,
        [f"../wild/{file}" for file in files],
        folders.places,
        edits,
        enlarged,
        made=(bytes, *made),
        read=folders.pack_folder,
        mangle=folders.mangle,
    )


FORMATS = {
    "tf11_h5": _hdf5(".h5", "tf11_model.h5", "tf11_frozen.h5"),
    "tf_keras_legacy_h5": _hdf5(".h5", "tfkeras_legacy_model.h5", "tfkeras_legacy_frozen.h5"),
    "tf_keras_h5": _hdf5(".h5", "tfkeras_model.h5", "tfkeras_frozen.h5"),
    "keras3_h5": _hdf5(".h5", "keras3_model.h5", "../wild/keras_loss_scale/m.h5"),
    "weights_h5": _hdf5(".weights.h5", "keras3.weights.h5", "keras3_frozen.weights.h5"),
    "tf_keras_archive": _keras("tfkeras_model.keras", "tfkeras_frozen.keras"),
    "keras3_archive": _keras(
        "keras3_model.keras",
        "keras3_amsgrad.keras",
        "keras3_ema.keras",
        "keras3_frozen.keras",
        "keras3_schedule.keras",
        "../wild/keras_accumulation/m.keras",
        "../wild/keras_loss_scale/m.keras",
    ),
    "torch_archive": Format(
        ".pt",
        (
            "torch_adam.pt",
            "torch_adam_amsgrad.pt",
            "torch_adamw.pt",
            "torch_frozen.pt",
            "torch_names.pt",
        ),
        archives.places,
        torch_files.ARCHIVE_EDITS,
        torch_files.enlarged,
        torch_files.damaged_within,
    ),
    "torch_old": Format(
        ".pt",
        ("torch_legacy.pt", "torch_adam_amsgrad.pt", "torch_names.pt"),
        torch_files.old_places,
        torch_files.OLD_EDITS,
        torch_files.enlarged,
        torch_files.damaged_within_old,
        made=(torch_files.in_old_format,),
    ),
    "torch_protocols": Format(
        ".pt",
        ("torch_adam.pt", "torch_names.pt"),
        archives.places,
        torch_files.ARCHIVE_EDITS,
        torch_files.enlarged,
        torch_files.damaged_within,
        made=(torch_files.in_protocol_3, torch_files.in_protocol_4, torch_files.in_protocol_5),
    ),
    "adamx": Format(
        ".safetensors",
        ("keras3_model.keras", "keras3_amsgrad.keras", "keras3_ema.keras", "keras3_schedule.keras"),
        adamx_files.places,
        adamx_files.EDITS,
        _enlarged_adamx,
        adamx_files.damaged_within,
        made=(_as_adamx,),
    ),
    "adamx_eight_bit": Format(
        ".safetensors",
        ("keras3_model.keras", "keras3_ema.keras", "keras3_frozen.keras"),
        adamx_files.places,
        adamx_files.CODE_EDITS + adamx_files.EDITS,
        _enlarged_coded,
        adamx_files.damaged_within,
        made=(_as_coded,),
    ),
    "npz": Format(
        ".npz",
        ("keras3_model.keras", "keras3_frozen.keras"),
        archives.places,
        npz_files.EDITS,
        npz_files.enlarged,
        npz_files.damaged_within,
        made=(npz_files.as_npz, npz_files.as_packed_npz),
    ),
    "flax": Format(
        ".msgpack",
        ("../wild/flax_msgpack/state.msgpack",),
        flax_files.places,
        flax_files.EDITS,
        flax_files.enlarged,
    ),
    "hugging_face": _of_folders(
        ".hugging_face",
        ("hf_trainer/checkpoint-6", "accelerate/state"),
        hugging_face_files.EDITS,
        hugging_face_files.enlarged,
        hugging_face_files.as_shards,
    ),
    "orbax": _of_folders(
        ".orbax",
        ("orbax_adamw/ckpt", "orbax_chain/run"),
        orbax_files.EDITS,
        orbax_files.enlarged,
        orbax_files.as_plain,
        orbax_files.as_third,
    ),
    "dcp": _of_folders(
        ".dcp",
        ("dcp/dcp", "dcp_fsdp2/dcp"),
        rank_files.DCP_EDITS,
        rank_files.enlarged_dcp,
        rank_files.in_safetensors,
    ),
    "dcp_safetensors": Format(
        ".shards",
        ("../wild/dcp/dcp",),
        folders.places,
        rank_files.SHARD_EDITS,
        rank_files.enlarged_shards,
        made=(rank_files.as_shards,),
        read=folders.pack_folder,
        mangle=folders.mangle,
    ),
    "deepspeed": _of_folders(
        ".deepspeed",
        ("deepspeed_zero2/global_step5", "deepspeed_zero2_2ranks/global_step5"),
        rank_files.DEEPSPEED_EDITS,
        rank_files.enlarged_deepspeed,
        rank_files.as_third_stage,
        rank_files.as_universal,
    ),
    "tensorflow": Format(
        ".index",
        (
            "../wild/tf1_saver/model.ckpt-6.index",
            "../wild/tf2_tfkeras/ckpt-1.index",
            "../wild/tf2_keras3/ckpt-1.index",
        ),
        bundle_files.places,
        bundle_files.EDITS,
        bundle_files.enlarged,
        bundle_files.damaged_within,
        read=bundle_files.read,
    ),
}


def case(name: str, index: int) -> tuple[str, bytes]:
    """What is done to which file, and the file that comes of it; always the same."""
    form = FORMATS[name]
    rng = np.random.RandomState([zlib.crc32(name.encode()), index])
    is_large = rng.rand() < 1 / 12
    which = -1 if is_large else rng.randint(len(form.seeds) - 1)
    content = form.seeds[which]
    if index % 4 == 0:
        edit = form.edits[index // 4 % len(form.edits)]
        told, result = edit.__name__, edit(content, rng)
    elif index % 4 == 2 and form.within is not None:
        result, told = form.within(content, rng)
    else:
        result, told = form.mangle(content, form.seed_places[which], rng)
    return f"{told} ({'large' if is_large else f'file {which}'})", result


def cases(name: str, count: int) -> Iterator[tuple[int, str, bytes]]:
    """The first of them, with their numbers."""
    return ((index, *case(name, index)) for index in range(count))
