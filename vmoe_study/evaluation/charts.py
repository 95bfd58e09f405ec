"""Charts of an evaluation: confused classes and calibration."""

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vmoe_study.drawing.labels import name_label, text_width
from vmoe_study.evaluation.calibration import Calibration
from vmoe_study.evaluation.confusion import Confusion
from vmoe_study.evaluation.result import Classification

MAX_NAMED = 30  # A matrix with more classes shows neither names nor numbers.
MAX_CELLS = 250  # Along a side of a picture; more classes share cells.
LABEL_WIDTH = 24  # Letters of a class name.
INCHES_PER_LETTER = 0.085
BLUE, GREY = "tab:blue", "0.5"


def figures(found: Classification) -> dict[str, Figure]:
  """The figures by name.

  They are "calibration" and, if every image has one label, "confusion", with
  all classes. If there are too many classes to name them, "confused_classes"
  has the classes of the most frequent mistakes.
  """
  drawn = {"calibration": calibration_figure(found.calibration)}
  if found.confusion is None:
    return drawn
  if len(found.class_names) <= MAX_NAMED:
    everything = np.arange(len(found.class_names))
    drawn["confusion"] = _named_matrix(found, everything)
    return drawn
  drawn["confusion"] = _overview(found.confusion)
  classes = found.confusion.most_confused(MAX_NAMED)
  if len(classes):
    drawn["confused_classes"] = _named_matrix(found, classes)
  return drawn


def _named_matrix(
  found: Classification, classes: Int[np.ndarray, "n"]
) -> Figure:
  """Counts of images, coloured by their share of all images of the class."""
  counts = found.confusion.matrix(classes)
  images = found.confusion.images[classes, None]
  shares = np.divide(
    counts, images, np.full(counts.shape, np.nan), where=images > 0
  )
  names = [name_label(found.class_names[n], LABEL_WIDTH) for n in classes]
  margin = 0.8 + INCHES_PER_LETTER * max(map(text_width, names))
  side = max(0.36 * len(classes), 1.8)
  figure = Figure(figsize=(side + margin + 1, side + margin))
  figure.set_layout_engine("constrained")
  axes = figure.subplots()
  image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  axes.set_facecolor("0.93")  # Of classes without images.
  bar = figure.colorbar(
    image, label="share of all images of the class", shrink=0.8
  )
  bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
  axes.set(xlabel="predicted class", ylabel="true class")
  axes.set_xticks(range(len(names)), names, rotation=90)
  axes.set_yticks(range(len(names)), names)
  _write_counts(axes, counts, shares)
  return figure


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
  for (row, column), count in np.ndenumerate(counts):
    if count:
      axes.text(
        column,
        row,
        f"{count}",
        ha="center",
        va="center",
        color="white" if shares[row, column] > 0.5 else "black",
        fontsize=8 if count < 1000 else 6,
      )


def _overview(confusion: Confusion) -> Figure:
  """All classes by number; if there are many, neighbours share a cell."""
  size = -(-confusion.num_classes // MAX_CELLS)
  counts = confusion.blocks(size)
  figure = Figure(figsize=(8, 7), layout="constrained")
  axes = figure.subplots()
  image = axes.imshow(
    np.ma.masked_equal(counts, 0),
    cmap="viridis_r",
    norm=LogNorm(1, max(counts.max(), 2)),
    extent=(-0.5, size * len(counts) - 0.5, size * len(counts) - 0.5, -0.5),
    interpolation="nearest",
  )
  cell = f", in cells of {size} x {size} classes" if size > 1 else ""
  figure.colorbar(image, label=f"images{cell}")
  axes.set(xlabel="number of the predicted class")
  axes.set(ylabel="number of the true class")
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(MaxNLocator(10, integer=True))
  return figure


def calibration_figure(calibration: Calibration) -> Figure:
  """Accuracy against confidence, and the number of images in each bin."""
  figure = Figure(figsize=(5.2, 6), layout="constrained")
  upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
  upper.plot([0, 1], [0, 1], "--", color=GREY, label="calibrated")
  filled = calibration.images > 0
  accuracy = calibration.accuracy
  upper.errorbar(
    calibration.confidence[filled],
    accuracy.value[filled],
    [
      (accuracy.value - accuracy.low)[filled],
      (accuracy.high - accuracy.value)[filled],
    ],
    fmt="o",
    color=BLUE,
    capsize=3,
    label="bins, with 95% intervals",
  )
  upper.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy")
  upper.legend(loc="lower right", fontsize=9)
  upper.set_title(
    f"expected calibration error {calibration.error:.4f}, "
    f"{len(calibration.images)} bins",
    fontsize=10,
  )
  edges = calibration.edges
  widths = np.diff(edges)
  lower.bar(edges[:-1], calibration.images, widths, align="edge", color=BLUE)
  lower.set(xlabel="probability of the most probable class", ylabel="images")
  lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
  for axes in (upper, lower):
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
  return figure
