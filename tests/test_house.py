"""The house: its rooms and floors, and what may import what. Nothing is run, sources are read."""

import ast
import graphlib
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

HOUSE = Path(__file__).parents[1] / "adamx"
TESTS = Path(__file__).parent

# From the bottom up: a room imports only rooms that come before it.
ROOMS = (
    "base",
    "native",
    "transforms",
    "fused",
    "config",
    "state",
    "integrations",
    "keras",
    "checkpoint",
    "cli",
)
MOST_ROOMS = 12
MOST_LINES = 320
MOST_TEST_FILES = 15

# Packages that adamx is installed without, imported where they are used and nowhere else.
OPTIONAL = {
    "equinox",
    "flax",
    "google",
    "h5py",
    "matplotlib",
    "msgpack",
    "orbax",
    "rich",
    "safetensors",
    "tensorstore",
    "torch",
    "transformers",
}

# Folders of tests that are not of one room.
OTHER_TESTS = {"checkpoint_files", "checkpoint_folders", "checkpoint_torch", "fuzz", "golden"}
OTHER_TESTS |= {"live", "low_precision"}


class Import(NamedTuple):
    source: str  # the module that imports
    target: str  # what it imports: a module of adamx, or the name in the statement
    line: int
    in_function: bool
    for_types: bool  # under `if TYPE_CHECKING`

    def __str__(self):
        return f"{path_of(self.source)}:{self.line} imports {self.target}"


def module_of(path):
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(HOUSE.rglob("*.py"))}


def path_of(module):
    return MODULES[module].relative_to(HOUSE.parent).as_posix()


def room_of(module):
    """`fused` for `adamx.fused.step`; "" for what stands above all rooms."""
    parts = module.split(".")
    return "" if len(parts) < 2 or parts[1] == "__main__" else parts[1]


def floor_of(module):
    """The room's number from the bottom."""
    room = room_of(module)
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def targets(node, module):
    """What an import statement imports, as full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    start = node.module or ""
    if node.level:
        package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        parents = package.split(".")
        start = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [start])])
    modules = [f"{start}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else start for name in modules]


def read_imports(module):
    found = []

    def visit(node, in_function, for_types):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in dict.fromkeys(targets(node, module)):
                found.append(Import(module, target, node.lineno, in_function, for_types))
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for_types |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function, for_types)

    visit(ast.parse(MODULES[module].read_text()), False, False)
    return found


IMPORTS = [found for module in MODULES for found in read_imports(module)]
INNER = [found for found in IMPORTS if found.target.partition(".")[0] == "adamx"]


def check_none(problems):
    """Fail with each of them on a line."""
    lines = [str(problem) for problem in problems]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def test_rooms():
    """Few enough to hold in the head, and none that the order does not know."""
    rooms = {room_of(module) for module in MODULES} - {""}
    assert len(rooms) <= MOST_ROOMS
    check_none(f"adamx/{room} is not in the order of rooms" for room in sorted(rooms - {*ROOMS}))


def test_a_room_imports_only_rooms_below_it():
    check_none(
        f"{found}, of a room above {room_of(found.source)}"
        for found in INNER
        if floor_of(found.target) > floor_of(found.source)
    )


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_no_cycle_within_a_room(room):
    graph = {module: set() for module in MODULES if room_of(module) == room}
    for found in INNER:
        if found.source in graph and found.target in graph:
            graph[found.source].add(found.target)
    cycle: list[str] = []
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1][::-1]
    if cycle:
        pytest.fail(" imports ".join(cycle), pytrace=False)


def test_the_core_of_checkpoint_names_no_format():
    """Only `checkpoint/__init__.py` imports the formats, so that they are registered."""
    formats = "adamx.checkpoint.formats"
    check_none(
        found
        for found in INNER
        if f"{found.target}.".startswith(f"{formats}.")
        and not f"{found.source}.".startswith(f"{formats}.")
        and found.source != "adamx.checkpoint"
    )


def test_formats_share_only_modules_with_an_underscore():
    formats = "adamx.checkpoint.formats."
    check_none(
        f"{found}: what two formats share is in a module with an underscore"
        for found in INNER
        if found.source.startswith(formats) and found.target.startswith(formats)
        if not found.target.removeprefix(formats).startswith("_")
    )


def test_imports_within_functions_are_of_optional_packages():
    check_none(
        f"{found} within a function"
        for found in IMPORTS
        if found.in_function and found.target.partition(".")[0] not in OPTIONAL
    )


def test_optional_packages_are_imported_within_functions():
    check_none(
        f"{found}, without which adamx can be installed"
        for found in IMPORTS
        if found.target.partition(".")[0] in OPTIONAL
        if not found.in_function and not found.for_types
    )


def is_name(statement):
    """Whether a statement imports or declares names: what `__init__.py` is for."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.FunctionDef):
        return statement.name == "__dir__"  # what tab completion offers
    if not isinstance(statement, ast.Assign):
        return False
    return {ast.unparse(target) for target in statement.targets} <= {"__all__", "__version__"}


@pytest.mark.parametrize("module", [m for m in MODULES if MODULES[m].name == "__init__.py"])
def test_init_holds_only_names(module):
    check_none(
        f"{path_of(module)}:{statement.lineno} is code: {ast.unparse(statement).splitlines()[0]}"
        for statement in ast.parse(MODULES[module].read_text()).body
        if not is_name(statement)
    )


def test_no_file_has_the_name_of_a_standard_module():
    names = {path: path.stem for path in MODULES.values()}
    names |= {path: path.name for path in HOUSE.rglob("*") if path.is_dir()}
    check_none(
        f"{path.relative_to(HOUSE.parent)} has the name of a module of the standard library"
        for path, name in names.items()
        if name in sys.stdlib_module_names
    )


def test_files_are_short():
    lines = {
        path: len(path.read_text().splitlines())
        for path in (*MODULES.values(), *TESTS.rglob("*.py"))
    }
    check_none(
        f"{path.relative_to(HOUSE.parent)} has {count} lines of at most {MOST_LINES}"
        for path, count in lines.items()
        if count > MOST_LINES
    )


def test_tests_mirror_the_rooms():
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    rooms = {folder.relative_to(TESTS).parts[0] for folder in folders if folder != TESTS}
    assert rooms <= {*ROOMS, *OTHER_TESTS}
    counts = {folder: len(list(folder.glob("test_*.py"))) for folder in folders}
    check_none(
        f"{folder.relative_to(TESTS.parent)} has {count} test files of at most {MOST_TEST_FILES}"
        for folder, count in counts.items()
        if count > MOST_TEST_FILES
    )
