"""Writes an evaluation to files: metrics, tables, figures and a page."""

import math
from collections.abc import Mapping, Sequence

from etils import epath

from vmoe_study.drawing.figure_files import figure_bytes
from vmoe_study.drawing.render import csv_table
from vmoe_study.evaluation.charts import figures
from vmoe_study.evaluation.mistakes import Mistake
from vmoe_study.evaluation.page import folder_name, render_page
from vmoe_study.evaluation.result import Classification
from vmoe_study.evaluation.tables import tables
from vmoe_study.files.json_text import to_json

METRICS_FILE, PAGE_FILE = "metrics.json", "index.html"


def write_evaluation(
  out: epath.PathLike,
  title: str,
  metrics: Mapping[str, float],
  found: Mapping[str, Classification],
  mistakes: Mapping[str, Sequence[Mistake]],
) -> None:
  """Writes metrics.json, index.html, and a folder for each data set.

  Args:
    out: output folder.
    title: title of the page.
    metrics: all scalars by name.
    found: result on each data set, by name.
    mistakes: images of each data set to show on the page.
  """
  out = epath.Path(out)
  pictures = {
    name: _write_data_set(out / folder_name(name), result)
    for name, result in found.items()
  }
  out.mkdir(parents=True, exist_ok=True)
  (out / METRICS_FILE).write_text(to_json(metrics, indent=2))
  page = render_page(title, metrics, found, pictures, mistakes)
  (out / PAGE_FILE).write_bytes(page.encode())


def _write_data_set(
  folder: epath.Path, found: Classification
) -> dict[str, bytes]:
  """Writes tables as CSV, and figures as PNG and SVG; returns the PNG files."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, (header, rows) in tables(found).items():
    cells = [[_cell(value) for value in row] for row in rows]
    text = csv_table(header, cells)
    (folder / f"{name}.csv").write_bytes(text.encode())
  pictures = {}
  for name, figure in figures(found).items():
    pictures[name] = figure_bytes(figure, "png")
    (folder / f"{name}.png").write_bytes(pictures[name])
    svg = figure_bytes(figure, "svg", name)
    (folder / f"{name}.svg").write_bytes(svg)
  return pictures


def _cell(value: str | float) -> str | float:
  """The text of a cell; NaN gives an empty cell."""
  if isinstance(value, float):
    return "" if math.isnan(value) else round(value, 6)
  return value
