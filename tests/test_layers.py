"""Lower floors import no higher ones. Read off the import statements."""

import ast
import pathlib
import sys

import pytest

PACKAGE = "vmoe_study"
ROOT = pathlib.Path(__file__).parents[1] / PACKAGE
CONFIGS = ROOT.parent / "configs"
# From the ground up. A room is a folder or a module of the package.
FLOORS = [
  {"console", "drawing", "files", "options", "routing"},
  {"data", "nn", "parallel"},
  {"checkpoint", "evaluation", "training"},
  {"config"},
  {"run"},
  {"inspection", "performance", "study"},
  {"doctor"},
  {"cli"},
  {"__init__", "__main__"},
]
ROOT_MODULES = {"__init__", "__main__", "config", "options"}
# Rooms that do not know each other, though their floors would allow it.
STRANGERS = [
  ("checkpoint", "data"),
  ("data", "nn"),
  ("data", "parallel"),
  ("drawing", "files"),
  ("evaluation", "nn"),
  ("files", "options"),
  ("nn", "data"),
  ("nn", "files"),
  ("nn", "parallel"),
  ("parallel", "data"),
  ("parallel", "nn"),
  ("routing", "files"),
  ("routing", "options"),
  ("study", "inspection"),
  ("training", "nn"),
]
ROUTING_MAY_IMPORT = {"jax", "numpy", "jaxtyping", PACKAGE}


def _floor(room):
  floors = [i for i, rooms in enumerate(FLOORS) if room in rooms]
  assert floors, f"{room}: a room without a floor. Give it one in FLOORS."
  return floors[0]


def _room(path):
  return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path):
  """Absolute names of all modules that a file imports, wherever it does."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: imports are absolute here."
      if node.module == PACKAGE:
        yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
      else:
        yield node.module


@pytest.fixture(scope="module")
def edges():
  """(room, imported room) -> a file that does it."""
  found = {}
  for path in ROOT.rglob("*.py"):
    for name in _imports(path):
      parts = name.split(".")
      if parts[0] == PACKAGE and len(parts) > 1 and parts[1] != "__version__":
        found[_room(path), parts[1]] = path
  return found


def test_the_imports_were_read(edges):
  assert {("nn", "routing"), ("nn", "options"), ("cli", "run")} <= {*edges}


def test_every_room_has_a_floor():
  for path in ROOT.rglob("*.py"):
    _floor(_room(path))


def test_the_root_holds_four_modules():
  assert {path.stem for path in ROOT.glob("*.py")} == ROOT_MODULES


def test_no_floor_imports_a_higher_one(edges):
  for (room, other), path in edges.items():
    assert _floor(other) <= _floor(room), f"{path} imports {other}"


def test_no_rooms_import_each_other(edges):
  """Within a floor, too, imports run one way."""
  for room, other in edges:
    assert room == other or (other, room) not in edges, edges[room, other]


@pytest.mark.parametrize("room, other", STRANGERS)
def test_strangers(room, other, edges):
  assert (room, other) not in edges, edges.get((room, other))


def test_routing_needs_arrays_only():
  for path in (ROOT / "routing").glob("*.py"):
    names = {name.split(".")[0] for name in _imports(path)}
    foreign = names - sys.stdlib_module_names - ROUTING_MAY_IMPORT
    assert not foreign, f"{path} imports {foreign}"


def test_configs_do_not_know_the_command_line():
  for path in CONFIGS.glob("*.py"):
    assert not [n for n in _imports(path) if n.startswith(f"{PACKAGE}.cli")]
