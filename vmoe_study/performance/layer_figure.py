"""Figure of the layer benchmark: stacked bars of the forward breakdown."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PARTS = ("experts", "router", "solver", "choice", "dispatch", "combine")
Row = Mapping[str, Any]


def draw(rows: Sequence[Row], path: str) -> None:
  """Draws the breakdown: group sizes down, capacity factors across.

  Args:
    rows: the "rows" of `bench_layer`.
    path: file of the picture.
  """
  forward = [row for row in rows if row["pass"] == "forward"]
  group_sizes = sorted({row["group_images"] for row in forward})
  capacities = sorted({row["capacity"] for row in forward})
  num_bars = len({(row["router"], row["form"]) for row in forward})
  width = 2.4 + 3.8 * len(capacities)
  height = 1.4 + (0.6 + 0.33 * num_bars) * len(group_sizes)
  figure = Figure(figsize=(width, height), layout="constrained")
  axes = figure.subplots(
    len(group_sizes),
    len(capacities),
    sharex="col",
    sharey=True,
    squeeze=False,
  )
  panels = itertools.product(group_sizes, capacities)
  for axis, panel in zip(axes.flat, panels, strict=True):
    shown = [r for r in forward if (r["group_images"], r["capacity"]) == panel]
    _draw_panel(axis, shown)
    images = "1 image" if panel[0] == 1 else f"{panel[0]} images"
    axis.set_title(f"groups of {images}, capacity factor {panel[1]:g}")
  axes[0, 0].set_ylim(num_bars - 0.5, -0.5)
  handles = axes[0, 0].get_legend_handles_labels()
  figure.legend(*handles, loc="outside upper center", ncols=len(PARTS))
  figure.supxlabel(
    "forward time in milliseconds, parts timed one by one\n"
    "(index, dense: plan form)"
  )
  figure.savefig(path, dpi=120)


def _draw_panel(axis: Axes, rows: Sequence[Row]) -> None:
  labels = [
    textwrap.fill(f"{row['router']}, {row['form']}".replace("_", " "), 29)
    for row in rows
  ]
  left = [0.0] * len(rows)
  for part in PARTS:
    values = [row["breakdown_ms"].get(part, 0.0) for row in rows]
    axis.barh(labels, values, left=left, label=part)
    left = [a + b for a, b in zip(left, values, strict=True)]
  axis.grid(axis="x", alpha=0.3)
