"""Figures of the study: accuracy, cost, throughput and routing health."""

import io
import math
from collections.abc import Callable, Sequence

import matplotlib as mpl
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vmoe_study.analysis.statistics import estimate
from vmoe_study.study.results import Cell
from vmoe_study.study.tables import (
  accuracy_metrics,
  by_family,
  health,
  settings,
)

# Of Okabe and Ito: they stay apart for colour-blind readers.
COLOURS = {
  "dense": "#000000",
  "softmax_token_choice": "#56B4E9",
  "sinkhorn_token_choice": "#0072B2",
  "sparsity_constrained_token_choice": "#999999",
  "softmax_expert_choice": "#E69F00",
  "sinkhorn_expert_choice": "#D55E00",
  "sparsity_constrained_expert_choice": "#F0E442",
  "soft": "#009E73",
}
MARKERS = {0.0: "s", 1.0: "o", 2.0: "^"}


def label(cell: Cell) -> str:
  """A cell in a line: "softmax token choice, K=2, 8 images, priority"."""
  router, cost, group, priority = settings(cell)
  words = [router.replace("_", " ")]
  if cost:
    letter = "K" if router.endswith("_token_choice") else "C"
    words += [f"{letter}={cost}", f"{group} im."]
  if priority == "yes":
    words.append("priority")
  return ", ".join(words)


def accuracy_figure(cells: Sequence[Cell]) -> Figure:
  """Mean and 95% interval of every accuracy, a row per cell."""
  cells, metrics = by_family(cells), accuracy_metrics(cells)
  figure = Figure(
    figsize=(4 + 3.2 * max(len(metrics), 1), 1 + 0.24 * len(cells)),
    layout="constrained",
  )
  panels = figure.subplots(1, max(len(metrics), 1), sharey=True, squeeze=False)
  for panel, metric in zip(panels[0], metrics, strict=False):
    for row, cell in enumerate(cells):
      _point(panel, cell, metric, row)
    panel.set_xlabel(f"{metric} (%)")
    panel.grid(axis="x", alpha=0.3)
  first = panels[0][0]
  first.set_yticks(range(len(cells)), [label(cell) for cell in cells])
  first.invert_yaxis()
  figure.suptitle("Mean over seeds and its 95% interval")
  return figure


def _point(panel, cell: Cell, metric: str, row: float) -> None:
  found = estimate([100 * value for value in cell.values(metric)])
  if not found.count:
    return
  width = 0 if math.isnan(found.half_width) else found.half_width
  style = {"color": COLOURS[cell.router], "capsize": 2, "markersize": 5}
  panel.errorbar(found.mean, row, xerr=width, fmt=_marker(cell), **style)


def _marker(cell: Cell) -> str:
  return MARKERS.get(cell.cost, "D")


def cost_figure(cells: Sequence[Cell]) -> Figure:
  """Accuracy against what training costs: FLOPs and seconds."""
  metrics = accuracy_metrics(cells)
  axes: list[tuple[str, Callable[[Cell], list[float]]]] = [
    ("training TFLOP (matrix products)", training_tflops),
    ("training seconds", lambda cell: cell.values("seconds")),
  ]
  rows = max(len(metrics), 1)
  figure = Figure(figsize=(11, 1.2 + 3 * rows), layout="constrained")
  panels = figure.subplots(rows, 2, squeeze=False, sharex="col", sharey="row")
  for row, metric in enumerate(metrics):
    for panel, (name, measure) in zip(panels[row], axes, strict=True):
      for cell in cells:
        _cost_point(panel, cell, measure, metric)
      panel.grid(alpha=0.3)
      if row == rows - 1:
        panel.set_xlabel(name)
    panels[row][0].set_ylabel(f"{metric} (%)")
  _legend(figure, cells)
  return figure


def training_tflops(cell: Cell) -> list[float]:
  """Model FLOPs of the whole training, in 10^12, per seed."""
  batch = cell.config["train"]["batch_size"]
  return [
    run["flops_per_image"] * run["num_steps"] * batch / 1e12
    for _, run in sorted(cell.runs.items())
  ]


def _cost_point(panel, cell, measure, metric) -> None:
  accuracy = estimate([100 * value for value in cell.values(metric)])
  cost = estimate(measure(cell))
  if not accuracy.count or not cost.count:
    return
  width = 0 if math.isnan(accuracy.half_width) else accuracy.half_width
  panel.errorbar(
    cost.mean,
    accuracy.mean,
    yerr=width,
    fmt=_marker(cell),
    color=COLOURS[cell.router],
    markersize=6,
    markerfacecolor=COLOURS[cell.router] if cell.group_images == 1 else "white",
    capsize=2,
  )


def _legend(figure: Figure, cells: Sequence[Cell]) -> None:
  """Colours are routers, shapes costs, filling groups."""
  routers = {cell.router for cell in cells}
  handles = [
    Line2D(
      [], [], color=colour, marker="o", ls="", label=name.replace("_", " ")
    )
    for name, colour in COLOURS.items()
    if name in routers
  ]
  for cost in sorted({cell.cost for cell in cells if cell.cost}):
    shape = MARKERS.get(cost, "D")
    handles.append(
      Line2D(
        [], [], color="grey", marker=shape, ls="", label=f"K or C = {cost:g}"
      )
    )
  for group in sorted({cell.group_images for cell in cells}):
    face = "grey" if group == 1 else "white"
    style = {"color": "grey", "marker": "o", "markerfacecolor": face, "ls": ""}
    handles.append(Line2D([], [], **style, label=f"groups of {group}"))
  figure.legend(
    handles=handles, loc="outside lower center", ncols=4, fontsize="small"
  )


def health_figure(cells: Sequence[Cell]) -> Figure:
  """Load and dropped tokens at the end of training; speed."""
  cells = [cell for cell in by_family(cells) if cell.runs]
  measures: list[tuple[str, Callable[[Cell], list[float]]]] = [
    (
      "tokens dropped (%)",
      lambda c: [100 * x for x in health(c, "unprocessed")],
    ),
    ("load of the busiest expert / mean", lambda c: health(c, "max_load")),
    ("load of the idlest expert / mean", lambda c: health(c, "min_load")),
    ("images/s in training", lambda c: c.values("images_per_second")),
  ]
  size = (16, 1 + 0.24 * max(len(cells), 4))
  figure = Figure(figsize=size, layout="constrained")
  panels = figure.subplots(1, len(measures), sharey=True)
  for panel, (name, measure) in zip(panels, measures, strict=True):
    means = [estimate(measure(cell)).mean for cell in cells]
    colours = [COLOURS[cell.router] for cell in cells]
    panel.barh(range(len(cells)), means, color=colours, edgecolor="grey")
    panel.set_xlabel(name)
    panel.grid(axis="x", alpha=0.3)
  panels[0].set_yticks(range(len(cells)), [label(cell) for cell in cells])
  panels[0].invert_yaxis()
  return figure


def figures(cells: Sequence[Cell]) -> dict[str, Figure]:
  """All figures by name."""
  return {
    "accuracy": accuracy_figure(cells),
    "cost": cost_figure(cells),
    "health": health_figure(cells),
  }


def save(figure: Figure, path: epath.PathLike, name: str) -> None:
  """Writes NAME.png and NAME.svg; the same bytes for the same figure."""
  FigureCanvasAgg(figure)
  metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
  with mpl.rc_context({"svg.hashsalt": name}):
    for form, entries in metadata.items():
      buffer = io.BytesIO()
      figure.savefig(buffer, format=form, dpi=120, metadata=entries)
      (epath.Path(path) / f"{name}.{form}").write_bytes(buffer.getvalue())
