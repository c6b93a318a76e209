"""Damage to moments in 8 bits in adamx's own files, with a right checksum."""

import json
import re

import pytest

from adamx.base.blockwise import CODE_VERSION
from adamx.checkpoint import Checkpoint, CheckpointError, load, save
from tests.checkpoint.checkpoint_runs import assert_equal
from tests.checkpoint_folders.coded_runs import CONFIG, PARAMS, TX
from tests.fuzz.adamx_files import joined, parts


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("coded") / "first.safetensors"
    save(path, Checkpoint.from_state(PARAMS, TX.init(PARAMS), CONFIG, transformation=TX))
    return path


def edited(file, path, change):
    """The file with another header and a right checksum."""
    header, data = parts(file.read_bytes())
    described = json.loads(header["__metadata__"]["checkpoint"])
    change(header, described)
    described["arrays"] = [name for name in header if name != "__metadata__"]
    header["__metadata__"]["checkpoint"] = json.dumps(described)
    path.write_bytes(joined(header, data))
    return path


def rename(old, new):
    return lambda header, _: header.update({new: header.pop(old)})


def reshape(name, shape):
    return lambda header, _: header[name].update(shape=shape)


def cast(name, dtype, shape):
    return lambda header, _: header[name].update(dtype=dtype, shape=shape)


def group(value, name="body/kernel"):
    return lambda _, described: described["eight_bit"]["groups"].update({name: value})


def describe(value):
    return lambda _, described: described.update(eight_bit=value)


DAMAGE = {
    "codes of another shape": (
        reshape("mu_codes/body/kernel", [100, 48]),
        "mu_codes/body/kernel, nu_codes/body/kernel: expected codes of one shape, found (100, 48) "
        "and (48, 100)",
    ),
    "codes of both in another shape": (
        lambda h, _: [h[f"{f}_codes/body/kernel"].update(shape=[100, 48]) for f in ("mu", "nu")],
        "mu_scales/body/kernel: expected bfloat16 of shape (100, 2), for groups of 32, found",
    ),
    "scales of another shape": (
        reshape("nu_scales/body/kernel", [4, 48]),
        "nu_scales/body/kernel: expected uint32 of shape (48, 4), for groups of 32, found uint32 "
        "of shape (4, 48)",
    ),
    "scales of another dtype": (
        cast("nu_scales/body/stack", "F32", [3, 4, 2]),
        "nu_scales/body/stack: expected uint32 of shape (3, 4, 2), for groups of 32, found "
        "float32 of shape (3, 4, 2)",
    ),
    "codes of the other moment": (
        cast("mu_codes/body/stack", "U8", [3, 4, 64]),
        "mu_codes/body/stack: expected int8 of shape (3, 4, 64), for groups of 32, found uint8",
    ),
    "no scales": (
        rename("mu_scales/body/kernel", "extra/x"),
        "mu_scales/body/kernel: expected an array, as for all moments in 8 bits, found none",
    ),
    "no codes": (
        rename("mu_codes/body/kernel", "extra/x"),
        "mu_codes/body/kernel: expected an array, as for all moments in 8 bits, found none",
    ),
    "codes of no variable": (
        rename("mu_codes/body/kernel", "mu_codes/body/other"),
        "mu_codes/body/other: expected only codes of the variables that have a group",
    ),
    "codes and an array": (
        rename("mu/embed", "mu/body/kernel"),
        "mu/body/kernel: expected codes alone, or this array, found both",
    ),
    "a group that does not fit": (
        group(16),
        "mu_scales/body/kernel: expected bfloat16 of shape (48, 7), for groups of 16, found "
        "bfloat16 of shape (48, 4)",
    ),
    "a group beyond the shape": (
        group(128),
        "mu_codes/body/kernel: expected an array of at least 128 elements along the last axis, "
        "found shape (48, 100)",
    ),
    "a group that is none": (group(24), "eight_bit: body/kernel: expected a group of 8 to 1024"),
    "a group that is a text": (group("32"), "eight_bit: body/kernel: expected a group of 8 to"),
    "a group of a variable that has none": (
        group(8, "embed"),
        "mu_codes/embed: expected an array, as for all moments in 8 bits, found none",
    ),
    "a newer version": (
        lambda _, described: described["eight_bit"].update(version=CODE_VERSION + 1),
        f"eight_bit: expected moments in version {CODE_VERSION} of the code in 8 bits, found "
        f"version {CODE_VERSION + 1}; convert the file to .npz with the adamx that wrote it",
    ),
    "nothing said": (lambda _, d: d.pop("eight_bit"), "expected only codes of the variables that"),
    "a list": (describe([]), "eight_bit: expected a version, and groups by name"),
    "groups in a list": (
        describe({"version": CODE_VERSION, "groups": []}),
        "eight_bit: expected a",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case, file, tmp_path):
    change, message = DAMAGE[case]
    path = edited(file, tmp_path / "x.safetensors", change)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_edit_alone_does_no_damage(file, tmp_path):
    """Or the test above would show nothing."""
    assert_equal(load(edited(file, tmp_path / "x.safetensors", lambda *_: None)), load(file))
