"""The tables of the study, from cells of results.

Accuracies are percentages; "±" gives the half-width of the 95% interval of the
mean over seeds (Student's t).
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmoe_study.study import settings
from vmoe_study.study.contrasts import answers
from vmoe_study.study.results import Cell
from vmoe_study.study.statistics import Estimate, estimate

MISSING = "missing"


class Table(NamedTuple):
  """A header, and rows of as many texts or estimates in percent.

  Attributes:
    header: names of the columns.
    rows: texts and estimates.
    signed: whether estimates are differences.
  """

  header: list[str]
  rows: list[list[str | Estimate]]
  signed: bool = False

  def as_text(self) -> list[list[str]]:
    """The rows with estimates as people read them, "85.17 ± 0.41"."""
    return [[self._text(value) for value in row] for row in self.rows]

  def _text(self, value: str | Estimate) -> str:
    if isinstance(value, str):
      return value
    mean = f"{value.mean:{'+' if self.signed else ''}.2f}"
    width = _number(value.half_width)
    return f"{mean} ± {width}" if width else mean

  def as_numbers(self) -> "Table":
    """Estimates as two columns: means and half-widths, for programs."""
    columns = []
    for name, *values in zip(self.header, *self.rows, strict=True):
      if not any(isinstance(value, Estimate) for value in values):
        columns.append([name, *values])
        continue
      pairs = [
        (_number(x.mean), _number(x.half_width))
        if isinstance(x, Estimate)
        else (x, "")
        for x in values
      ]
      means, widths = zip(*pairs, strict=True)
      columns += [[f"{name} %", *means], [f"{name} ± %", *widths]]
    header, *rows = (list(row) for row in zip(*columns, strict=True))
    return Table(header, rows)


def _number(value: float) -> str:
  return "" if math.isnan(value) else f"{value:.2f}"


def accuracy_metrics(cells: Sequence[Cell]) -> list[str]:
  """What the cells measure: upstream accuracy first, then 10-shot."""
  names = {name for cell in cells for run in cell.runs.values() for name in run}
  upstream = sorted(name for name in names if name.endswith("/accuracy"))
  return upstream + sorted(name for name in names if name.endswith("/10shot"))


def accuracy_table(cells: Sequence[Cell]) -> Table:
  """Accuracy by cell, with published numbers where there are such."""
  metrics = accuracy_metrics(cells)
  published = list(dict.fromkeys(name for c in cells for name in c.expected))
  header = [*settings.names(cells), "runs", *metrics]
  header += [f"published: {name}" for name in published]
  header += ["source"] if published else []
  rows = []
  for cell in cells:
    row: list[str | Estimate] = [*settings.settings(cell, cells), _count(cell)]
    row += [_percent(cell, metric) for metric in metrics]
    row += [str(cell.expected.get(name, "")) for name in published]
    row += [cell.source] if published else []
    rows.append(row)
  return Table(header, rows)


def _count(cell: Cell) -> str:
  if not cell.runs:
    return MISSING
  if len(cell.runs) == len(cell.seeds):
    return str(len(cell.runs))
  return f"{len(cell.runs)} of {len(cell.seeds)}"


def _percent(cell: Cell, metric: str) -> str | Estimate:
  values = cell.values(metric)
  return estimate([100 * x for x in values]) if values else MISSING


# Column, its values by seed, what is said of them, and how it is written. Times
# are medians: other work on a machine slows single runs down.
_COST: tuple[tuple[str, Callable[[Cell], list[float]], Callable, str], ...] = (
  (
    "parameters",
    lambda cell: cell.values("parameters"),
    statistics.fmean,
    ",.0f",
  ),
  (
    "training GFLOP per image",
    lambda cell: [x / 1e9 for x in cell.values("flops_per_image")],
    statistics.fmean,
    ".4f",
  ),
  (
    "training seconds",
    lambda cell: cell.values("seconds"),
    statistics.median,
    ".0f",
  ),
  (
    "images/s",
    lambda cell: cell.values("images_per_second"),
    statistics.median,
    ",.0f",
  ),
  (
    "unprocessed tokens %",
    lambda cell: [100 * x for x in health(cell, "unprocessed")],
    statistics.fmean,
    ".1f",
  ),
  (
    "max load",
    lambda cell: health(cell, "max_load"),
    statistics.fmean,
    ".2f",
  ),
  (
    "min load",
    lambda cell: health(cell, "min_load"),
    statistics.fmean,
    ".2f",
  ),
)


def cost_table(cells: Sequence[Cell]) -> Table:
  """What a cell costs, and how its routers fare at the end of training."""
  rows = []
  for cell in cells:
    row: list[str | Estimate] = [*settings.settings(cell, cells), _count(cell)]
    for _, measure, summary, form in _COST:
      values = measure(cell)
      row.append(format(summary(values), form) if values else "")
    rows.append(row)
  columns = [name for name, *_ in _COST]
  return Table([*settings.names(cells), "runs", *columns], rows)


def health(cell: Cell, name: str) -> list[float]:
  """A metric of the routers, averaged over layers; one value per seed."""
  values = []
  for seed in sorted(cell.runs):
    layers = [
      value
      for key, value in cell.runs[seed].items()
      if key.startswith("train/routing/") and key.endswith(f"/{name}")
    ]
    if layers:
      values.append(sum(layers) / len(layers))
  return values


def comparison_table(cells: Sequence[Cell]) -> Table:
  """Paired differences over seeds, tested; p-values by Holm within a metric."""
  header = ["metric", "first against second", "seeds"]
  header += ["difference", "p", "Holm"]
  rows: list[list[str | Estimate]] = []
  for metric in accuracy_metrics(cells):
    for text, found, corrected in answers(cells, metric):
      row = [metric, text, str(found.difference.count), found.difference]
      rows.append([*row, _p(found.p_value), _p(corrected)])
  return Table(header, rows, signed=True)


def _p(value: float) -> str:
  if math.isnan(value):
    return ""
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def by_family(cells: Sequence[Cell]) -> list[Cell]:
  """In the order of tables: dense, token choice, expert choice, soft."""
  families = ("dense", "_token_choice", "_expert_choice", "soft")

  def rank(cell):
    order = [i for i, f in enumerate(families) if cell.router.endswith(f)]
    return order[0] if order else len(families)

  return sorted(cells, key=rank)


def tables(cells: Sequence[Cell]) -> dict[str, Table]:
  """All tables by name, but those without rows."""
  cells = by_family(cells)
  found = {
    "accuracy": accuracy_table(cells),
    "cost": cost_table(cells),
    "comparisons": comparison_table(cells),
  }
  return {name: table for name, table in found.items() if table.rows}
