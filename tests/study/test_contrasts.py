"""Contrasts and tables, on cells whose values are known by hand."""

import numpy as np
import pytest
from scipy import stats

from vmoe_study.study.contrasts import (
  contrast_results,
  contrasts,
  paired_values,
)
from vmoe_study.study.results import Cell
from vmoe_study.study.settings import settings
from vmoe_study.study.statistics import Estimate
from vmoe_study.study.tables import Table, accuracy_table, cost_table

METRIC = "test/accuracy"


def cell(router, values, *, group=1, rate=1e-3, experts=16, **options):
  """A cell with one run per value, of seeds 0, 1, ..."""
  options = {"num_experts": experts, "capacity_factor": 1.0} | options
  if router.endswith("_token_choice"):
    options = {"num_selected_experts": 1, "batch_priority": False} | options
  if router == "dense":
    options = {"num_experts": 1}
  moe = {"router": router, "group_images": group, "options": options}
  config = {"model": {"moe": moe}, "train": {"rate": rate}, "name": router}
  runs = {seed: {METRIC: value} for seed, value in enumerate(values)}
  return Cell(f"{router} {group} {rate}", config, (0, 1), runs)


def pairs(cells, text):
  """Both sides of the one contrast whose text starts like this."""
  [contrast] = [c for c in contrasts(cells) if c.text.startswith(text)]
  return paired_values(cells, contrast, METRIC)


def test_every_cost_has_the_same_weight_however_many_cells_it_has():
  cells = [
    cell("softmax_token_choice", [0.1, 0.2]),
    cell("softmax_token_choice", [0.5, 0.6], num_selected_experts=2),
    # At cost 1 two routers, at cost 2 one.
    cell("softmax_expert_choice", [0.2, 0.3]),
    cell("sinkhorn_expert_choice", [0.4, 0.5]),
    cell("softmax_expert_choice", [0.9, 0.7], capacity_factor=2.0),
  ]
  first, second = pairs(cells, "expert choice against token choice without")
  np.testing.assert_allclose(first, [(0.3 + 0.9) / 2, (0.4 + 0.7) / 2])
  np.testing.assert_allclose(second, [0.3, 0.4])


def test_a_cost_that_one_side_lacks_is_left_out():
  cells = [
    cell("softmax_token_choice", [0.1, 0.2]),
    cell("softmax_token_choice", [0.5, 0.6], num_selected_experts=2),
    cell("softmax_expert_choice", [0.2, 0.4]),
  ]
  first, second = pairs(cells, "expert choice against token choice without")
  assert (first, second) == ([0.2, 0.4], [0.1, 0.2])


@pytest.mark.parametrize(
  "other", [{"rate": 4e-3}, {"experts": 32}], ids=["rate", "experts"]
)
def test_only_equal_settings_are_compared(other):
  cells = [
    cell("softmax_token_choice", [0.1, 0.2]),
    cell("softmax_token_choice", [0.7, 0.8], **other),
    cell("softmax_expert_choice", [0.3, 0.3]),
  ]
  first, second = pairs(cells, "expert choice against token choice without")
  assert (first, second) == ([0.3, 0.3], [0.1, 0.2])


def test_groups_and_priority_are_compared_within_a_router():
  tokens = "softmax_token_choice"
  cells = [
    cell(tokens, [0.1, 0.2]),
    cell(tokens, [0.3, 0.5], group=8),
    cell(tokens, [0.4, 0.4], group=8, batch_priority=True),
  ]
  assert pairs(cells, "token choice, groups of 8 against groups of 1") == (
    [0.3, 0.5],
    [0.1, 0.2],
  )
  text = "batch priority against none, token choice, groups of 8"
  assert pairs(cells, text) == ([0.4, 0.4], [0.3, 0.5])


def test_cells_without_runs_do_not_exclude_the_others():
  cells = [
    cell("soft", [0.5, 0.7]),
    cell("dense", [0.1, 0.4]),
    cell("soft", [], capacity_factor=1.0, rate=4e-3),
    cell("dense", [], rate=4e-3),
  ]
  assert pairs(cells, "Soft MoE at cost 1") == ([0.5, 0.7], [0.1, 0.4])


def test_dense_is_compared_at_cost_1_alone():
  cells = [
    cell("soft", [0.5, 0.7]),
    cell("soft", [0.9, 0.9], capacity_factor=2.0),
    cell("dense", [0.1, 0.4]),
  ]
  [result] = contrast_results(cells, METRIC)
  assert result.text == "Soft MoE at cost 1 against dense"
  assert result.comparison.difference.mean == pytest.approx(35)
  expected = stats.ttest_rel([50, 70], [10, 40]).pvalue
  assert result.comparison.p_value == pytest.approx(expected)
  assert result.holm_p_value == result.comparison.p_value


def test_rows_that_differ_have_different_settings():
  cells = [
    cell("softmax_token_choice", [0.1, 0.2], importance_loss_weight=0.0),
    cell("softmax_token_choice", [0.1, 0.2], importance_loss_weight=0.05),
    cell("softmax_token_choice", [0.1, 0.2], num_selected_experts=2),
    cell("softmax_token_choice", [0.1, 0.2], capacity_factor=2.0),
    cell("soft", [0.1, 0.2], experts=32),
    cell("soft", [0.1, 0.2], experts=64),
    cell("soft", [], rate=4e-3),
  ]
  names = settings(cells).names
  for table in (accuracy_table(cells), cost_table(cells)):
    width = len(names)
    rows = [tuple(row[:width]) for row in table.rows]
    assert len(set(rows)) == len(rows)
    assert table.rows[-1][width] == "missing"
  assert names == [
    "router",
    "K",
    "capacity",
    "model.moe.options.importance_loss_weight",
    "model.moe.options.num_experts",
    "train.rate",
  ]


def test_estimates_are_formatted_for_readers_and_for_programs():
  values = [["a", Estimate(1.234, 0.5, 3)], ["b", "missing"]]
  table = Table(["x", "y"], values)
  assert table.as_text() == [["a", "1.23 ± 0.50"], ["b", "missing"]]
  assert Table(["x", "y"], values, signed=True).as_text()[0][1][0] == "+"
  numbers = table.as_numbers()
  assert numbers.header == ["x", "y %", "y ± %"]
  assert numbers.rows == [["a", "1.23", "0.50"], ["b", "missing", ""]]
