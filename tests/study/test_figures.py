"""Figures of the study agree with the numbers."""

import dataclasses
import pathlib

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy.optimize import minimize

from vmoe_study.drawing.figure_files import figure_pixels
from vmoe_study.study import cost_figure as costs
from vmoe_study.study import figures, results

pytestmark = pytest.mark.slow

GRID = pathlib.Path(__file__).parents[2] / "notebooks" / "study" / "grid"

SOFTMAX = {
  f"glyphs,router=softmax_token_choice,k=1,capacity=1,group=8,{priority}balance=0.05"
  for priority in ("", "batch_priority=true,")
}


@pytest.fixture(scope="module")
def cells():
  """The committed results: 21 models, eight seeds or more of each."""
  return results.load([GRID])


@pytest.mark.parametrize("seed", range(3))
def test_points_move_as_little_as_possible(seed):
  x = np.random.default_rng(seed).uniform(0, 1, 8).round(1)
  order = np.argsort(x, kind="stable")
  apart = costs.MIN_GAP * np.ptp(x)
  moved = costs.move_apart(x)
  expected = minimize(
    lambda y: ((y - x[order]) ** 2).sum(),
    x[order],
    constraints={"type": "ineq", "fun": lambda y: np.diff(y) - apart},
  )
  np.testing.assert_allclose(moved[order], expected.x, atol=1e-4)


def test_points_that_are_apart_are_not_moved():
  np.testing.assert_array_equal(costs.move_apart([3, 1, 2]), [3, 1, 2])
  assert len(costs.move_apart([])) == 0
  assert np.ptp(costs.move_apart([5, 5])) == pytest.approx(
    5 * costs.MIN_RANGE * costs.MIN_GAP
  )


def test_every_model_has_a_point_of_its_own(cells):
  panel = costs.cost_figure(cells).axes[0]
  points = [bars[0].get_xydata()[0] for bars in panel.containers]
  assert len(points) == len(cells) == 21
  steps = np.diff(sorted(x for x, _ in points))
  tflops = [np.mean(costs.training_tflops(cell)) for cell in cells]
  assert steps.min() > 0.9 * costs.MIN_GAP * np.ptp(tflops)


def test_the_legend_shows_routers_as_they_are_drawn(cells):
  figure = costs.cost_figure(cells)
  drawn = {
    (bars[0].get_marker(), to_hex(bars[0].get_color()))
    for bars in figure.axes[0].containers
  }
  handles = figure.legends[0].legend_handles
  routers = [
    (handle.get_marker(), to_hex(handle.get_color()))
    for handle in handles
    if handle.get_color() != "grey"
  ]
  assert len(routers) == 7 and set(routers) <= drawn


@pytest.mark.parametrize(
  ("seeds", "text"),
  [
    ((0, 1), "Mean over 2 seeds with 95% interval."),
    ((0,), "Mean over 1 to 16 seeds with 95% interval."),
    ((), "One seed"),
  ],
)
def test_the_title_says_how_many_seeds(cells, seeds, text):
  runs = {seed: cells[0].runs[seed] for seed in seeds or (0,)}
  part = dataclasses.replace(cells[0], runs=runs)
  shown = [part, *cells[1:]] if len(seeds) == 1 else [part]
  title = figures.accuracy_figure(shown).get_suptitle()
  assert title.startswith(text)
  assert ("interval" in title) == bool(seeds)


def test_rows_have_no_empty_margin(cells):
  for draw in (figures.accuracy_figure, figures.routing_figure):
    assert draw(cells).axes[0].get_ylim() == (20.5, -0.5)


def test_what_cannot_be_negative_begins_at_zero(cells):
  few = [
    dataclasses.replace(cell, runs={seed: cell.runs[seed] for seed in (0, 1)})
    for cell in cells[1:4]
  ]
  figure = figures.routing_figure(few)
  assert [axes.get_xlim()[0] for axes in figure.axes] == [0] * 4


def named(cell, name, /, **changes):
  """The cell with another name, and other values of fields of its data."""
  data = {**cell.config["data"], **changes}
  config = {**cell.config, "data": data}
  return dataclasses.replace(cell, name=name, config=config)


LONG = "resize_small(256)|central_crop(224)|randaug(2, 10)|value_range(0, 1)"


@pytest.mark.parametrize(
  "changes",
  [
    [{}, {}, {}, {"ops": LONG}],  # Three have names only.
    [dict.fromkeys(("ops", "split", "data_dir", "name"), LONG), {}],
  ],
)
def test_long_and_odd_names_leave_room_for_the_panels(cells, changes, recwarn):
  names = ["run |v2| 50%_#1 $a_b$", "größe_猫\nzwei", "x" * 300, "other"]
  odd = [
    named(cells[1], name, **change)
    for name, change in zip(names, changes, strict=False)
  ]
  for figure in figures.figures(odd).values():
    size = figure_pixels(figure).shape
    panels = figures.PANEL * len(figure.axes)
    assert size[1] < (10.4 + panels) * figure.dpi
    for panel in figure.axes:
      box = panel.get_window_extent()
      assert box.width > 1.2 * figure.dpi and box.height > 0.4 * figure.dpi
      for text in panel.get_yticklabels():
        assert text.get_window_extent().x0 >= 0
    for legend in figure.legends:
      box = legend.get_window_extent()
      assert 0 <= box.x0 < box.x1 <= size[1]
  assert not recwarn.list


def test_runs_with_the_same_settings_are_called_by_their_names(cells):
  same = [named(cells[1], "first"), named(cells[1], "second")]
  panel = figures.accuracy_figure(same).axes[0]
  texts = [text.get_text() for text in panel.get_yticklabels()]
  assert texts == [f"{n}, softmax expert choice" for n in ("first", "second")]
  key = costs.cost_figure(same).legends[0]
  assert [text.get_text() for text in key.get_texts()] == texts
  colours = {to_hex(line.get_color()) for line in key.legend_handles}
  assert len(colours) == 2


def test_what_all_cells_share_is_not_in_their_labels(cells):
  """Both have one expert per token and route eight images at a time."""
  first, second = (cell for cell in cells if cell.name in SOFTMAX)
  panel = figures.accuracy_figure([first, second]).axes[0]
  texts = [text.get_text() for text in panel.get_yticklabels()]
  assert texts == ["softmax token choice", "softmax token choice, priority"]


def test_values_of_most_cells_are_in_the_title_only(cells):
  figure = figures.accuracy_figure(cells)
  texts = [text.get_text() for text in figure.axes[0].get_yticklabels()]
  assert "Where not stated: mlp_dim=160" in figure.get_suptitle()
  assert not any("mlp_dim=160" in text for text in texts)
  assert sum("mlp_dim=" in text for text in texts) == 2
  assert len({*texts}) == len(cells)


def test_routers_outside_the_study_have_colours_of_their_own(cells):
  def routed(router):
    moe = {**cells[1].moe, "router": router}
    model = {**cells[1].config["model"], "moe": moe}
    return dataclasses.replace(
      cells[1], config={**cells[1].config, "model": model}
    )

  others = [routed(name) for name in ("base", "hash", "relu", "threshold")]
  panel = figures.accuracy_figure([cells[1], *others]).axes[0]
  colours = {to_hex(bars[0].get_color()) for bars in panel.containers}
  assert len(colours) == 5


def test_a_single_model_has_no_figure_of_costs_and_no_error_bars(cells):
  one = dataclasses.replace(cells[1], runs={0: cells[1].runs[0]})
  drawn = figures.figures([one])
  assert drawn.keys() == {"accuracy", "health"}
  assert not any(bars.has_xerr for bars in drawn["accuracy"].axes[0].containers)
