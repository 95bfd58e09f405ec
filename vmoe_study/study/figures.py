"""Figures of the study: accuracy, cost, speed, and routing metrics."""

import statistics
import textwrap
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmoe_study.drawing.labels import text_width
from vmoe_study.study.cost_figure import cost_figure
from vmoe_study.study.planned import Analysis
from vmoe_study.study.planned_figure import planned_figure
from vmoe_study.study.results import Cell
from vmoe_study.study.settings import settings
from vmoe_study.study.statistics import estimate
from vmoe_study.study.styles import (
  cell_colours,
  half_width,
  labels,
  marker,
  percent,
  percent_label,
  setting,
  shapes,
  usual_values,
)
from vmoe_study.study.tables import (
  MISSING,
  accuracy_metrics,
  by_family,
  describe_seeds,
  routing_metric,
)

ROW, PANEL = 0.24, 3.2  # Height of a row and width of a panel, in inches.
LETTER = 0.078  # Width of a letter, in inches.


def accuracy_figure(cells: Sequence[Cell]) -> Figure:
  """Mean and 95% interval of each accuracy metric, with a row per cell."""
  cells, metrics = by_family(cells), accuracy_metrics(cells)
  colours, handles = cell_colours(cells), shapes(cells)
  figure, panels = row_panels(cells, max(len(metrics), 1), 0.5)
  for panel, metric in zip(panels, metrics, strict=False):
    for row, (cell, colour) in enumerate(zip(cells, colours, strict=True)):
      _point(panel, cell, metric, row, colour)
      if cell.router == "dense" and cell.values(metric):
        mean = statistics.fmean(100 * x for x in cell.values(metric))
        panel.axvline(mean, color=colour, lw=0.6, ls=":")
    panel.set_xlabel(percent_label(metric))
    panel.grid(axis="x", alpha=0.3)
  notes = [describe_seeds(cells), *_unlabelled(cells)]
  if any(cell.router == "dense" and cell.runs for cell in cells):
    notes.append("Dotted line: dense model")
  if "group" in settings(cells).names:
    notes.append("im.: images per routing group")
  _title(figure, ". ".join(notes))
  if handles:
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
  return figure


def _unlabelled(cells: Sequence[Cell]) -> list[str]:
  """A note on the values that `labels` leaves out, if there are any."""
  texts = [setting(*item) for item in usual_values(cells).items() if item[1]]
  return [f"Where not stated: {', '.join(texts)}"] if texts else []


def row_panels(
  cells: Sequence[Cell], count: int, more: float
) -> tuple[Figure, Sequence[Axes]]:
  """Panels side by side, with a row per cell, labelled from top to bottom.

  Args:
    cells: cells in order.
    count: number of panels.
    more: additional height besides rows, title and axis, in inches.
  """
  texts = labels(cells)
  margin = 0.4 + LETTER * max(map(text_width, texts), default=0)
  size = margin + PANEL * count, 0.8 + more + ROW * max(len(cells), 2)
  figure = Figure(figsize=size, layout="constrained")
  panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
  panels[0].set_yticks(range(len(cells)), texts)
  panels[0].set_ylim(len(cells) - 0.5, -0.5)  # No empty margins.
  return figure, panels


def _title(figure: Figure, text: str) -> None:
  """A title on as many lines as the width of the figure takes."""
  letters = int(figure.get_figwidth() / 0.1)
  figure.suptitle(textwrap.fill(text, letters), fontsize="medium")


def _point(panel, cell: Cell, metric: str, row: float, colour: str) -> None:
  found = percent(cell, metric)
  if not found.count:
    side = {"transform": panel.get_yaxis_transform(), "va": "center"}
    panel.text(0.02, row, MISSING, color="grey", fontsize="small", **side)
    return
  style = {"color": colour, "capsize": 2, "markersize": 5}
  width = half_width(found)
  panel.errorbar(found.mean, row, xerr=width, fmt=marker(cell), **style)


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
  """Unprocessed tokens and expert load at the end of training, and speed.

  Panels without values are left out.
  """
  cells = by_family(cells)
  measures = {
    name: measure
    for name, measure in _ROUTING.items()
    if any(map(measure, cells))
  }
  colours = cell_colours(cells)
  figure, panels = row_panels(cells, max(len(measures), 1), 0.3)
  for panel, (name, measure) in zip(panels, measures.items(), strict=False):
    for row, cell in enumerate(cells):
      found = estimate(measure(cell))
      if found.count:
        style = {"ecolor": "black", "capsize": 2, "color": colours[row]}
        panel.barh(row, found.mean, xerr=half_width(found), **style)
    panel.set_xlim(left=0)  # Intervals of few seeds reach below.
    panel.set_xlabel(name)
    panel.grid(axis="x", alpha=0.3)
  _title(
    figure,
    ". ".join(
      (
        "Routing of the last training batch, averaged over layers, and speed",
        describe_seeds(cells),
        *_unlabelled(cells),
      )
    ),
  )
  return figure


def figures(
  cells: Sequence[Cell], analysis: Analysis | None = None
) -> dict[str, Figure]:
  """All figures by name.

  "planned" only with an analysis, "cost" only if several cells have runs.
  """
  drawn = {"planned": planned_figure(cells, analysis)} if analysis else {}
  drawn["accuracy"] = accuracy_figure(cells)
  if sum(bool(cell.runs) for cell in cells) > 1:
    drawn["cost"] = cost_figure(cells)
  return drawn | {"health": routing_figure(cells)}
