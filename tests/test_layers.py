"""Lower floors import no higher ones. Read off the import statements."""

import ast
import pathlib
import sys

import pytest

PACKAGE = "vmoe_study"
ROOT = pathlib.Path(__file__).parents[1] / PACKAGE
FLOORS = [
  {"hosts", "options", "routing"},
  {"nn", "sharding", "data"},
  {"train", "evaluate", "checkpoint", "analysis"},
]
STRANGERS = [
  ("nn", "sharding"),
  ("nn", "data"),
  ("sharding", "nn"),
  ("sharding", "data"),
  ("data", "nn"),
  ("data", "sharding"),
  ("train", "nn"),
  ("evaluate", "nn"),
  ("checkpoint", "nn"),
  ("routing", "options"),
]
ROUTING_MAY_IMPORT = {"jax", "numpy", "jaxtyping", PACKAGE}


def _floor(room):
  """What stands in no floor, as the command line does, is on top."""
  floors = [i for i, rooms in enumerate(FLOORS) if room in rooms]
  return floors[0] if floors else len(FLOORS)


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
      if parts[0] == PACKAGE and len(parts) > 1:
        found[_room(path), parts[1]] = path
  return found


def test_the_imports_were_read(edges):
  assert {("nn", "routing"), ("nn", "options"), ("cli", "experiment")} <= {
    *edges
  }


def test_no_floor_imports_a_higher_one(edges):
  for (room, other), path in edges.items():
    assert _floor(other) <= _floor(room), f"{path} imports {other}"


@pytest.mark.parametrize("room, other", STRANGERS)
def test_strangers(room, other, edges):
  assert (room, other) not in edges, edges.get((room, other))


def test_routing_needs_arrays_only():
  for path in (ROOT / "routing").glob("*.py"):
    names = {name.split(".")[0] for name in _imports(path)}
    foreign = names - sys.stdlib_module_names - ROUTING_MAY_IMPORT
    assert not foreign, f"{path} imports {foreign}"
