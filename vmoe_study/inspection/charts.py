"""Charts of routing: load, classes, ablation, training and capacity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy import ndarray as Array

from vmoe_study.drawing.labels import name_label
from vmoe_study.inspection.statistics import CapacityPoint, LayerStatistics

BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.5"
MAX_NUMBERS = 400  # A matrix with more cells shows no numbers.
MAX_LABELS = 40  # A matrix with more rows shows no row labels.


def expert_charts(layer: LayerStatistics) -> Figure:
  """Charts of load, combine weight, experts per token and accuracy drop."""
  figure = Figure(figsize=(11, 6), layout="constrained")
  axes = figure.subplots(2, 2)
  _bars(axes[0, 0], layer.load, "load (tokens / mean over experts)")
  axes[0, 0].axhline(1, color=GREY, linestyle="--", label="balanced")
  axes[0, 0].set_ylim(0, 1.25 * max(1, layer.load.max()))
  axes[0, 0].legend(loc="upper right", fontsize=8)
  _bars(axes[0, 1], layer.combine_weight, "mean combine weight")
  _experts_per_token(axes[1, 0], layer)
  _accuracy_drops(axes[1, 1], layer)
  return figure


def _bars(axes: Axes, values: Sequence[float], label: str, **options) -> None:
  axes.bar(range(len(values)), values, color=BLUE, **options)
  zeros = np.flatnonzero(np.equal(values, 0))  # Their bars are invisible.
  axes.plot(zeros, 0 * zeros, "D", color=BLUE, markersize=5)
  axes.set(xlabel="expert", ylabel=label)
  axes.set_xticks(expert_ticks(len(values)))


def expert_ticks(num_experts: int) -> range:
  """Evenly spaced experts to label on an axis: all, if there is room."""
  return range(0, num_experts, -(-num_experts // 32))


def _experts_per_token(axes: Axes, layer: LayerStatistics) -> None:
  shares = layer.experts_per_token
  last = int(np.flatnonzero(shares).max(initial=1))
  axes.bar(range(last + 1), shares[: last + 1], color=BLUE)
  axes.patches[0].set_color(ORANGE)
  axes.patches[0].set_label("unprocessed")
  axes.legend()
  axes.set(xlabel="experts that process a token", ylabel="share of tokens")
  axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
  axes.yaxis.set_major_formatter(PercentFormatter(1))


def _accuracy_drops(axes: Axes, layer: LayerStatistics) -> None:
  drops = [100 * drop.mean for drop in layer.accuracy_drop]
  errors = [100 * drop.half_width for drop in layer.accuracy_drop]
  label = "accuracy drop without expert\n(points, 95% interval over images)"
  _bars(axes, drops, label, yerr=errors, ecolor="black", capsize=2)
  axes.axhline(0, color="black", linewidth=0.8)
  low, high = axes.get_ylim()
  axes.set_ylim(min(low, -0.5), max(high, 0.5))


def class_matrix(layer: LayerStatistics, class_names: Sequence[str]) -> Figure:
  """Shares of each class's combine weight by expert, in percent."""
  percent = 100 * layer.class_by_expert
  num_classes, num_experts = percent.shape
  size = min(3 + 0.5 * num_experts, 14), min(1.8 + 0.3 * num_classes, 12)
  figure = Figure(figsize=size, layout="constrained")
  axes = figure.subplots()
  image = axes.imshow(percent, aspect="auto", cmap="Blues", vmin=0)
  figure.colorbar(image, label="share of the class's combine weight (%)")
  axes.set(xlabel="expert", ylabel="class")
  axes.set_xticks(expert_ticks(num_experts))
  if num_classes <= MAX_LABELS:
    axes.set_yticks(range(num_classes), [*map(name_label, class_names)])
  if percent.size <= MAX_NUMBERS:
    _write_numbers(axes, percent)
  return figure


def _write_numbers(axes: Axes, values: Float[Array, "T E"]) -> None:
  middle = np.nanmax(values, initial=0) / 2
  for (row, column), value in np.ndenumerate(values):
    if not math.isnan(value):
      color = "white" if value > middle else "black"
      text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
      axes.text(
        column, row, text, ha="center", va="center", color=color, fontsize=7
      )


def training_chart(
  rows: Sequence[Mapping[str, float]], layers: Sequence[str]
) -> Figure | None:
  """Load and unprocessed tokens over training; None without routing metrics.

  Args:
    rows: rows of the run's metrics file.
    layers: names of the routed layers.
  """
  curves = {
    (layer, name): _curve(rows, f"train/routing/{layer}/{name}")
    for layer in layers
    for name in ("max_load", "min_load", "unprocessed")
  }
  if not any(len(steps) for steps, _ in curves.values()):
    return None
  figure = Figure(figsize=(11, 3.5), layout="constrained")
  load, unprocessed = figure.subplots(1, 2)
  _load_curves(load, layers, curves)
  for number, layer in enumerate(layers):
    style = _style(number)
    unprocessed.plot(*curves[layer, "unprocessed"], label=layer, **style)
  unprocessed.set(xlabel="step", ylabel="unprocessed tokens")
  unprocessed.set_ylim(0, max(0.05, unprocessed.get_ylim()[1]))
  unprocessed.yaxis.set_major_formatter(PercentFormatter(1))
  for axes in (load, unprocessed):
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
  return figure


def _load_curves(
  axes: Axes,
  layers: Sequence[str],
  curves: Mapping[tuple[str, str], "_Curve"],
) -> None:
  """Load of the busiest and the least busy expert of each layer.

  Layers whose experts all have the same load share one line.
  """
  balanced = []
  for number, layer in enumerate(layers):
    style = _style(number)
    most, least = curves[layer, "max_load"], curves[layer, "min_load"]
    if _is_same(most, least):
      balanced.append(layer)
      continue
    axes.plot(*most, label=f"{layer}, busiest", **style)
    axes.plot(*least, "--", label=f"{layer}, least busy", **style)
  if balanced:
    label = "all experts equal:\n" + "\n".join(balanced)
    axes.plot(*curves[balanced[0], "max_load"], ".-", color=GREY, label=label)
  axes.set(xlabel="step", ylabel="load (tokens / mean over experts)")
  axes.set_ylim(0, max(1.2, axes.get_ylim()[1]))


def _style(number: int) -> dict[str, Any]:
  return {"color": f"C{number % 10}", "marker": ".", "markersize": 4}


_Curve = tuple[list[float], list[float]]  # Steps and values.


def _curve(rows: Sequence[Mapping[str, float]], name: str) -> _Curve:
  points = [(row["step"], row[name]) for row in rows if name in row]
  return [step for step, _ in points], [value for _, value in points]


def _is_same(first: _Curve, second: _Curve) -> bool:
  return first[0] == second[0] and np.allclose(first[1], second[1], atol=1e-3)


def capacity_chart(
  points: Sequence[CapacityPoint], trained_capacity: float
) -> Figure:
  """Accuracy against capacity factor at test time, with 95% intervals."""
  figure = Figure(figsize=(6, 3.8), layout="constrained")
  axes = figure.subplots()
  factors = [point.factor for point in points]
  axes.errorbar(
    factors,
    [100 * point.accuracy.mean for point in points],
    [100 * point.accuracy.half_width for point in points],
    marker="o",
    capsize=3,
    label="this checkpoint, 95% interval over images",
  )
  axes.axvline(  # Wide enough to be visible behind an interval.
    trained_capacity,
    color="0.85",
    linewidth=8,
    solid_capstyle="butt",
    zorder=0,
    label="in training",
  )
  axes.set_xscale("log", base=2)
  axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
  axes.set(xlabel="capacity factor at test time", ylabel="accuracy (%)")
  figure.legend(loc="outside upper center", ncols=2, fontsize=8)
  axes.grid(alpha=0.3)
  return figure
