"""The contract of a format, held against every format that is registered."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import FORMATS, CheckpointError, load, save
from adamx.checkpoint.format import Head
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, assert_equal, without_names
from tests.checkpoint.format_cases import (
    CONFIGS,
    ONLY_READ,
    RECORDED,
    RUN,
    copy_shards,
    example_of,
    format_of,
    template_for,
)

# Bytes that reading may take whatever the file's size: 4 MiB of them while a checksum is computed.
BEYOND = 5 << 20


@pytest.fixture(params=RECORDED, ids=lambda path: path.name)
def recorded(request):
    return request.param


def loaded(path):
    return load(path, config=CONFIGS.get(path.name))


def test_exactly_one_format_matches(recorded):
    head = Head.of(recorded)
    assert [form for form in FORMATS.values() if form.matches(head)] == [format_of(recorded)]


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*.npz")), ids=lambda path: path.name)
def test_other_arrays_are_no_checkpoint(path):
    with pytest.raises(CheckpointError, match=r"expected the arrays of adamx\.to_numpy") as caught:
        load(path, config=RUN)
    assert caught.value.where == str(path)


def test_every_format_has_a_recorded_file():
    assert {format_of(path).name for path in RECORDED} == set(FORMATS)


@pytest.mark.parametrize("content", [{}, {"a.txt": b"x"}])
def test_a_folder_of_no_format(content, tmp_path):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    found = "a folder with a.txt" if content else "an empty folder"
    with pytest.raises(CheckpointError, match=f"expected a checkpoint of .*found {found}"):
        load(tmp_path)


def test_what_a_head_sees(tmp_path):
    (tmp_path / "a.index").write_bytes(b"x" * 2_000)
    (tmp_path / "a.data").write_bytes(b"")
    (tmp_path / "ab.index").write_bytes(b"")
    file = Head.of(tmp_path / "a.index")
    assert (file.start, file.size, file.entries) == (b"x" * 1024, 2_000, frozenset())
    folder, prefix = Head.of(tmp_path), Head.of(tmp_path / "a")
    assert folder.entries == {"a.index", "a.data", "ab.index"}
    assert prefix.entries == {"a.index", "a.data"}
    assert (folder.start, folder.size) == (prefix.start, prefix.size) == (b"", 0)
    with pytest.raises(FileNotFoundError, match="missing"):
        Head.of(tmp_path / "missing")
    calls = []
    assert [file.examine(calls.append), file.examine(calls.append)] == [None, None]
    assert calls == [tmp_path / "a.index"]


# Reading and writing.


TEMPLATES = {"required": (True,), "optional": (True, False), "none": (False,)}
TRIPS = [
    pytest.param(path, with_template, id=f"{path.name}, {with_template}")
    for path in RECORDED
    if path not in ONLY_READ.values()
    for with_template in TEMPLATES[format_of(path).template]
]


@pytest.mark.parametrize(("recorded", "with_template"), TRIPS)
def test_a_round_trip_loses_no_bit(recorded, with_template, tmp_path):
    original = loaded(recorded)
    copy = tmp_path / recorded.name
    left = save(copy, original, template=recorded if with_template else None)
    read = load(copy, config=CONFIGS.get(recorded.name))
    lost = {name.partition("/")[0] for name in left}
    assert lost <= {"params", "config"}
    is_inferred = "inferred" in original.naming.values()
    bare = without_names if is_inferred else lambda held: dataclasses.replace(held, params={})
    assert_equal(read, bare(original) if "params" in lost else original)


def test_saving_leaves_the_checkpoint_as_it_is(written, tmp_path):
    path = example_of(written)
    original = loaded(path)
    held = {field: dict(getattr(original, field)) for field in ("params", "mu", "nu", "extra")}
    save(tmp_path / path.name, original, template=template_for(path))
    assert held == {field: dict(getattr(original, field)) for field in held}


def test_damage_gives_one_error_in_little_memory(form, tmp_path):
    """Cut anywhere; with other bytes near the start it may also load."""
    if not form.suffixes:
        pytest.skip("of folders, tests/checkpoint_files damages the files")
    content, config = example_of(form).read_bytes(), CONFIGS.get(example_of(form).name)
    path = tmp_path / f"damaged{form.suffixes[0]}"
    copy_shards(example_of(form), path)
    rng = np.random.default_rng(0)
    cut = [content[:end] for end in rng.integers(0, len(content) - 1, 12)]
    flipped = [
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at, bit in zip(rng.integers(0, 200, 30), rng.integers(0, 8, 30), strict=True)
    ]
    errors = []
    for damaged in [*cut, *flipped]:
        path.write_bytes(damaged)
        tracemalloc.start()
        try:
            load(path, config=config)
        except CheckpointError as error:
            errors.append(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 2 * len(damaged) + BEYOND
    assert len(errors) >= len(cut)
    assert all(str(error).startswith(f"{path}: ") for error in errors)
    assert all(error.where.startswith(str(path)) for error in errors)


def test_the_policy_on_templates(written, tmp_path):
    form, path = written, example_of(written)
    original, target = loaded(path), tmp_path / f"x{form.suffixes[0]}"
    if form.template == "required":
        with pytest.raises(CheckpointError, match="expected template=") as caught:
            save(target, original)
        assert (caught.value.argument, caught.value.where) == ("template", str(target))
    elif form.template == "none":
        with pytest.raises(CheckpointError, match="template, order: expected neither"):
            save(target, original, template=path)
        with pytest.raises(CheckpointError, match="template, order: expected neither"):
            save(target, original, order=list(original.names))
    else:
        save(target, original)
        save(target, original, template=path)
        target.unlink()
    if form.template != "none":
        other = CHECKPOINTS / "torch_adam_amsgrad.safetensors"
        with pytest.raises(
            CheckpointError, match=r"expected a template in the format '.*', found safetensors"
        ) as caught:
            save(target, original, template=other)
        assert (caught.value.argument, caught.value.where) == ("template", str(other))
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_asked_for(form):
    path = example_of(form)
    if form.holds_config:
        assert isinstance(load(path).config, AdamConfig)
        return
    with pytest.raises(CheckpointError, match="config: expected an AdamConfig, since") as caught:
        load(path)
    assert (caught.value.argument, caught.value.where) == ("config", f"{path}: config")
    assert load(path, config=CONFIGS[path.name]).config == CONFIGS[path.name]
