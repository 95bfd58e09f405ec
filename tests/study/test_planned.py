"""Planned contrasts: against statsmodels' numbers, SciPy, and by simulation."""

import csv

import numpy as np
import pytest
from scipy import stats

from vmoe_study.cli.main import main
from vmoe_study.study import results
from vmoe_study.study.linear_model import GridFit, detectable_difference
from vmoe_study.study.planned import (
  Analysis,
  PlannedContrast,
  grid_values,
  planned_results,
)
from vmoe_study.study.planned_figure import planned_figure
from vmoe_study.study.results import Cell
from vmoe_study.study.tables import planned_table

pytestmark = pytest.mark.slow

END_POINTS = {
  "upstream": ("test/accuracy",),
  "few-shot": ("a/10shot", "b/10shot"),
}


def grid(rng, cells=6, seeds=4, effects=0.0):
  """Values of a grid in percent, with a common effect of each seed."""
  noise = rng.normal(size=(cells, seeds)) + rng.normal(size=seeds)
  values = 70 + noise + np.reshape(effects, (-1, 1))
  return {f"c{i}": dict(enumerate(row)) for i, row in enumerate(values)}


def test_a_complete_grid_agrees_with_its_sums_of_squares():
  values = grid(np.random.default_rng(0))
  y = np.array([list(row.values()) for row in values.values()])
  residuals = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
  variance = np.sum(residuals**2) / (5 * 3)
  effect = GridFit(values).contrast({"c0": 1, "c1": -0.5, "c2": -0.5})
  assert effect.degrees == 15
  difference = y[0].mean() - (y[1].mean() + y[2].mean()) / 2
  np.testing.assert_allclose(effect.estimate, difference)
  error = np.sqrt(variance * 1.5 / 4)
  np.testing.assert_allclose(effect.standard_error, error)
  p_value = 2 * stats.t.sf(abs(difference) / error, 15)
  np.testing.assert_allclose(effect.p_value, p_value)


def test_two_cells_agree_with_the_paired_t_test():
  values = grid(np.random.default_rng(1), cells=2, seeds=6)
  effect = GridFit(values).contrast({"c0": 1, "c1": -1})
  first, second = (list(row.values()) for row in values.values())
  expected = stats.ttest_rel(first, second)
  np.testing.assert_allclose(effect.p_value, expected.pvalue)
  low, high = expected.confidence_interval()
  np.testing.assert_allclose(2 * effect.half_width, high - low)


# statsmodels 0.15: ols("y ~ C(cell) + C(seed)"), t_test of the difference, for
# the runs of the test below.
STATSMODELS = (1.88, 0.30034900334365294, 0.0033229031403779223)


def test_missing_runs_agree_with_statsmodels():
  values = {
    "a": {0: 70.1, 1: 71.3, 2: 69.4, 3: 70.8},
    "b": {0: 71.0, 1: 72.6, 3: 71.1},
    "c": {1: 70.2, 2: 68.1, 3: 69.9},
  }
  effect = GridFit(values).contrast({"b": 1, "c": -1})
  found = (effect.estimate, effect.standard_error, effect.p_value)
  np.testing.assert_allclose(found, STATSMODELS, rtol=1e-8)


def test_equivalence_is_two_one_sided_tests():
  values = grid(np.random.default_rng(2), cells=2, seeds=9)
  effect = GridFit(values).contrast({"c0": 1, "c1": -1})
  difference = np.subtract(*(list(row.values()) for row in values.values()))
  margin = 1.5
  low = stats.ttest_1samp(difference, -margin, alternative="greater")
  high = stats.ttest_1samp(difference, margin, alternative="less")
  np.testing.assert_allclose(
    effect.equivalence_p_value(margin), max(low.pvalue, high.pvalue)
  )


@pytest.mark.parametrize(
  "values",
  [
    {},
    {"a": {0: 1.0}, "b": {0: 2.0}},
    {"a": {0: 1.0, 1: 2.0}, "b": {2: 1.0, 3: 2.0}},
  ],
)
def test_a_grid_with_too_few_common_seeds_is_an_error(values):
  with pytest.raises(ValueError, match="too few"):
    GridFit(values)


DENSE = {"router": "dense", "group_images": 1, "options": {}}


def study(rng, effects):
  """Cells of a simulated study with two end points."""
  one, two = (grid(rng, len(effects), 8, effects) for _ in range(2))
  return [
    Cell(
      name,
      {"name": name, "model": {"moe": DENSE}, "train": {"batch_size": 8}},
      tuple(one[name]),
      {
        seed: {
          "test/accuracy": one[name][seed] / 100,
          "a/10shot": two[name][seed] / 100,
          "b/10shot": two[name][seed] / 100,
          "flops_per_image": 1e9,
          "step": 10,
          "seconds": 1.0,
          "images_per_second": 80.0,
          "parameters": 5,
        }
        for seed in one[name]
      },
    )
    for name in one
  ]


CONTRASTS = tuple(
  PlannedContrast(f"{i}", (f"c{i}",), ("c5", "c6")) for i in range(5)
)
ANALYSIS = Analysis(END_POINTS, CONTRASTS)


def test_without_an_effect_at_most_5_percent_of_studies_find_one():
  rng = np.random.default_rng(3)
  studies = (
    planned_results(study(rng, [0] * 7), ANALYSIS) for _ in range(1000)
  )
  found = np.mean(
    [min(r.holm_p_value for r in results) < 0.05 for results in studies]
  )
  # Holm's bound, and three standard errors of 1,000 studies.
  assert 0.01 < found < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_the_detectable_difference_is_found_as_often_as_stated():
  rng = np.random.default_rng(4)
  error, degrees = np.sqrt(1.5 / 8), 6 * 7  # Of noise with variance 1.
  difference = detectable_difference(error, degrees, 0.05 / 10, power=0.8)
  effects = [difference, 0, 0, 0, 0, 0, 0]
  first = Analysis({"upstream": END_POINTS["upstream"]}, CONTRASTS[:1])
  found = []
  for _ in range(1000):
    [result] = planned_results(study(rng, effects), first)
    found.append(result.effect.p_value < 0.05 / 10)
  assert abs(np.mean(found) - 0.8) < 3 * np.sqrt(0.8 * 0.2 / 1000)


def test_the_check_by_seed_is_the_paired_t_test_of_common_seeds():
  cells = study(np.random.default_rng(7), [0] * 7)
  cells[5].runs.pop(2)
  result = planned_results(cells, ANALYSIS)[1]
  first, *second = (
    [100 * c.runs[s]["test/accuracy"] for s in (0, 1, 3, 4, 5, 6, 7)]
    for c in (cells[1], cells[5], cells[6])
  )
  expected = stats.ttest_rel(first, np.mean(second, axis=0))
  np.testing.assert_allclose(result.paired.p_value, expected.pvalue)
  low, high = expected.confidence_interval()
  assert result.paired.difference.mean == pytest.approx((low + high) / 2)
  assert result.paired.difference.half_width == pytest.approx((high - low) / 2)


def test_sides_without_common_seeds_are_not_compared_by_seed():
  cells = study(np.random.default_rng(8), [0] * 7)
  for cell, lost in ((cells[0], range(4)), (cells[5], range(4, 8))):
    for seed in lost:
      del cell.runs[seed]
  table = planned_table(cells, ANALYSIS)
  column = table.header.index("by seed")
  first, second, *_ = table.as_text()
  assert not first[column] and "±" in second[column]


def test_a_row_without_runs_is_named():
  cells = study(np.random.default_rng(5), [0] * 6)
  with pytest.raises(ValueError, match="row c6 has no run"):
    planned_results(cells, ANALYSIS)


TABLE = """
import types
from vmoe_study.study.planned import Analysis, PlannedContrast

class Table(list):
  analysis = Analysis(
    {"test": ("test/accuracy",)},
    (PlannedContrast("one against two", ("c0",), ("c1",), margin=5.0),
     PlannedContrast("one against three", ("c0",), ("NAME",))),
  )

TABLES = {"t": Table(types.SimpleNamespace(name=f"c{i}") for i in range(3)),
          "none": []}
"""


def test_the_report_has_the_planned_contrasts(tmp_path, capsys):
  cells = study(np.random.default_rng(6), [0, 0, 3])
  results.write(tmp_path / "results.json", cells)
  table = tmp_path / "file.py"
  table.write_text(TABLE.replace("NAME", "c2"))
  words = ["report", str(tmp_path / "results.json"), f"--out={tmp_path}"]
  assert main([*words, f"--planned={table}:t"]) == 0
  printed = capsys.readouterr().out
  fit = GridFit(grid_values(cells, ["test/accuracy"]))
  expected = fit.contrast({"c0": 1, "c1": -1})
  assert f"{expected.estimate:+.2f} ± {expected.half_width:.2f}" in printed
  assert "![Planned contrasts" in (tmp_path / "report.md").read_text()
  rows = list(
    csv.DictReader((tmp_path / "planned.csv").read_text().splitlines())
  )
  assert [row["margin"] for row in rows] == ["5", ""]
  assert rows[0]["p equivalent"] == "< 0.001"
  difference = float(rows[0]["by seed %"])
  assert difference == pytest.approx(expected.estimate, abs=0.01)
  assert float(rows[1]["detectable"]) > float(rows[1]["difference ± %"])


def test_the_figure_shows_differences_and_fills_those_found():
  cells = study(np.random.default_rng(8), [0, 0, 0, 0, 4, 0, 0])
  figure = planned_figure(cells, ANALYSIS)
  found = iter(planned_results(cells, ANALYSIS))
  assert [len(panel.containers) for panel in figure.axes] == [5, 5]
  for panel in figure.axes:
    assert panel.get_xlabel().split(":")[0] in END_POINTS
    for row, bars in enumerate(panel.containers):
      result, (point, _, lines) = next(found), bars
      effect = result.effect
      np.testing.assert_allclose(point.get_xydata(), [[effect.estimate, row]])
      [segment] = lines[0].get_segments()
      np.testing.assert_allclose(np.ptp(segment[:, 0]), 2 * effect.half_width)
      is_filled = point.get_markerfacecolor() != "white"
      assert is_filled == (result.holm_p_value < 0.05) == (row == 4)


@pytest.mark.parametrize(
  ("name", "table", "message"),
  [
    ("c2", "none", "has no planned contrasts"),
    ("c9", "t", "names 'c9', which is no row"),
    ("c2", "other", "must be FILE.py:TABLE, where TABLE is one of t, none"),
  ],
)
def test_a_wrong_plan_is_an_error(tmp_path, capsys, name, table, message):
  results.write(
    tmp_path / "results.json", study(np.random.default_rng(7), [0] * 3)
  )
  file = tmp_path / "file.py"
  file.write_text(TABLE.replace("NAME", name))
  words = ["report", str(tmp_path / "results.json"), f"--out={tmp_path}"]
  assert main([*words, f"--planned={file}:{table}"]) == 2
  assert message in capsys.readouterr().err
