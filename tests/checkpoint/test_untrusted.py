"""Files that somebody made to do harm: each is refused by name, and nothing in it is done."""

import importlib.util
import io
import json
import struct
import zipfile

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, load, save
from tests.checkpoint.checkpoint_runs import CHECKPOINTS
from tests.checkpoint.damaged_files import RNG, TOO_MUCH, golden, keras_h5
from tests.fuzz import adamx_files, archives, pickles, torch_files


def keras_archive(**changed):
    return archives.packed({**archives.members(golden("keras3_model.keras")), **changed})


def torch_file(edit, *arguments):
    """A file of torch whose pickle `edit` has changed."""
    parts = archives.members(golden("torch_adam.pt"))
    name = "torch_adam/data.pkl"
    return archives.packed({**parts, name: edit(parts[name], *arguments)})


# Archives: nothing is unpacked, not even to look how large it is.


def test_zip_bomb(refused):
    message = refused("a.keras", archives.bomb(golden("keras3_model.keras"), RNG(0)))
    assert "zip -0" in message


def test_encrypted_archive(refused):
    message = refused("a.keras", archives.encrypted(golden("keras3_model.keras"), RNG(0)))
    assert "compressed or encrypted" in message


def test_members_that_share_their_bytes(refused):
    message = refused("a.keras", archives.quoted_bomb(golden("keras3_model.keras"), RNG(0)))
    assert "claims" in message or "has no" in message


def test_member_of_gigabytes(refused):
    content = bytearray(golden("keras3_model.keras"))
    entry = content.index(b"PK\1\2")
    struct.pack_into("<II", content, entry + 20, 1 << 31, 1 << 31)
    assert f"claims {1 << 31} bytes" in refused("a.keras", bytes(content))


def test_two_members_of_one_name(refused):
    stream = io.BytesIO(golden("keras3_model.keras"))
    with zipfile.ZipFile(stream, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", "{}")
    assert "two members called config.json" in refused("a.keras", stream.getvalue())


def test_directory_elsewhere(refused):
    message = refused("a.keras", b"PK\3\4" + bytes(60) + golden("keras3_model.keras"))
    assert "directory is not where it should be" in message


def test_member_with_a_path_is_not_extracted(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "a.keras"
    path.write_bytes(keras_archive(**{"../evil": b"evil", f"{tmp_path}/evil": b"evil"}))
    save(folder / "b.keras", load(path), template=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]
    assert sorted(p.name for p in folder.iterdir()) == ["a.keras", "b.keras"]


def test_json_without_end(refused):
    message = refused("a.keras", keras_archive(**{"config.json": b"[" * 20_000}))
    assert "maximum recursion depth" in message


def test_json_of_a_million_values(refused):
    message = refused("a.keras", keras_archive(**{"config.json": b"[" + b"[]," * 10**6 + b"1]"}))
    assert TOO_MUCH in message


def test_control_characters_are_shown(refused):
    def rename(file):
        group = file["optimizer_weights"]
        group.attrs["weight_names"] = ["\x1b[2J" + name for name in group.attrs["weight_names"]]

    message = refused("a.h5", keras_h5(rename))
    assert "\x1b" not in message
    assert "\\x1b[2J" in message


# torch: nothing is called but what puts tensors together.


@pytest.mark.parametrize("function", [("os", "system"), ("builtins", "eval"), ("posix", "system")])
def test_code_in_a_pickle_is_not_executed(function, refused, tmp_path):
    call = pickles.calling(*function, pickles.text(f"touch {tmp_path}/executed"))
    message = refused("a.pt", torch_file(pickles.with_payload, call))
    assert f"found {' '.join(function)}. Other objects are not loaded" in message
    assert "torch.save({'model': model.state_dict()" in message


@pytest.mark.parametrize(
    "function",
    [("builtins", "bytearray"), ("torch", "FloatTensor"), ("torch.storage", "UntypedStorage")],
)
def test_memory_for_a_number_alone(function, refused):
    call = pickles.calling(*function, pickles.integer(10**10))
    message = refused("a.pt", torch_file(pickles.with_payload, call))
    assert f"found {' '.join(function)}" in message


def test_text_that_codecs_double(refused):
    assert "found _codecs encode" in refused("a.pt", torch_file(pickles.doubling, RNG(0)))


def test_key_that_takes_forever_to_hash(refused):
    tuples = b")" + b"r\xff\xff\0\0j\xff\xff\0\0\x86" * 60
    message = refused("a.pt", torch_file(pickles.with_payload, b"}" + tuples + b"Ns"))
    assert "expected strings and numbers as keys" in message


def test_pickle_of_a_hundred_thousand_lists(refused):
    message = refused("a.pt", torch_file(pickles.with_payload, b"](" + b"]" * 10**5 + b"e"))
    assert TOO_MUCH in message


def test_storage_larger_than_its_bytes(refused):

    def enlarge(saved):
        length = saved.index(b"K\x80")  # of the first storage: 128 numbers
        return saved[:length] + pickles.integer(129) + saved[length + 2 :]

    message = refused("a.pt", torch_file(enlarge))
    assert "torch_adam/data/0: expected 516 bytes, found 512" in message


def test_tensor_larger_than_its_storage(refused):
    torch = pytest.importorskip("torch")
    value = torch.load(CHECKPOINTS / "torch_adam.pt", weights_only=True)
    value["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1).expand(1 << 20, 1 << 20)
    message = refused("a.pt", torch_files.saved(value, is_archive=True))
    assert "shape (1048576, 1048576) claims more than the file holds" in message


def test_allocation_hidden_by_an_archive(refused):
    """Behind an old file stands an archive, so that it looks like one from its end."""
    pytest.importorskip("torch")
    message = refused("a.pt", torch_files.archive_behind(golden("torch_legacy.pt"), RNG(0)))
    assert "Other objects are not loaded" in message


def test_gigabytes_in_an_old_file(refused):
    torch = pytest.importorskip("torch")
    state = {"state": {}, "param_groups": [], "x": torch.zeros(300)}
    content = torch_files.saved(state, is_archive=False)
    length = content.index(b"M\x2c\x01")
    content = content[:length] + pickles.integer(1 << 30) + content[length + 3 :]
    assert "claim more bytes than the file has" in refused("a.pt", content)


def test_script_is_not_run(refused):
    pytest.importorskip("torch")
    content = torch_files.script(golden("torch_adam.pt"), RNG(0))
    assert "Save only the state dicts" in refused("a.pt", content)


# adamx's own.


@pytest.fixture
def own(tmp_path_factory):
    """What adamx wrote."""
    path = tmp_path_factory.mktemp("own") / "a.safetensors"
    save(path, load(CHECKPOINTS / "keras3_model.keras"))
    return path.read_bytes()


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_flipped_bit(place, own, refused):
    content = bytearray(own)
    content[place] ^= 1
    assert "damaged" in refused("a.safetensors", bytes(content))


def test_header_of_terabytes(own, refused):
    content = (1 << 42).to_bytes(8, "little") + own[8:]
    assert "a.safetensors" in refused("a.safetensors", content)


def test_array_of_terabytes(own, refused):
    header, data = adamx_files.parts(own)
    header["mu/in/kernel"] |= {"shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}
    assert "damaged" in refused("a.safetensors", adamx_files.joined(header, data))


def test_array_by_the_hundred_thousand(own, refused):
    message = refused("a.safetensors", adamx_files.repeated_arrays(own, RNG(0)))
    assert TOO_MUCH in message


def test_count_that_is_none(own, refused):
    header, data = adamx_files.parts(own)
    described = json.loads(header["__metadata__"]["checkpoint"])
    groups = [described["groups"][0] | {"count": 0.5}]
    header["__metadata__"]["checkpoint"] = json.dumps(described | {"groups": groups})
    assert "a whole number" in refused("a.safetensors", adamx_files.joined(header, data))


# Foreign files.


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"weights: 3\n", b"PK\5\6" + bytes(18)])
def test_something_else(content, refused):
    assert "expected a checkpoint of DeepSpeed (folder); " in refused("a.h5", content)


# What is large without harm.


def test_thousands_of_small_arrays(tmp_path):
    names = tuple(f"layer_{index}/scale" for index in range(2_000))
    arrays = dict.fromkeys(names, np.zeros((), np.float32))
    checkpoint = Checkpoint(
        framework="jax",
        version=None,
        config=AdamConfig(convention="torch"),
        count=1,
        names=names,
        params=arrays,
        mu=arrays,
        nu=arrays,
    )
    paths = [tmp_path / "a.safetensors"]
    if importlib.util.find_spec("torch"):
        paths.append(tmp_path / "a.pt")
    for path in paths:
        save(path, checkpoint)
        assert load(path).mu.keys() == checkpoint.mu.keys()
