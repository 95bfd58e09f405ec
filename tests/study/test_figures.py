"""Figures of the study agree with the numbers."""

import dataclasses
import pathlib

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy.optimize import minimize

from vmoe_study.study import figures, results

STUDY = pathlib.Path(__file__).parents[2] / "notebooks" / "study"


@pytest.fixture(scope="module")
def cells():
  """The committed results: 31 models, five seeds each."""
  return results.load([STUDY])


@pytest.mark.parametrize("seed", range(3))
def test_points_move_as_little_as_possible(seed):
  x = np.random.default_rng(seed).uniform(0, 1, 8).round(1)
  order = np.argsort(x, kind="stable")
  apart = figures.MIN_GAP * np.ptp(x)
  moved = figures.move_apart(x)
  expected = minimize(
    lambda y: ((y - x[order]) ** 2).sum(),
    x[order],
    constraints={"type": "ineq", "fun": lambda y: np.diff(y) - apart},
  )
  np.testing.assert_allclose(moved[order], expected.x, atol=1e-4)


def test_points_that_are_apart_are_not_moved():
  np.testing.assert_array_equal(figures.move_apart([3, 1, 2]), [3, 1, 2])
  assert len(figures.move_apart([])) == 0
  assert np.ptp(figures.move_apart([5, 5])) == pytest.approx(
    5 * figures.MIN_GAP
  )


def test_every_model_has_a_point_of_its_own(cells):
  panel = figures.cost_figure(cells).axes[0]
  points = [bars[0].get_xydata()[0] for bars in panel.containers]
  assert len(points) == len(cells) == 31
  steps = np.diff(sorted(x for x, _ in points))
  assert steps.min() > 0.9 * figures.MIN_GAP * 0.5  # TFLOPs span more than 0.5.


def test_the_legend_shows_routers_as_they_are_drawn(cells):
  figure = figures.cost_figure(cells)
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
  ("seeds", "text"), [((0, 1), "2 seeds"), ((0,), "1 to 5 seeds")]
)
def test_the_title_says_how_many_seeds(cells, seeds, text):
  runs = {seed: cells[0].runs[seed] for seed in seeds}
  part = dataclasses.replace(cells[0], runs=runs)
  shown = [part] if len(seeds) == 2 else [part, *cells[1:]]
  title = figures.accuracy_figure(shown).get_suptitle()
  assert f"over {text} " in title


def test_rows_have_no_empty_margin(cells):
  for draw in (figures.accuracy_figure, figures.routing_figure):
    assert draw(cells).axes[0].get_ylim() == (30.5, -0.5)
