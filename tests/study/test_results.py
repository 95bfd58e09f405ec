"""Results of a sweep that was run in parts."""

from vmoe_study.run.config_file import load_config
from vmoe_study.study import results
from vmoe_study.study.results import Cell

CONFIG = {"name": "x"}


def write(folder, name, seeds, *, config=CONFIG, runs=None):
  """A file with one cell, of which all seeds have run by default."""
  runs = {key: {"step": 6} for key in (runs if runs is not None else seeds)}
  path = folder / f"{name}.json"
  results.write(path, [Cell("soft", config, seeds, runs)])
  return path


def test_parts_of_a_sweep_make_one_cell(tmp_path):
  first = write(tmp_path, "first", (0, 1))
  second = write(tmp_path, "second", (0, 1, 2), runs=[2])
  [cell] = results.load([first, second])
  assert cell.seeds == (0, 1, 2)
  assert list(cell.runs) == [0, 1, 2]


def test_runs_of_other_configs_and_repeated_runs_stay_apart(tmp_path):
  first = write(tmp_path, "first", (0, 1))
  other = write(tmp_path, "other", (2,), config={"name": "y"})
  again = write(tmp_path, "again", (1, 2))
  found = results.load([first, other, again])
  assert [list(cell.runs) for cell in found] == [[0, 1], [2], [1, 2]]


def test_results_without_a_newer_field_join_those_with_its_default(tmp_path):
  config = load_config("configs/digits.py").to_dict()
  older = {k: v for k, v in config.items() if k not in ("seed", "draw_rule")}
  newer = {**older, "draw_rule": config["draw_rule"]}
  first = write(tmp_path, "first", (0,), config=older)
  second = write(tmp_path, "second", (1,), config=newer)
  other = write(tmp_path, "other", (2,), config={**newer, "draws": 7})
  found = results.load([first, second, other])
  assert [list(cell.runs) for cell in found] == [[0, 1], [2]]
