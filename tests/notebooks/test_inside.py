"""The summary of what routers learn, from numbers counted by hand."""

import importlib.util
import math
import pathlib

import pytest

FILE = pathlib.Path(__file__).parents[2] / "notebooks" / "study" / "inside.py"

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def inside():
  spec = importlib.util.spec_from_file_location("inside", FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run(accuracy, drops):
  """The measurements of a run with one layer and two experts."""
  layer = {
    "content": {
      "patches": 0.5,
      "dispatched": 0.75,
      "unprocessed_content": 0.125,
      "unprocessed_background": None,
    },
    "accuracy_drop": [{"mean": drop} for drop in drops],
    "accuracy_drop_all": {"mean": 0.25},
    "mutual_information": 0.3,
    "shuffled_information": 0.1,
  }
  return {
    "accuracy": {"mean": accuracy},
    "capacities": [{"factor": 2.0, "change": {"mean": 0.01}}],
    "layers": {"encoderblock_1": layer},
    "scripts": {"encoderblock_1": {"a": [1.0, 0.0], "b": [0.0, 1.0]}},
  }


def test_means_have_intervals_over_seeds(inside):
  runs = {"expert choice": {0: run(0.8, [0.1, 0.2]), 1: run(0.9, [0.2, 0.3])}}
  rows = {row["quantity"]: row for row in inside.summary(runs)}
  assert rows["accuracy"]["mean"] == 85 and rows["accuracy"]["seeds"] == 2
  assert rows["accuracy"]["half_width"] == pytest.approx(63.531, abs=1e-3)
  assert rows["layer 1: lost without one expert, mean"]["mean"] == 20
  assert rows["layer 1: lost without one expert, most"]["mean"] == 25
  assert rows["layer 1: dispatch weight on content"]["mean"] == 75
  assert rows["layer 1: script and expert, nats"]["mean"] == pytest.approx(
    math.log(2), abs=1e-4
  )
  # No image has background.
  assert "layer 1: unprocessed background" not in rows


def test_the_table_has_a_column_per_cell(inside):
  dense = {"accuracy": {"mean": 0.5}, "capacities": [], "layers": {}}
  runs = {"dense": {0: {**dense, "scripts": {}}}, "moe": {0: run(0.8, [0, 0])}}
  lines = inside.table(inside.summary(runs)).splitlines()
  first, second = (
    [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4]
  )
  assert first == ["accuracy", "50", "80"]
  assert second == ["change of accuracy at capacity 2", "", "1"]
