"""Figures of the study: accuracy, cost, speed, and routing metrics."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from vmoe_study.study.results import Cell
from vmoe_study.study.settings import differing_fields, setting_values
from vmoe_study.study.statistics import Estimate, estimate
from vmoe_study.study.tables import (
  MISSING,
  accuracy_metrics,
  by_family,
  routing_metric,
)

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
  "dense": "#000000",
  "softmax_token_choice": "#56B4E9",
  "sinkhorn_token_choice": "#0072B2",
  "sparsity_constrained_token_choice": "#999999",
  "softmax_expert_choice": "#E69F00",
  "sinkhorn_expert_choice": "#D55E00",
  "sparsity_constrained_expert_choice": "#CC79A7",
  "soft": "#009E73",
}
OTHER_COLOUR = "#8C564B"  # Of routers that are not part of the library.
MARKERS = {0.0: "s", 1.0: "o", 2.0: "^"}
# Minimum distance of points of similar cost, as a fraction of the cost range.
MIN_GAP = 0.016


def label(cell: Cell, cells: Sequence[Cell] = ()) -> str:
  """Describes a cell: "softmax token choice, K=2, 8 im., priority".

  Args:
    cell: the cell to describe.
    cells: all cells of the figure; other settings in which they differ follow.
  """
  router, chosen, capacity, group, priority, *more = setting_values(cell, cells)
  words = [router.replace("_", " ")]
  words += [f"K={chosen}"] if chosen else []
  if capacity and not (chosen and capacity == "1"):
    words.append(f"capacity {capacity}")
  words += [f"{group} im."] if group else []
  words += ["priority"] if priority == "yes" else []
  names = differing_fields(cells)
  words += [
    f"{name.rpartition('.')[2]}={value}"
    for name, value in zip(names, more, strict=True)
  ]
  return ", ".join(words)


def _colour(cell: Cell) -> str:
  return COLOURS.get(cell.router, OTHER_COLOUR)


def accuracy_figure(cells: Sequence[Cell]) -> Figure:
  """Mean and 95% interval of each accuracy metric, with a row per cell."""
  cells, metrics = by_family(cells), accuracy_metrics(cells)
  figure = Figure(
    figsize=(4 + 3.2 * max(len(metrics), 1), 1 + 0.24 * len(cells)),
    layout="constrained",
  )
  panels = figure.subplots(1, max(len(metrics), 1), sharey=True, squeeze=False)
  for panel, metric in zip(panels[0], metrics, strict=False):
    for row, cell in enumerate(cells):
      _point(panel, cell, metric, row)
    for cell in cells:
      if cell.router == "dense" and cell.values(metric):
        mean = statistics.fmean(100 * x for x in cell.values(metric))
        panel.axvline(mean, color=_colour(cell), lw=0.6, ls=":")
    panel.set_xlabel(f"{metric} (%)")
    panel.grid(axis="x", alpha=0.3)
  _name_rows(panels[0][0], cells)
  figure.suptitle(
    f"Mean over {_seeds(cells)} with 95% interval. Dotted line: dense model. "
    "im.: images per routing group"
  )
  figure.legend(handles=_shapes(cells), loc="outside lower center", ncols=4)
  return figure


def _name_rows(panel, cells: Sequence[Cell]) -> None:
  """Labels the rows from top to bottom, without empty margins."""
  panel.set_yticks(range(len(cells)), [label(cell, cells) for cell in cells])
  panel.set_ylim(len(cells) - 0.5, -0.5)


def _seeds(cells: Sequence[Cell]) -> str:
  """For titles: "5 seeds", or "2 to 5 seeds" if some runs are missing."""
  counts = [len(cell.runs) for cell in cells if cell.runs] or [0]
  fewest, most = min(counts), max(counts)
  return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"


def _percent(cell: Cell, metric: str) -> Estimate:
  return estimate([100 * value for value in cell.values(metric)])


def _half_width(found: Estimate) -> float:
  """Half-width of the error bar: 0, which is not drawn, for a single run."""
  return 0.0 if math.isnan(found.half_width) else found.half_width


def _point(panel, cell: Cell, metric: str, row: float) -> None:
  found = _percent(cell, metric)
  if not found.count:
    side = {"transform": panel.get_yaxis_transform(), "va": "center"}
    panel.text(0.02, row, MISSING, color="grey", fontsize="small", **side)
    return
  style = {"color": _colour(cell), "capsize": 2, "markersize": 5}
  width = _half_width(found)
  panel.errorbar(found.mean, row, xerr=width, fmt=_marker(cell), **style)


def _marker(cell: Cell) -> str:
  return MARKERS.get(cell.cost, "D")


def cost_figure(cells: Sequence[Cell]) -> Figure:
  """Accuracy against the cost of training, in FLOPs and in seconds.

  Points of models that cost the same FLOPs are moved apart.
  """
  cells = [cell for cell in by_family(cells) if cell.runs]
  metrics = accuracy_metrics(cells)
  tflops = [statistics.fmean(training_tflops(cell)) for cell in cells]
  apart = move_apart(tflops)
  shift = np.abs(apart - tflops).max(initial=0)
  seconds = [statistics.median(cell.values("seconds")) for cell in cells]
  axes: dict[str, Iterable[float]] = {
    "training TFLOP of matrix products\n"
    f"(points of similar cost are moved apart by up to {shift:.2g})": apart,
    "training seconds, median over seeds": seconds,
  }
  rows = max(len(metrics), 1)
  figure = Figure(figsize=(12, 1.2 + 3.2 * rows), layout="constrained")
  panels = figure.subplots(rows, 2, squeeze=False, sharex="col", sharey="row")
  for row, metric in enumerate(metrics):
    for panel, costs in zip(panels[row], axes.values(), strict=True):
      for cell, cost in zip(cells, costs, strict=True):
        _cost_point(panel, cell, cost, metric)
      panel.grid(alpha=0.3)
    panels[row][0].set_ylabel(f"{metric} (%)")
  for panel, name in zip(panels[-1], axes, strict=True):
    panel.set_xlabel(name)
  _legend(figure, cells)
  return figure


def training_tflops(cell: Cell) -> list[float]:
  """FLOPs of the model over the whole training, in 10^12, for each seed."""
  batch = cell.config["train"]["batch_size"]
  return [
    run["flops_per_image"] * run["step"] * batch / 1e12
    for _, run in sorted(cell.runs.items())
  ]


def move_apart(values: Sequence[float]) -> np.ndarray:
  """The closest values in the same order that are at least `MIN_GAP` apart.

  Let x_i be sorted and d the gap. Values y_i are d apart if and only if
  z_i = y_i - i d is non-decreasing. The y closest to x, in the sense of least
  squares, thus comes from the isotonic regression of x_i - i d.
  """
  x = np.asarray(values, float)
  if not x.size:
    return x
  order = np.argsort(x, kind="stable")
  steps = MIN_GAP * (np.ptp(x) or x.max()) * np.arange(x.size)
  y = np.empty_like(x)
  y[order] = isotonic_regression(x[order] - steps).x + steps
  return y


def _cost_point(panel, cell: Cell, cost: float, metric: str) -> None:
  accuracy = _percent(cell, metric)
  if not accuracy.count:
    return
  panel.errorbar(
    cost,
    accuracy.mean,
    yerr=_half_width(accuracy),
    fmt=_marker(cell),
    color=_colour(cell),
    markersize=6,
    markerfacecolor=_colour(cell) if cell.group_images == 1 else "white",
    capsize=2,
  )


def _legend(figure: Figure, cells: Sequence[Cell]) -> None:
  """Explains colours (routers), shapes (costs) and fillings (groups)."""
  routers = {cell.router: _colour(cell) for cell in cells}
  handles = [
    _handle(name.replace("_", " "), "s" if name == "dense" else "o", colour)
    for name, colour in routers.items()
  ]
  handles += _shapes(cells)
  for group in sorted({cell.group_images for cell in cells}):
    face = "grey" if group == 1 else "white"
    text = f"groups of {group} image{'s' * (group > 1)}"
    handles.append(_handle(text, "o", "grey", markerfacecolor=face))
  figure.legend(
    handles=handles, loc="outside lower center", ncols=4, fontsize="small"
  )


def _shapes(cells: Sequence[Cell]) -> list[Line2D]:
  return [
    _handle(f"K x capacity = {cost:g}", MARKERS.get(cost, "D"), "grey")
    for cost in sorted({cell.cost for cell in cells if cell.cost})
  ]


def _handle(text: str, marker: str, colour: str, **style) -> Line2D:
  return Line2D([], [], ls="", label=text, marker=marker, color=colour, **style)


# Label of the axis, and the values of a cell by seed.
_ROUTING: dict[str, Callable[[Cell], list[float]]] = {
  "tokens without any expert (%)": lambda cell: [
    100 * x for x in routing_metric(cell, "unprocessed")
  ],
  "load of the busiest expert\n(tokens / mean over experts)": lambda cell: (
    routing_metric(cell, "max_load")
  ),
  "load of the least busy expert\n(tokens / mean over experts)": lambda cell: (
    routing_metric(cell, "min_load")
  ),
  "images/s in training": lambda cell: cell.values("images_per_second"),
}


def routing_figure(cells: Sequence[Cell]) -> Figure:
  """Unprocessed tokens and expert load at the end of training, and speed."""
  cells = by_family(cells)
  size = (17, 1.3 + 0.24 * max(len(cells), 4))
  figure = Figure(figsize=size, layout="constrained")
  panels = figure.subplots(1, len(_ROUTING), sharey=True)
  for panel, (name, measure) in zip(panels, _ROUTING.items(), strict=True):
    for row, cell in enumerate(cells):
      found = estimate(measure(cell))
      if found.count:
        style = {"color": _colour(cell), "ecolor": "black", "capsize": 2}
        panel.barh(row, found.mean, xerr=_half_width(found), **style)
    panel.set_xlabel(name)
    panel.grid(axis="x", alpha=0.3)
  _name_rows(panels[0], cells)
  figure.suptitle(
    "Routing of the last training batch, averaged over layers, and speed: "
    f"mean over {_seeds(cells)} with 95% interval"
  )
  return figure


def figures(cells: Sequence[Cell]) -> dict[str, Figure]:
  """All figures by name."""
  return {
    "accuracy": accuracy_figure(cells),
    "cost": cost_figure(cells),
    "health": routing_figure(cells),
  }
