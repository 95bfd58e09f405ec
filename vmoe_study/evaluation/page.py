"""The HTML page of an evaluation: a single, self-contained file."""

import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import jinja2

from vmoe_study.drawing.page import page_template
from vmoe_study.evaluation.confusion import Pair
from vmoe_study.evaluation.intervals import Proportion
from vmoe_study.evaluation.mistakes import Mistake
from vmoe_study.evaluation.result import Classification
from vmoe_study.evaluation.tables import Table, calibration_table, tables

TEMPLATE = "page.html.jinja"
MAX_CLASSES = 50  # Rows of the table of classes.
MAX_PAIRS = 20


def render_page(
  title: str,
  metrics: Mapping[str, float],
  found: Mapping[str, Classification],
  pictures: Mapping[str, Mapping[str, bytes]],
  mistakes: Mapping[str, Sequence[Mistake]],
) -> str:
  """Renders the page.

  Args:
    title: title of the page.
    metrics: all scalars by name.
    found: result on each data set, by name.
    pictures: PNG files of each data set, by name.
    mistakes: images of each data set to show.
  """
  return _template().render(
    title=title,
    metrics=metrics,
    found=found,
    pictures=pictures,
    mistakes=mistakes,
  )


def folder_name(name: str) -> str:
  """The folder of an evaluation, inside the output folder."""
  return re.sub(r"[^\w-]+", "_", name)


@functools.cache
def _template() -> jinja2.Template:
  filters = {
    "metric_rows": _metric_rows,
    "summary_rows": _summary_rows,
    "worst_classes": _worst_classes,
    "pair_rows": _pair_rows,
    "bin_rows": _bin_rows,
    "percent": _percent,
    "file_name": _file_name,
    "folder_name": folder_name,
  }
  return page_template(__package__, TEMPLATE, filters)


def _file_name(where: str) -> str:
  return where.rpartition("/")[2]


def _metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
  return [(name, f"{value:.6g}") for name, value in metrics.items()]


def _summary_rows(found: Classification) -> list[tuple[str, str]]:
  metrics = found.metrics()
  name = "accuracy" if found.one_label else "precision at 1"
  rows = [
    ("images", f"{found.num_images:,}"),
    ("classes", f"{len(found.class_names):,}"),
    (name, _interval(found.accuracy)),
    ("negative log-likelihood (loss)", f"{metrics[f'{found.name}/loss']:.4f}"),
    ("Brier score", f"{metrics[f'{found.name}/brier']:.4f}"),
    ("expected calibration error", f"{found.calibration.error:.4f}"),
  ]
  if mean := metrics.get(f"{found.name}/mean_average_precision"):
    rows.append(("mean average precision", f"{mean:.4f}"))
  return rows


def _worst_classes(found: Classification) -> Table:
  """The classes with the lowest accuracy or average precision."""
  header, rows = tables(found)["classes"]
  place = header.index("accuracy" if found.one_label else "average precision")
  known = [row for row in rows if row[1]]  # Has images.
  worst = sorted(known, key=lambda row: row[place])[:MAX_CLASSES]
  if not found.one_label:
    return Table(header, [[*row[:2], f"{row[2]:.4f}"] for row in worst])
  shown = ("class", "images", "correct", "accuracy (95% interval)", "precision")
  return Table(
    shown,
    [
      [*row[:3], _interval(Proportion(*row[3:6])), _percent(row[7])]
      for row in worst
    ],
  )


def _pair_rows(found: Classification) -> list[tuple[str, ...]]:
  pairs = itertools.islice(found.confusion.pairs(), MAX_PAIRS)
  return [_pair_row(found.class_names, pair) for pair in pairs]


def _pair_row(names: Sequence[str], pair: Pair) -> tuple[str, ...]:
  share = _percent(pair.share)
  return names[pair.label], names[pair.predicted], f"{pair.count:,}", share


def _bin_rows(found: Classification) -> list[list[str]]:
  """The bins that have images."""
  return [
    [
      f"{low:.3f} to {high:.3f}",
      f"{images:,}",
      _percent(confidence),
      _interval(Proportion(*accuracy)),
    ]
    for low, high, images, confidence, *accuracy in calibration_table(
      found
    ).rows
    if images
  ]


def _interval(share: Proportion) -> str:
  ends = f"{100 * share.low:.2f} to {100 * share.high:.2f}"
  return f"{_percent(share.value)} ({ends})"


def _percent(value: float) -> str:
  return "-" if math.isnan(value) else f"{100 * value:.2f}%"
