"""The registry of formats: what it tells the command, the docs and a format of one's own."""

import ast
import dataclasses
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import adamx.checkpoint.api
import adamx.cli.loading
from adamx import AdamConfig
from adamx.checkpoint import FORMATS, Checkpoint, CheckpointError, load, save
from adamx.checkpoint.format import FileFormat, register, unregister
from adamx.checkpoint.formats import MODULES
from adamx.cli.main import main
from tests.checkpoint.checkpoint_runs import CHECKPOINTS
from tests.checkpoint.format_cases import (
    CONFIGS,
    RECORDED,
    RUN,
    WRITTEN,
    example_of,
    format_of,
    template_for,
)

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("fields", [{"writable": False}, {"instead": "do it"}])
def test_a_format_is_writable_or_says_what_to_do_instead(fields):
    with pytest.raises(ValueError, match=r"expected writable=True with write\(\), or"):
        register(type("Other", (Toy,), fields)())


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
        kind = re.escape(form.suffixes[0]) if form.suffixes else "folder"
        message = (
            rf'\({kind}\) needs the package sun: pip install "adamx\[{form.extra}\]", '
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
@pytest.mark.parametrize("form", [FORMATS[name] for name in WRITTEN], ids=WRITTEN)
def test_a_missing_package_is_told_before_anything_is_done(form, tmp_path, monkeypatch, capsys):
    """Before the source is read, and before the file that is replaced is touched."""
    target, template = tmp_path / f"x{form.suffixes[0]}", template_for(example_of(form))
    target.write_text("as it was")
    source = load(CHECKPOINTS / "torch_adam.pt")
    if form.extra is None:
        example = example_of(form)
        save(target, load(example, config=CONFIGS.get(example.name)))
        return
    with pytest.raises(ImportError, match=rf'pip install "adamx\[{form.extra}\]", or') as caught:
        save(target, source, template=template)
    assert caught.value.name in form.packages
    monkeypatch.setattr(adamx.cli.loading, "load", lambda *_, **__: pytest.fail("it was read"))
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
    if form.name == "safetensors":
        assert (code, out) == (2, "")
        assert f'pip install -e ".[{form.extra}]"' in err
    else:
        assert (code, err) == (0, "")
        assert len(out.splitlines()) > len(load(path).names)


def test_docs_have_a_line_for_each_format():
    docs = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    lines = re.findall(
        r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", docs, re.M
    )
    assert lines == [
        (
            form.name,
            form.title,
            ", ".join(f"`{suffix}`" for suffix in form.suffixes) or "folder",
            form.template if form.writable else "read only",
            "in the file" if form.holds_config else "`config=`",
            form.names,
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
    names = "told"
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
