"""Tables of an evaluation, for the page and the CSV files."""

from collections.abc import Sequence
from typing import NamedTuple

from vmoe_study.evaluation.intervals import wilson
from vmoe_study.evaluation.result import Classification

CLASSES = (
  "class",
  "images",
  "correct",
  "accuracy",
  "low",
  "high",
  "predictions",
  "precision",
)
RANKED_CLASSES = ("class", "images", "average precision")
PAIRS = ("class", "predicted", "images", "share of the class")
BINS = ("above", "up to", "images", "confidence", "accuracy", "low", "high")
MATRIX_CLASSES = 1000  # With more classes there are only pairs.


class Table(NamedTuple):
  """A table of texts and numbers.

  Attributes:
    header: names of the columns.
    rows: cells of each row; NaN where there is no value.
  """

  header: Sequence[str]
  rows: Sequence[Sequence[str | float]]


def tables(found: Classification) -> dict[str, Table]:
  """The applicable tables, by name.

  They are "classes" and "calibration"; if every image has one label, also
  "confused_pairs", the most frequent mistake first, and for up to
  `MATRIX_CLASSES` classes "confusion", the matrix with a row per true class and
  a column per predicted class.
  """
  names = found.class_names
  made = {"calibration": calibration_table(found)}
  confusion = found.confusion
  if confusion is None:
    if found.average_precision is not None:
      made["classes"] = _ranked_classes(found)
    return made
  made["classes"] = _classes(found)
  pairs = [
    [names[pair.label], names[pair.predicted], pair.count, pair.share]
    for pair in confusion.pairs()
  ]
  made["confused_pairs"] = Table(PAIRS, pairs)
  if len(names) <= MATRIX_CLASSES:
    rows = zip(names, confusion.matrix().tolist(), strict=True)
    made["confusion"] = Table(
      ["class", *names], [[name, *counts] for name, counts in rows]
    )
  return made


def _classes(found: Classification) -> Table:
  """Accuracy by class, with Wilson intervals, and precision."""
  confusion = found.confusion
  images, correct = confusion.images, confusion.correct
  predictions = confusion.predictions
  columns = [images, correct, *wilson(correct, images), predictions]
  columns.append(wilson(correct, predictions).value)
  values = (column.tolist() for column in columns)
  rows = zip(found.class_names, *values, strict=True)
  return Table(CLASSES, [*map(list, rows)])


def _ranked_classes(found: Classification) -> Table:
  images = found.targets.sum(axis=0).tolist()
  precision = found.average_precision.tolist()
  rows = zip(found.class_names, images, precision, strict=True)
  return Table(RANKED_CLASSES, [*map(list, rows)])


def calibration_table(found: Classification) -> Table:
  """The bins of the reliability diagram."""
  bins = found.calibration
  columns = [
    bins.edges[:-1],
    bins.edges[1:],
    bins.images,
    bins.confidence,
    *bins.accuracy,
  ]
  values = (column.tolist() for column in columns)
  return Table(BINS, [*map(list, zip(*values, strict=True))])
