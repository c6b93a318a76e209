"""The contract of a format, held against every format that is registered."""

import ast
import dataclasses
import re
import sys
import tomllib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import adamx.checkpoint.api
import adamx.cli.main
from adamx import AdamConfig
from adamx.checkpoint import FORMATS, Checkpoint, CheckpointError, load, save
from adamx.checkpoint.format import FileFormat, Head, register, unregister
from adamx.checkpoint.formats import MODULES
from adamx.cli.main import main
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, CLIPPED, PLAIN, assert_equal

ROOT = Path(__file__).parents[2]
WILD = CHECKPOINTS.parent / "wild"
NPZ = WILD / "npz_to_numpy" / "state.npz"
RUN = AdamConfig(learning_rate=1e-3, weight_decay=1e-4)

# What files do not hold, or not in a way that adamx follows.
CONFIGS = {
    "keras3.weights.h5": CLIPPED,
    "keras3_frozen.weights.h5": PLAIN,
    "torch_groups.pt": AdamConfig(learning_rate=0.01, convention="torch"),
    "state.npz": RUN,
}
RECORDED = sorted([*CHECKPOINTS.iterdir(), NPZ])
RECORDED = [path for path in RECORDED if not path.name.endswith("_resume.npz")]
# Bytes that reading may take whatever the file's size: 4 MiB of them while a checksum is computed.
BEYOND = 5 << 20


def suffix_of(path):
    """The longest suffix that any format has."""
    known = [suffix for form in FORMATS.values() for suffix in form.suffixes]
    return max((s for s in known if path.name.endswith(s)), key=len)


def format_of(path):
    return next(form for form in FORMATS.values() if suffix_of(path) in form.suffixes)


def skip_without(form):
    if form.extra == "torch":
        pytest.importorskip("torch", reason="torch reads its own files; see the torch session")


@pytest.fixture(params=RECORDED, ids=lambda path: path.name)
def recorded(request):
    skip_without(format_of(request.param))
    return request.param


@pytest.fixture(params=sorted(FORMATS))
def form(request):
    skip_without(FORMATS[request.param])
    return FORMATS[request.param]


def example_of(form):
    return next(path for path in RECORDED if format_of(path) is form)


def loaded(path):
    return load(path, config=CONFIGS.get(path.name))


def template_for(path):
    return path if format_of(path).template == "required" else None


# Recognition.


def test_each_module_is_one_format():
    assert sorted(type(form).__module__ for form in FORMATS.values()) == sorted(
        module.__name__ for module in MODULES
    )


def test_names_and_suffixes_are_unique():
    suffixes = [suffix for form in FORMATS.values() for suffix in form.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert all(form.name == name for name, form in FORMATS.items())
    with pytest.raises(ValueError, match="h5: another format has this name"):
        register(FORMATS["h5"])


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
    found = "something else" if content else "an empty folder"
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
    for with_template in TEMPLATES[format_of(path).template]
]


@pytest.mark.parametrize(("recorded", "with_template"), TRIPS)
def test_a_round_trip_loses_no_bit(recorded, with_template, tmp_path):
    skip_without(format_of(recorded))
    original = loaded(recorded)
    copy = tmp_path / recorded.name
    left = save(copy, original, template=recorded if with_template else None)
    read = load(copy, config=CONFIGS.get(recorded.name))
    lost = {name.partition("/")[0] for name in left}
    assert lost <= {"params", "config"}
    assert_equal(read, dataclasses.replace(original, params={}) if "params" in lost else original)


def test_saving_leaves_the_checkpoint_as_it_is(form, tmp_path):
    path = example_of(form)
    original = loaded(path)
    held = {field: dict(getattr(original, field)) for field in ("params", "mu", "nu", "extra")}
    save(tmp_path / path.name, original, template=template_for(path))
    assert held == {field: dict(getattr(original, field)) for field in held}


def test_damage_gives_one_error_in_little_memory(form, tmp_path):
    """Cut anywhere; with other bytes near the start it may also load."""
    content, config = example_of(form).read_bytes(), CONFIGS.get(example_of(form).name)
    path = tmp_path / f"damaged{form.suffixes[0]}"
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


def test_the_policy_on_templates(form, tmp_path):
    path = example_of(form)
    original, target = loaded(path), tmp_path / f"x{form.suffixes[0]}"
    if form.template == "required":
        with pytest.raises(CheckpointError, match="expected template=") as caught:
            save(target, original)
        assert (caught.value.argument, caught.value.where) == ("template", str(target))
    elif form.template == "none":
        with pytest.raises(CheckpointError, match="template, order: expected none"):
            save(target, original, template=path)
        with pytest.raises(CheckpointError, match="template, order: expected none"):
            save(target, original, order=list(original.names))
    else:
        save(target, original)
        save(target, original, template=path)
        target.unlink()
    if form.template != "none":
        other = CHECKPOINTS / "torch_adam_amsgrad.safetensors"
        with pytest.raises(CheckpointError, match="as template, found safetensors") as caught:
            save(target, original, template=other)
        assert (caught.value.argument, caught.value.where) == ("template", str(other))
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_asked_for(form):
    path = example_of(form)
    if form.holds_config:
        assert isinstance(load(path).config, AdamConfig)
        return
    with pytest.raises(CheckpointError, match="holds no hyperparameters; give config=") as caught:
        load(path)
    assert (caught.value.argument, caught.value.where) == ("config", f"{path}: config")
    assert load(path, config=CONFIGS[path.name]).config == CONFIGS[path.name]


# What follows from the registry.


def test_extras_are_those_of_the_project(form, monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert form.extra is None or form.extra in extras

    def read(*_, **__):
        raise ModuleNotFoundError("No module named 'sun.moon'", name="sun.moon")

    monkeypatch.setattr(type(form), "read", read)
    message = "No module named"
    if form.extra is not None:
        message = (
            rf'\({form.suffixes[0]}\) needs the package sun: pip install "adamx\[{form.extra}\]", '
            rf'or in a checkout of adamx pip install -e "\.\[{form.extra}\]"'
        )
    with pytest.raises(ImportError, match=message):
        load(example_of(form), config=RUN)


@pytest.fixture
def bare(monkeypatch):
    """As after `pip install adamx`: no package of any extra can be imported."""
    for name in ("h5py", "rich", "rich.console", "safetensors", "torch"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_missing_package_is_told_before_anything_is_done(form, tmp_path, monkeypatch, capsys):
    """Before the source is read, and before the file that is replaced is touched."""
    target, template = tmp_path / f"x{form.suffixes[0]}", template_for(example_of(form))
    target.write_text("as it was")
    source = load(CHECKPOINTS / "keras3_model.keras")
    if form.extra is None:
        save(target, source)
        return
    with pytest.raises(ImportError, match=rf'pip install "adamx\[{form.extra}\]", or') as caught:
        save(target, source, template=template)
    assert caught.value.name in form.packages
    monkeypatch.setattr(adamx.cli.main, "load", lambda *_, **__: pytest.fail("it was read"))
    argv = ["convert", str(CHECKPOINTS / "keras3_model.keras"), str(target), "--force"]
    assert main(argv) == 2
    assert capsys.readouterr() == ("", f"adamx: error: {caught.value}\n")
    assert target.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_inspect_without_extras(path, capsys):
    """All of it, or nothing but the error that names the extra."""
    form = format_of(path)
    if path.name in CONFIGS:
        return
    code = main(["inspect", str(path)])
    out, err = capsys.readouterr()
    if form.name in ("safetensors", "torch"):
        assert (code, out) == (2, "")
        assert f'pip install -e ".[{form.extra}]"' in err
    else:
        assert (code, err) == (0, "")
        assert len(out.splitlines()) > len(load(path).names)


def test_docs_have_a_line_for_each_format():
    docs = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    lines = re.findall(
        r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", docs, re.M
    )
    assert lines == [
        (
            form.name,
            form.title,
            ", ".join(f"`{suffix}`" for suffix in form.suffixes) or "folder",
            form.template,
            "in the file" if form.holds_config else "`config=`",
            f"`adamx[{form.extra}]`" if form.extra else "",
        )
        for _, form in sorted(FORMATS.items())
    ]


def test_the_interface_names_no_format():
    """Neither in code nor in a text that it shows; documentation may."""
    tree = ast.parse(Path(adamx.checkpoint.api.__file__).read_text())
    nodes = list(ast.walk(tree))
    documented = [ast.get_docstring(node, clean=False) for node in nodes if has_body(node)]
    texts = [value for node in nodes for _, value in ast.iter_fields(node)]
    shown = [text for text in texts if isinstance(text, str) and text not in documented]
    words = {word for text in shown for word in re.findall(r"[\w.]+", text)}
    for form in FORMATS.values():
        module = type(form).__module__.rpartition(".")[2]
        assert words.isdisjoint({form.name, module, type(form).__name__, *form.suffixes})


def has_body(node):
    return isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)


class Toy(FileFormat):
    name = "toy"
    title = "Toys"
    suffixes = (".toy", ".npz.toy")

    def matches(self, head):  # noqa: D102
        return head.start.startswith(b"TOY")

    def read(self, source, *, values):  # noqa: D102
        kind, count = source.path.read_text().split()
        assert kind == "TOY"
        assert values
        one = {"a": np.ones(2, np.float32)}
        return Checkpoint(
            framework="jax",
            version=None,
            config=source.config or AdamConfig(),
            count=int(count),
            names=("a",),
            params={},
            mu=one,
            nu=one,
        )

    def write(self, target, new, template):  # noqa: D102
        assert template is None
        target.path.write_text(f"TOY {new.count}")
        return ["config"]


@pytest.fixture
def toy():
    register(Toy())
    yield FORMATS["toy"]
    unregister("toy")
    assert "toy" not in FORMATS


@pytest.mark.usefixtures("toy")
def test_a_new_format(tmp_path, capsys):
    """One class, and everything knows it."""
    path = tmp_path / "x.npz.toy"
    path.write_text("TOY 7")
    checkpoint = load(path)
    assert (checkpoint.count, checkpoint.names) == (7, ("a",))
    other = dataclasses.replace(checkpoint, count=8)
    assert save(tmp_path / "y.toy", other) == ("config",)
    assert load(tmp_path / "y.toy").count == 8
    assert save(tmp_path / "y.any", other, format="toy") == ("config",)
    assert main(["convert", str(path), str(tmp_path / "z"), "--to", "toy"]) == 0
    assert load(tmp_path / "z", format="toy").count == 7
    assert main(["inspect", str(tmp_path / "z")]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Toys (.toy, .npz.toy)" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "z").write_text("TOY x")
    with pytest.raises(CheckpointError, match=r"z: truncated or damaged toy file: invalid literal"):
        load(tmp_path / "z")
    with pytest.raises(CheckpointError, match=r"one of the suffixes .*\.npz\.toy") as caught:
        save(tmp_path / "y.any", other)
    assert caught.value.argument == "format"


def test_without_it(tmp_path):
    (tmp_path / "x.toy").write_text("TOY 7")
    with pytest.raises(CheckpointError, match="expected a checkpoint of"):
        load(tmp_path / "x.toy")
    with pytest.raises(ValueError, match="format: expected one of"):
        load(tmp_path / "x.toy", format="toy")
    with pytest.raises(SystemExit):
        main(["convert", "x.toy", "y", "--to", "toy"])
