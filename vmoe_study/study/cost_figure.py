"""Accuracy against cost, as a figure."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from vmoe_study.drawing.labels import text_width
from vmoe_study.study.results import Cell
from vmoe_study.study.statistics import Estimate
from vmoe_study.study.styles import (
  cell_colours,
  groups,
  half_width,
  handle,
  have_own_colours,
  labels,
  look,
  percent,
  percent_label,
  router_colours,
  shapes,
)
from vmoe_study.study.tables import accuracy_metrics, by_family

# Minimum distance of points of similar cost, as a fraction of the cost range.
MIN_GAP = 0.016
MIN_RANGE = 0.1  # Of an axis of costs, as a fraction of the mean cost.
WIDTH = 12  # Of the figure, in inches.


def cost_figure(cells: Sequence[Cell]) -> Figure:
  """Accuracy against the cost of training, in FLOPs and in seconds.

  Points of models with equal FLOPs are moved apart.
  """
  cells = by_family(cells)
  colours = zip(cells, cell_colours(cells), strict=True)
  looks = [look(cell, cells, colour) for cell, colour in colours]
  handles = _legend(cells, looks)
  has_run = [bool(cell.runs) for cell in cells]
  looks = list(itertools.compress(looks, has_run))
  cells = list(itertools.compress(cells, has_run))
  metrics = accuracy_metrics(cells)
  tflops = [statistics.fmean(training_tflops(cell)) for cell in cells]
  apart = move_apart(tflops)
  shift = np.abs(apart - tflops).max(initial=0)
  seconds = [statistics.median(cell.values("seconds")) for cell in cells]
  moved = f"\n(points of similar cost are moved apart by up to {shift:.2g})"
  axes: dict[str, Iterable[float]] = {
    f"training TFLOP of matrix products{moved if shift else ''}": apart,
    "training seconds, median over seeds": seconds,
  }
  rows = max(len(metrics), 1)
  figure = Figure(figsize=(WIDTH, 1.2 + 3.2 * rows), layout="constrained")
  panels = figure.subplots(rows, 2, squeeze=False, sharex="col", sharey="row")
  for row, metric in enumerate(metrics):
    for panel, costs in zip(panels[row], axes.values(), strict=True):
      for cell, cost, style in zip(cells, costs, looks, strict=True):
        _cost_point(panel, cost, percent(cell, metric), style)
      panel.grid(alpha=0.3)
    panels[row][0].set_ylabel(percent_label(metric))
  for panel, (name, costs) in zip(panels[-1], axes.items(), strict=True):
    panel.set_xlabel(name)
    middle, least = np.mean(costs), MIN_RANGE * np.mean(costs)
    if np.ptp(costs) < least:  # Do not show a small difference as a large one.
      panel.set_xlim(middle - least / 2, middle + least / 2)
  widest = max(text_width(handle.get_label()) for handle in handles)
  columns = int(WIDTH / (0.6 + 0.075 * widest))
  figure.legend(
    handles=handles,
    loc="outside lower center",
    ncols=min(max(columns, 1), 4),
    fontsize="small",
  )
  return figure


def training_tflops(cell: Cell) -> list[float]:
  """FLOPs of the model over the whole training, in TFLOP, for each seed."""
  batch = cell.config["train"]["batch_size"]
  return [
    run["flops_per_image"] * run["step"] * batch / 1e12
    for _, run in sorted(cell.runs.items())
  ]


def move_apart(values: Sequence[float]) -> np.ndarray:
  """The closest values, in the same order, that are at least a gap apart.

  The gap is `MIN_GAP` of the range of the axis.

  Let x_i be sorted and d the gap. Values y_i are d apart if and only if
  z_i = y_i - i d is non-decreasing. The y closest to x, in the sense of least
  squares, thus comes from the isotonic regression of x_i - i d.
  """
  x = np.asarray(values, float)
  if not x.size:
    return x
  order = np.argsort(x, kind="stable")
  width = max(np.ptp(x), MIN_RANGE * x.mean())
  steps = MIN_GAP * width * np.arange(x.size)
  y = np.empty_like(x)
  y[order] = isotonic_regression(x[order] - steps).x + steps
  return y


def _cost_point(
  panel: Axes, cost: float, accuracy: Estimate, style: Mapping[str, str]
) -> None:
  if accuracy.count:
    options = {"ls": "", "markersize": 6, "capsize": 2, **style}
    width = half_width(accuracy)
    panel.errorbar(cost, accuracy.mean, yerr=width, **options)


def _legend(
  cells: Sequence[Cell], looks: Sequence[Mapping[str, str]]
) -> list[Line2D]:
  """Explains colours (routers), shapes (costs) and fillings (groups).

  If these do not distinguish a few cells, every cell has its own entry.
  """
  if have_own_colours(cells):
    pairs = zip(labels(cells), looks, strict=True)
    return [handle(text, **style) for text, style in pairs]
  handles = [
    handle(
      name.replace("_", " "),
      color=colour,
      marker="s" if name == "dense" else "o",
    )
    for name, colour in router_colours(cells).items()
  ]
  handles += shapes(cells)
  smallest, *larger = groups(cells) or [1]
  for group in (smallest, *larger) if larger else ():
    handles.append(
      handle(
        f"groups of {group} image{'s' * (group > 1)}",
        marker="o",
        color="grey",
        markerfacecolor="grey" if group == smallest else "white",
      )
    )
  return handles
