"""The tables of the study, from cells of results.

A table is a header and rows of text. Accuracies are percentages; "±" gives the
half-width of the 95% interval of the mean over seeds (Student's t).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vmoe_study.analysis.statistics import (
  Comparison,
  Estimate,
  compare,
  estimate,
  holm,
)
from vmoe_study.study.results import Cell
from vmoe_study.workdir import describe_changes

MISSING = "missing"


class Table(NamedTuple):
  """A header, and rows of as many texts."""

  header: list[str]
  rows: list[list[str]]


def accuracy_metrics(cells: Sequence[Cell]) -> list[str]:
  """What the cells measure: upstream accuracy first, then 10-shot."""
  names = {name for cell in cells for run in cell.runs.values() for name in run}
  upstream = sorted(name for name in names if name.endswith("/accuracy"))
  return upstream + sorted(name for name in names if name.endswith("/10shot"))


def accuracy_table(cells: Sequence[Cell]) -> Table:
  """Accuracy by cell, with published numbers where there are such."""
  metrics = accuracy_metrics(cells)
  published = any(cell.expected for cell in cells)
  others = other_settings(cells)
  header = [*_SETTINGS, *others, "seeds", *metrics]
  header += ["published", "source"] if published else []
  rows = []
  for cell in cells:
    row = [*settings(cell), *(_field(cell, name) for name in others)]
    row.append(_count(cell))
    row += [_percent(cell, metric) for metric in metrics]
    if published:
      row += [
        ", ".join(f"{name} {x}" for name, x in cell.expected.items()),
        cell.source,
      ]
    rows.append(row)
  return Table(header, rows)


def cost_table(cells: Sequence[Cell]) -> Table:
  """What a cell costs, and how its routers fare at the end of training."""
  header = [
    *_SETTINGS,
    "parameters",
    "training GFLOP per image",
    "training seconds",
    "images/s",
    "tokens dropped %",
    "max load",
    "min load",
  ]
  rows = []
  for cell in cells:
    row = [*settings(cell)]
    row.append(_mean(cell.values("parameters"), ",.0f"))
    giga = [value / 1e9 for value in cell.values("flops_per_image")]
    row.append(_mean(giga, ".4f"))
    row.append(_mean(cell.values("seconds"), ".0f"))
    row.append(_mean(cell.values("images_per_second"), ",.0f"))
    dropped = [100 * x for x in health(cell, "unprocessed")]
    row.append(_mean(dropped, ".1f"))
    row.append(_mean(health(cell, "max_load"), ".2f"))
    row.append(_mean(health(cell, "min_load"), ".2f"))
    rows.append(row)
  return Table(header, rows)


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


_SETTINGS = ("router", "K or C", "group", "batch priority")


def settings(cell: Cell) -> tuple[str, str, str, str]:
  """What distinguishes a cell: router, cost, images per group, priority."""
  if cell.router == "dense":
    return cell.router, "", "", ""
  priority = ""
  if cell.router.endswith("_token_choice"):
    priority = "yes" if cell.batch_priority else "no"
  return cell.router, f"{cell.cost:g}", str(cell.group_images), priority


def other_settings(cells: Sequence[Cell]) -> list[str]:
  """Fields of the config that differ among cells, besides the router's."""
  configs = [cell.config for cell in cells]
  changes = {
    change.partition(":")[0]
    for config in configs[1:]
    for change in describe_changes(configs[0], config)
  }
  changes.discard("name")
  return sorted(name for name in changes if not name.startswith("model.moe."))


def _field(cell: Cell, name: str) -> str:
  value: Any = cell.config
  for part in name.split("."):
    value = value.get(part, "") if isinstance(value, Mapping) else ""
  return str(value)


# The published findings (2401.15969) as questions to pairs of cells. Sides are
# compared at equal cost and group, seed by seed, averaged over what matches.
_SPARSE_TOKEN = "_token_choice"
_SPARSE_EXPERT = "_expert_choice"


class Question(NamedTuple):
  """A comparison that a published finding predicts the sign of.

  Attributes:
    text: "first against second".
    first: whether a cell belongs to the first side.
    second: whether it belongs to the second side.
    match: settings that both sides must share.
  """

  text: str
  first: Callable[[Cell], bool]
  second: Callable[[Cell], bool]
  match: Callable[[Cell], Any]


def _is(router: str, priority: bool | None = None) -> Callable[[Cell], bool]:
  def test(cell):
    suits = priority is None or cell.batch_priority == priority
    return cell.router.endswith(router) and suits

  return test


def _sparse(cell: Cell) -> bool:
  return cell.router.endswith((_SPARSE_TOKEN, _SPARSE_EXPERT))


def _cost_and_group(cell: Cell):
  return cell.cost, cell.group_images


def questions(cells: Sequence[Cell]) -> Iterator[Question]:
  """What the findings claim, at every cost and group that the cells have."""
  for group in sorted({c.group_images for c in cells if _sparse(c)}):

    def in_group(test, group=group):
      return lambda cell: test(cell) and cell.group_images == group

    where = f"groups of {group}"
    for priority in (False, True):
      kind = "with" if priority else "without"
      yield Question(
        f"expert choice against token choice {kind} batch priority, {where}",
        in_group(_is(_SPARSE_EXPERT)),
        in_group(_is(_SPARSE_TOKEN, priority)),
        _cost_and_group,
      )
    yield Question(
      f"Soft MoE (single images) against all sparse routers, {where}",
      lambda cell: cell.router == "soft",
      in_group(_sparse),
      lambda cell: cell.cost,
    )
    yield Question(
      f"Sinkhorn against softmax token choice, {where}",
      in_group(_is("sinkhorn_token_choice")),
      in_group(_is("softmax_token_choice")),
      lambda cell: (*_cost_and_group(cell), cell.batch_priority),
    )
    for other in ("sinkhorn", "sparsity_constrained"):
      yield Question(
        f"{other} against softmax expert choice, {where}",
        in_group(_is(f"{other}_expert_choice")),
        in_group(_is("softmax_expert_choice")),
        _cost_and_group,
      )
    yield Question(
      f"all sparse routers against dense, {where}",
      in_group(_sparse),
      lambda cell: cell.router == "dense",
      lambda cell: None,
    )
  yield Question(
    "Soft MoE against dense",
    lambda cell: cell.router == "soft",
    lambda cell: cell.router == "dense",
    lambda cell: None,
  )


def paired_values(
  cells: Sequence[Cell], question: Question, metric: str
) -> tuple[list[float], list[float]]:
  """Mean of either side by seed, over the seeds that all of its cells have.

  Cells without a partner on the other side do not take part.
  """
  first = [cell for cell in cells if question.first(cell)]
  second = [cell for cell in cells if question.second(cell)]
  keys = {question.match(c) for c in first} & {
    question.match(c) for c in second
  }
  sides = [
    [cell for cell in side if question.match(cell) in keys]
    for side in (first, second)
  ]
  everyone = [*sides[0], *sides[1]]
  if not keys:
    return [], []
  seeds = set.intersection(
    *({s for s, run in c.runs.items() if metric in run} for c in everyone)
  )
  means = [
    [
      _mean_over_keys(side, keys, question, metric, seed)
      for seed in sorted(seeds)
    ]
    for side in sides
  ]
  return means[0], means[1]


def _mean_over_keys(side, keys, question, metric, seed) -> float:
  """Every matched setting counts the same, however many cells it has."""
  total = 0.0
  for key in keys:
    values = [c.runs[seed][metric] for c in side if question.match(c) == key]
    total += sum(values) / len(values)
  return total / len(keys)


def comparison_table(cells: Sequence[Cell]) -> Table:
  """Paired differences over seeds, tested; p-values by Holm within a metric."""
  header = [
    "metric",
    "first against second",
    "seeds",
    "difference",
    "p",
    "Holm",
  ]
  rows = []
  for metric in accuracy_metrics(cells):
    asked: list[tuple[str, Comparison]] = []
    for question in questions(cells):
      first, second = paired_values(cells, question, metric)
      if first:
        asked.append((question.text, compare(first, second)))
    adjusted = holm([comparison.p_value for _, comparison in asked])
    for (text, found), corrected in zip(asked, adjusted, strict=True):
      difference = found.difference
      rows.append(
        [
          metric,
          text,
          str(difference.count),
          _interval(difference, signed=True),
          _p(found.p_value),
          _p(corrected),
        ]
      )
  return Table(header, rows)


def _p(value: float) -> str:
  if math.isnan(value):
    return ""
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _percent(cell: Cell, metric: str) -> str:
  values = cell.values(metric)
  return _interval(estimate(values)) if values else MISSING


def _interval(found: Estimate, signed: bool = False) -> str:
  mean = f"{100 * found.mean:{'+' if signed else ''}.2f}"
  if math.isnan(found.half_width):
    return mean
  return f"{mean} ± {100 * found.half_width:.2f}"


def _mean(values: Sequence[float], form: str) -> str:
  return format(sum(values) / len(values), form) if values else ""


def _count(cell: Cell) -> str:
  if len(cell.runs) == len(cell.seeds):
    return str(len(cell.runs))
  return f"{len(cell.runs)} of {len(cell.seeds)}"


def by_family(cells: Sequence[Cell]) -> list[Cell]:
  """In the order of tables: dense, token choice, expert choice, soft."""
  families = ("dense", _SPARSE_TOKEN, _SPARSE_EXPERT, "soft")

  def rank(cell):
    order = [i for i, f in enumerate(families) if cell.router.endswith(f)]
    return order[0] if order else len(families)

  return sorted(cells, key=rank)


def tables(cells: Sequence[Cell]) -> dict[str, Table]:
  """All tables by name."""
  cells = by_family(cells)
  return {
    "accuracy": accuracy_table(cells),
    "cost": cost_table(cells),
    "comparisons": comparison_table(cells),
  }
