"""The documentation has every public name, pages that can be read, and blocks that run."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import adamx
from adamx.cli.main import main
from tests.live.pages import DOCS, read_blocks
from tests.test_house import ROOMS

ROOT = DOCS.parent
PAGES = sorted(DOCS.rglob("*.md"))
ALL_PAGES = [*PAGES, *sorted(ROOT.glob("*.md"))]
MODULES = (adamx, adamx.checkpoint, adamx.keras, adamx.native)
DIRECTIVE = re.compile(r"^ *\.\. (auto\w+|currentmodule):: ([\w.]+)$", re.MULTILINE)

# Python that the build of the documentation does not run, and the test that runs all of the page's.
RUN_BY = {
    "README.md": "tests/test_readme.py",
    "docs/guides/checkpoints.md": "tests/live/test_torch_pages.py",
    "docs/guides/groups.md": "tests/live/test_torch_pages.py",
    "docs/guides/hugging_face.md": "tests/live/test_hugging_face.py",
    "docs/guides/keras.md": "tests/live/test_keras3_pages.py",
    "docs/guides/torch.md": "tests/live/test_torch_pages.py",
}
SHELL = ("sh", "console")
NO_CODE = ("", "text", "bibtex")
SHOWS_CODE = ("{code}", "{code-block}", "{sourcecode}", "{literalinclude}", "{doctest}")


def documented():
    """The full names that the reference documents."""
    names = set()
    for page in (DOCS / "reference").glob("*.md"):
        module = ""
        for directive, name in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if directive == "currentmodule":
                module = name
            else:
                names.add(name if name.startswith("adamx") else f"{module}.{name}")
    return names


def test_every_public_name_is_in_the_reference():
    wanted = {f"{module.__name__}.{name}" for module in MODULES for name in module.__all__}
    modules = {module.__name__ for module in MODULES}
    assert documented() - modules == wanted - modules - {"adamx.__version__"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_short(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    titles = re.findall(r"^#+ ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    assert titles.count("# ") == 1
    assert max(map(len, titles)) <= 4  # deeper ones have no anchor: `myst_heading_anchors`


# Blocks.


def test_every_block_of_python_is_run():
    """By the build, which runs the cells of notebooks, or by a test that names the page."""
    run = set()
    for page in ALL_PAGES:
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        kinds = {block.kind for block in read_blocks(page)}
        assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(read_blocks(page)), name
        languages = {kind for kind in kinds if not kind.startswith("{")}
        assert languages <= {"python", *SHELL, *NO_CODE}, name
        assert kinds.isdisjoint(SHOWS_CODE), name
        if "{code-cell}" in kinds:
            assert text.startswith("---\nfile_format: mystnb\n"), name
        if "python" in kinds:
            run.add(name)
    assert run == RUN_BY.keys()
    for name, test in RUN_BY.items():
        assert f'"{name.removeprefix("docs/")}"' in (ROOT / test).read_text(encoding="utf-8")


def test_the_command_is_run_as_shown(capsys):
    """What a page shows after `$ adamx`, its cells run; its options are known."""
    shown = 0
    for page in PAGES:
        blocks = read_blocks(page)
        cells = "".join(block.code for block in blocks if block.kind == "{code-cell}")
        for code in (block.code for block in blocks if block.kind in SHELL):
            for line in re.findall(r"^(?:\$ )?adamx (.+)$", code, re.MULTILINE):
                command, *words = shlex.split(line, comments=True)
                with pytest.raises(SystemExit, match=r"^0$"):
                    main([command, "--help"])
                known = capsys.readouterr().out.split()
                for word in words:
                    assert f'{word}"' in cells, f"{page.name}: {line}"
                    assert not word.startswith("--") or {word, f"[{word}]"} & {*known}
                shown += 1
    assert shown >= 5


# Names in texts and commands.


def find_names(pattern):
    """The matches in all pages but the changelog, which tells of former names; with their pages."""
    for page in ALL_PAGES:
        if page.name != "CHANGELOG.md":
            for found in re.findall(pattern, page.read_text(encoding="utf-8")):
                yield page.name, found


def test_files_and_modules_exist():
    found = set(find_names(r"\b((?:tests|examples|benchmarks|docs)/[\w./-]*\w)"))
    found |= {
        (page, f"{module.replace('.', '/')}.py" if "." in module else f"{module}/__main__.py")
        for page, module in find_names(r"python -m ((?:tests|benchmarks)[\w.]*\w)")
    }
    assert len(found) > 50
    missing = [(page, name) for page, name in sorted(found) if not (ROOT / name).exists()]
    assert missing == []


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = set(find_names(r"(?:adamx|\"\.)\[([a-z,]+)\]"))
    assert len(found) > 10
    for page, extras in found:
        assert {*extras.split(",")} <= project["optional-dependencies"].keys(), page


def read_sessions():
    source = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    return set(re.findall(r"^@nox\.session.*\ndef (\w+)", source, re.MULTILINE))


def test_sessions_exist():
    found = set(find_names(r"nox -s (\w+)"))
    assert len(found) > 5
    assert {session for _, session in found} <= read_sessions()


def test_the_page_of_tests_has_each_session_and_marker():
    page = (DOCS / "contributing" / "tests.md").read_text(encoding="utf-8")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {re.split(r"[(:]", marker)[0] for marker in options["markers"]}
    rows = set(re.findall(r"^\| `(\w+)(?:\(\w+\))?` \|", page, re.MULTILINE))
    assert rows == read_sessions() | markers


def test_the_page_of_the_house_has_each_room():
    page = (DOCS / "contributing" / "house.md").read_text(encoding="utf-8")
    table = page.partition("\n## How a step is computed")[0]
    rooms = [room for room in ROOMS if (Path(adamx.__file__).parent / room).is_dir()]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == rooms
