"""The order of the rooms: nothing points back, nothing heavy loads early, every public name is there."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dynloop

PACKAGE = Path(dynloop.__file__).parent
# each layer may import the ones before it; rooms on one line may not import each other
ORDER = [{"version"}, {"lazy"}, {"settings"}, {"outcome", "kernels"}, {"trajectories"}, {"buffers"}, {"distances"},
         {"regime_model"}, {"measurement"}, {"store", "study"}, {"tasks"}, {"measuring"}, {"nano"}, {"models"},
         {"attention", "analyzers"}, {"maps", "recording"},
         {"statistics"}, {"graph", "stages"}, {"monitoring", "advice"}, {"report"}, {"testing"}, {"cli"}, {"__main__"}]
LAYER = {room: i for i, rooms in enumerate(ORDER) for room in rooms}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms that a file imports anywhere, except under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    hidden = {id(inner) for node in ast.walk(tree)
              if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynloop."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "dynloop":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] if "." in alias.name else "" for alias in node.names
                        if alias.name.split(".")[0] == "dynloop")


def test_every_room_has_a_place_in_the_order():
    assert {room_of(path) for path in FILES} == set(LAYER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(path):
    own = room_of(path)
    for room in imported_rooms(path):
        # the command line may use the public names, and an import of the bare package brings no room with it
        if room not in ("", own) and not (own == "cli" and room in dynloop.__all__):
            assert LAYER[room] < LAYER[own], f"{path.relative_to(PACKAGE)} imports {room}, which comes later"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_imports_the_bare_package(path):
    assert room_of(path) == "cli" or "" not in imported_rooms(path)


def test_matplotlib_is_imported_in_the_report_room_only():
    for path in FILES:
        assert room_of(path) == "report" or "matplotlib" not in path.read_text(), path


def test_the_package_loads_nothing_heavy_until_a_name_is_used():
    code = ("import sys, dynloop, dynloop.cli; "
            "print([m for m in ('torch', 'numpy', 'scipy', 'numba', 'matplotlib', 'pandas') if m in sys.modules])")
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("name", dynloop.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(dynloop, name)
    assert name == "__version__" or len(inspect.getdoc(value) or "") > 40


def test_the_names_that_type_checkers_see_are_the_public_ones():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    seen = {alias.name for node in ast.walk(tree) if isinstance(node, ast.If)
            for inner in node.body if isinstance(inner, ast.ImportFrom) for alias in inner.names}
    assert seen | {"__version__"} == set(dynloop.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dynloop.nonsense  # noqa: B018


def test_no_module_is_named_after_a_public_function_of_the_package():
    # Python binds a submodule's name on its package: dynloop.capture could not be both
    assert not {m.name for m in pkgutil.iter_modules(dynloop.__path__)} & set(dynloop.__all__)


@pytest.mark.parametrize("name", dynloop.__all__)
def test_a_public_name_is_not_the_module_of_that_name(name):
    assert not inspect.ismodule(getattr(dynloop, name))
