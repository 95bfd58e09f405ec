"""The tables of the study: accuracy, cost, and contrasts.

Accuracies are percentages: means over seeds "±" the half-width of their 95%
Student t interval.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmoe_study.study.contrasts import contrast_results
from vmoe_study.study.linear_model import detectable_difference
from vmoe_study.study.planned import Analysis, planned_results
from vmoe_study.study.results import Cell
from vmoe_study.study.settings import settings
from vmoe_study.study.statistics import Estimate, estimate

MISSING = "missing"


class Table(NamedTuple):
  """A table of texts and estimates in percent.

  Attributes:
    header: names of the columns.
    rows: a text or an estimate per column.
    signed: whether estimates are differences and show their sign.
  """

  header: list[str]
  rows: list[list[str | Estimate]]
  signed: bool = False

  def without_empty_columns(self) -> "Table":
    """A copy without empty columns, such as p-values of a single seed."""
    columns = zip(*self.rows, strict=True)
    kept = [n for n, column in enumerate(columns) if any(column)]
    header, *rows = (
      [row[n] for n in kept] for row in (self.header, *self.rows)
    )
    return self._replace(header=header, rows=rows)

  def as_text(self) -> list[list[str]]:
    """The rows with estimates as text, such as "85.17 ± 0.41"."""
    return [[self._text(value) for value in row] for row in self.rows]

  def _text(self, value: str | Estimate) -> str:
    if isinstance(value, str):
      return value
    if not value.count:
      return ""
    mean = f"{value.mean:{'+' if self.signed else ''}.2f}"
    width = _number(value.half_width)
    return f"{mean} ± {width}" if width else mean

  def as_numbers(self) -> "Table":
    """A copy with means and half-widths in columns of their own."""
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
      columns.append([f"{name} %", *means])
      if any(widths):
        columns.append([f"{name} ± %", *widths])
    header, *rows = (list(row) for row in zip(*columns, strict=True))
    return Table(header, rows)


def _number(value: float) -> str:
  return "" if math.isnan(value) else f"{value:.2f}"


def describe_seeds(cells: Sequence[Cell]) -> str:
  """Describes the values: "Mean over 2 to 5 seeds with 95% interval"."""
  counts = [len(cell.runs) for cell in cells if cell.runs] or [0]
  fewest, most = min(counts), max(counts)
  if most < 2:
    return "One seed" if most else "No runs"
  several = f"{fewest} to {most}" if fewest < most else most
  return f"Mean over {several} seeds with 95% interval"


def accuracy_metrics(cells: Sequence[Cell]) -> list[str]:
  """Accuracy metrics of the cells: upstream first, then 10-shot."""
  names = {name for cell in cells for run in cell.runs.values() for name in run}
  upstream = sorted(name for name in names if name.endswith("/accuracy"))
  return upstream + sorted(name for name in names if name.endswith("/10shot"))


def accuracy_table(cells: Sequence[Cell]) -> Table:
  """Accuracy by cell, next to the published numbers if there are any."""
  metrics = accuracy_metrics(cells)
  published = list(dict.fromkeys(name for c in cells for name in c.expected))
  names, settings_of_rows, _ = settings(cells)
  header = [*names, "runs", *metrics]
  header += [f"published: {name}" for name in published]
  header += ["source"] if published else []
  rows = []
  for cell, texts in zip(cells, settings_of_rows, strict=True):
    row: list[str | Estimate] = [*texts, _count(cell)]
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


class _Column(NamedTuple):
  """A column of the cost table.

  Attributes:
    name: name of the column.
    values: function from a cell to its values, one per seed.
    summary: function that summarises the values.
    form: format of the summary.
  """

  name: str
  values: Callable[[Cell], list[float]]
  summary: Callable[[list[float]], float]
  form: str


_MEAN, _MEDIAN = statistics.fmean, statistics.median
# Times are medians, because other work on the machine slows single runs.
_COST = (
  _Column(
    "actual capacity",
    lambda cell: cell.values("capacity_factor"),
    _MEAN,
    ".3g",
  ),
  _Column("parameters", lambda cell: cell.values("parameters"), _MEAN, ",.0f"),
  _Column(
    "training GFLOP per image",
    lambda cell: [x / 1e9 for x in cell.values("flops_per_image")],
    _MEAN,
    ".4f",
  ),
  _Column(
    "training seconds", lambda cell: cell.values("seconds"), _MEDIAN, ".0f"
  ),
  _Column(
    "images/s", lambda cell: cell.values("images_per_second"), _MEDIAN, ",.0f"
  ),
  _Column(
    "unprocessed tokens %",
    lambda cell: [100 * x for x in routing_metric(cell, "unprocessed")],
    _MEAN,
    ".1f",
  ),
  _Column(
    "max load", lambda cell: routing_metric(cell, "max_load"), _MEAN, ".2f"
  ),
  _Column(
    "min load", lambda cell: routing_metric(cell, "min_load"), _MEAN, ".2f"
  ),
)


def cost_table(cells: Sequence[Cell]) -> Table:
  """Cost of each cell, and routing metrics at the end of training.

  Columns without values are left out.
  """
  columns = [c for c in _COST if any(map(c.values, cells))]
  names, settings_of_rows, _ = settings(cells)
  rows = []
  for cell, texts in zip(cells, settings_of_rows, strict=True):
    row: list[str | Estimate] = [*texts, _count(cell)]
    for column in columns:
      values = column.values(cell)
      row.append(format(column.summary(values), column.form) if values else "")
    rows.append(row)
  header = [*names, "runs", *(column.name for column in columns)]
  return Table(header, rows)


def routing_metric(cell: Cell, name: str) -> list[float]:
  """A routing metric averaged over layers, one value per seed.

  Args:
    cell: a cell of the results.
    name: "unprocessed", "max_load" or "min_load".
  """
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


def contrast_table(cells: Sequence[Cell]) -> Table:
  """Paired differences over seeds, with tests; Holm's correction per metric."""
  header = ["metric", "first against second", "seeds"]
  header += ["difference", "p", "Holm"]
  rows: list[list[str | Estimate]] = []
  for metric in accuracy_metrics(cells):
    for text, comparison, corrected in contrast_results(cells, metric):
      difference = comparison.difference
      row = [metric, text, str(difference.count), difference]
      rows.append([*row, _p(comparison.p_value), _p(corrected)])
  return Table(header, rows, signed=True)


def planned_table(cells: Sequence[Cell], analysis: Analysis) -> Table:
  """The planned contrasts; Holm's correction is over all rows."""
  header = ["end point", "first against second", "difference", "p", "Holm"]
  header += ["margin", "p equivalent", "detectable", "by seed", "p by seed"]
  results = planned_results(cells, analysis)
  rows: list[list[str | Estimate]] = []
  for end_point, contrast, effect, paired, corrected in results:
    difference = Estimate(effect.estimate, effect.half_width, effect.degrees)
    row = [end_point, contrast.text, difference]
    row += [_p(effect.p_value), _p(corrected)]
    margin = contrast.margin
    row += [f"{margin:g}" if margin else ""]
    row += [_p(effect.equivalence_p_value(margin)) if margin else ""]
    detectable = detectable_difference(
      effect.standard_error, effect.degrees, 0.05 / len(results), power=0.8
    )
    row += [f"{detectable:.2f}", paired.difference, _p(paired.p_value)]
    rows.append(row)
  return Table(header, rows, signed=True).without_empty_columns()


def _p(value: float) -> str:
  if math.isnan(value):
    return ""
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def by_family(cells: Sequence[Cell]) -> list[Cell]:
  """Sorts cells: dense, token choice, expert choice, soft, then others."""
  families = ("dense", "_token_choice", "_expert_choice", "soft")

  def rank(cell):
    order = [i for i, f in enumerate(families) if cell.router.endswith(f)]
    return order[0] if order else len(families)

  return sorted(cells, key=rank)


def tables(
  cells: Sequence[Cell], analysis: Analysis | None = None
) -> dict[str, Table]:
  """The tables that have rows, by name; planned contrasts with an analysis."""
  cells = by_family(cells)
  planned = {"planned": planned_table(cells, analysis)} if analysis else {}
  found = planned | {
    "accuracy": accuracy_table(cells),
    "cost": cost_table(cells),
    "comparisons": contrast_table(cells),
  }
  return {
    name: table.without_empty_columns()
    for name, table in found.items()
    if table.rows
  }
