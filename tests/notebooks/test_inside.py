"""The summary of what routers learn, from numbers counted by hand."""

import importlib.util
import math
import pathlib

import pytest

from vmoe_study.study.results import Cell

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


MOE = {"model": {"moe": {"router": "soft", "group_images": 1, "options": {}}}}
DENSE = {
  "model": {"moe": {"router": "dense", "group_images": 1, "options": {}}}
}


@pytest.fixture
def cells():
  """An MoE and a dense cell with two seeds each."""
  return [
    Cell(name, config, (0, 1), {})
    for name, config in (("moe", MOE), ("dense", DENSE))
  ]


@pytest.fixture
def values(inside):
  """The numbers of both cells."""
  dense = {"accuracy": {"mean": 0.5}, "capacities": [], "layers": {}}
  runs = {
    ("moe", 0): run(0.8, [0.1, 0.2]),
    ("moe", 1): run(0.9, [0.2, 0.3]),
    ("dense", 0): dense,
  }
  return {key: dict(inside.quantities(run)) for key, run in runs.items()}


def test_means_have_intervals_over_seeds(inside, cells, values):
  found = inside.over_seeds(cells[0], values)
  accuracy = found["accuracy"]
  assert (accuracy.mean, accuracy.count) == (85, 2)
  assert accuracy.half_width == pytest.approx(63.531, abs=1e-3)
  assert found["layer 1: lost without one expert, mean"].mean == 20
  assert found["layer 1: lost without one expert, most"].mean == 25
  assert found["layer 1: dispatch weight on content"].mean == 75
  assert found["layer 1: dispatch weight beyond area"].mean == 25
  scripts = found["layer 1: script and expert, nats"].mean
  assert scripts == pytest.approx(math.log(2))
  # No image has background.
  assert "layer 1: unprocessed background" not in found


def test_the_table_has_a_column_per_cell(inside, cells, values):
  lines = inside.table(cells, values).splitlines()
  first, second = (
    [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4]
  )
  assert first == ["accuracy", "85 ± 64", "50"]
  assert second == ["change of accuracy at capacity 2", "1 ± 0", ""]


def test_the_figure_shows_means_of_moe_cells(inside, cells, values):
  beyond, _, lost, capacity = inside.figure(cells, values).axes
  for panel, expected in ((beyond, 25), (lost, 25), (capacity, 1)):
    [bars] = panel.containers  # One layer and one capacity, of one cell.
    assert bars[0].get_xdata()[0] == expected


def test_the_file_keeps_all_values(inside, values, tmp_path):
  inside.write_values(tmp_path / "inside.csv", values)
  again = inside.read_values(tmp_path / "inside.csv")
  assert again.keys() == values.keys()
  for key, run_values in values.items():
    assert again[key] == pytest.approx(run_values, rel=1e-5)


def test_inspected_runs_are_not_inspected_again(
  inside, values, tmp_path, monkeypatch
):
  """Of three runs, the file lacks one, and one has no checkpoint."""
  file, looked = tmp_path / "inside.csv", []
  inside.write_values(file, {key: values[key] for key in [("moe", 0)]})
  for seed in (0, 1):
    (tmp_path / "moe" / f"seed{seed}").mkdir(parents=True)
  monkeypatch.setattr(
    inside, "inspect_run", lambda path: looked.append(path) or run(0.9, [0, 0])
  )
  cell = Cell("moe", MOE, (0, 1, 2), {seed: {} for seed in range(3)})
  found = inside.inspect_missing(tmp_path, [cell], file)
  assert looked == [tmp_path / "moe" / "seed1"]
  assert found.keys() == inside.read_values(file).keys()
  assert [seed for _, seed in found] == [0, 1]
