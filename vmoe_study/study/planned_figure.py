"""The figure of the planned contrasts: differences with their intervals."""

import itertools
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmoe_study.study.planned import Analysis, PlannedResult, planned_results
from vmoe_study.study.results import Cell

ROW, PANEL, LABEL = 0.5, 3.2, 2.6  # In inches.
LEVEL, COLOUR = 0.05, "#0072B2"


def planned_figure(cells: Sequence[Cell], analysis: Analysis) -> Figure:
  """The planned contrasts with their 95% intervals, a panel per end point.

  Contrasts that Holm's correction leaves below 0.05 are filled; a band shows
  the equivalence margin of those that have one.
  """
  results = planned_results(cells, analysis)
  by_end_point = {
    name: list(found)
    for name, found in itertools.groupby(results, lambda each: each.end_point)
  }
  contrasts = [contrast.text for contrast in analysis.contrasts]
  size = LABEL + PANEL * len(by_end_point), 1.1 + ROW * len(contrasts)
  figure = Figure(figsize=size, layout="constrained")
  panels = figure.subplots(1, len(by_end_point), sharey=True, squeeze=False)[0]
  panels[0].set_yticks(
    range(len(contrasts)), [textwrap.fill(text, 34) for text in contrasts]
  )
  panels[0].set_ylim(len(contrasts) - 0.5, -0.5)
  for panel, (name, found) in zip(panels, by_end_point.items(), strict=True):
    for row, result in enumerate(found):
      _draw(panel, row, result)
    panel.axvline(0, color="black", lw=0.8)
    panel.set_xlabel(f"{name}: difference in percentage points")
    panel.grid(axis="x", alpha=0.3)
  figure.suptitle(
    "Planned contrasts with 95% intervals. Filled: p < .05 after Holm's "
    "correction",
    fontsize="medium",
  )
  return figure


def _draw(panel: Axes, row: int, result: PlannedResult) -> None:
  effect, margin = result.effect, result.contrast.margin
  if margin:
    panel.fill_betweenx(
      [row - 0.4, row + 0.4], -margin, margin, color="black", alpha=0.08, lw=0
    )
  panel.errorbar(
    effect.estimate,
    row,
    xerr=effect.half_width,
    fmt="o",
    color=COLOUR,
    markerfacecolor=COLOUR if result.holm_p_value < LEVEL else "white",
    capsize=3,
  )
