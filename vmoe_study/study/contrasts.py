"""The comparisons of the study: two sides, at equal settings, seed by seed.

The published findings (2401.15969) predict the sign of some of them; the others
are what those depend on: groups, batch priority, and the dense model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vmoe_study.study.results import Cell
from vmoe_study.study.settings import OPTIONS, field, others
from vmoe_study.study.statistics import Comparison, compare, holm

_TOKENS, _EXPERTS = "_token_choice", "_expert_choice"
_KINDS = {_TOKENS: "token choice", _EXPERTS: "expert choice"}


class Question(NamedTuple):
  """Whether one side is better than the other.

  Attributes:
    text: "first against second".
    first: whether a cell belongs to the first side.
    second: whether it belongs to the second side.
    match: what cells of both sides must share, besides the settings that are
      not of routing.
  """

  text: str
  first: Callable[[Cell], bool]
  second: Callable[[Cell], bool]
  match: Callable[[Cell], Any]


def _side(router: str, **properties: Any) -> Callable[[Cell], bool]:
  """Cells whose router's name ends so, with these properties."""
  wanted = properties.items()

  def test(cell: Cell) -> bool:
    suits = all(getattr(cell, name) == value for name, value in wanted)
    return cell.router.endswith(router) and suits

  return test


def _cost(cell: Cell) -> Any:
  return cell.cost, cell.num_experts


def _cost_and_priority(cell: Cell) -> Any:
  return *_cost(cell), cell.batch_priority


def _router_and_cost(cell: Cell) -> Any:
  return cell.router, *_cost(cell)


def _all_but_group(cell: Cell) -> Any:
  return cell.router, *_cost_and_priority(cell)


def _nothing(cell: Cell) -> Any:
  return None


def questions(cells: Sequence[Cell]) -> Iterator[Question]:
  """All that is asked of these cells."""
  groups = sorted({c.group_images for c in cells if c.router.endswith(_SPARSE)})
  for group in groups:
    yield from _in_groups_of(group)
  if len(groups) > 1:
    yield from _between_groups(groups[0], groups[-1])
  soft = _side("soft", cost=1)
  yield Question("Soft MoE at cost 1 against dense", soft, _DENSE, _nothing)


_SPARSE = tuple(_KINDS)
_DENSE = _side("dense")


def _in_groups_of(group: int) -> Iterator[Question]:
  def side(router, **properties):
    return _side(router, group_images=group, **properties)

  where = f", groups of {group}"
  for priority in (False, True):
    kind = "with" if priority else "without"
    yield Question(
      f"expert choice against token choice {kind} batch priority{where}",
      side(_EXPERTS),
      side(_TOKENS, batch_priority=priority),
      _cost,
    )
  for router, kind in _KINDS.items():
    # Soft MoE routes single images, whatever the others do.
    text = f"Soft MoE against {kind}{where}"
    yield Question(text, _side("soft"), side(router), _cost)
  yield Question(
    f"Sinkhorn against softmax token choice{where}",
    side("sinkhorn_token_choice"),
    side("softmax_token_choice"),
    _cost_and_priority,
  )
  for affinity in ("sinkhorn", "sparsity_constrained"):
    name = affinity.replace("_", "-").capitalize()
    yield Question(
      f"{name} against softmax expert choice{where}",
      side(f"{affinity}_expert_choice"),
      side("softmax_expert_choice"),
      _cost,
    )
  yield Question(
    f"batch priority against none, token choice{where}",
    side(_TOKENS, batch_priority=True),
    side(_TOKENS, batch_priority=False),
    _router_and_cost,
  )
  for router, kind in _KINDS.items():
    text = f"{kind} at cost 1 against dense{where}"
    yield Question(text, side(router, cost=1), _DENSE, _nothing)


def _between_groups(low: int, high: int) -> Iterator[Question]:
  for router, kind in _KINDS.items():
    yield Question(
      f"{kind}, groups of {high} against groups of {low}",
      _side(router, group_images=high),
      _side(router, group_images=low),
      _all_but_group,
    )
  yield Question(
    f"expert choice in groups of {low} against token choice with batch "
    f"priority in groups of {high}",
    _side(_EXPERTS, group_images=low),
    _side(_TOKENS, group_images=high, batch_priority=True),
    _cost,
  )


def paired_values(
  cells: Sequence[Cell], question: Question, metric: str
) -> tuple[list[float], list[float]]:
  """Mean of either side by seed, over the seeds that all of its cells have.

  Cells without a partner on the other side, or without runs, do not take part.
  """
  fields = [name for name in others(cells) if not name.startswith(OPTIONS)]

  def key(cell):
    return question.match(cell), *(field(cell, name) for name in fields)

  measured = [c for c in cells if any(metric in run for run in c.runs.values())]
  sides = [
    [cell for cell in measured if belongs(cell)]
    for belongs in (question.first, question.second)
  ]
  keys = set.intersection(*({key(cell) for cell in side} for side in sides))
  everyone = [c for side in sides for c in side if key(c) in keys]
  if not everyone:
    return [], []
  seeds = set.intersection(
    *({s for s, run in c.runs.items() if metric in run} for c in everyone)
  )
  first, second = (
    [_mean_over_keys(side, keys, key, metric, seed) for seed in sorted(seeds)]
    for side in sides
  )
  return first, second


def _mean_over_keys(side, keys, key, metric: str, seed: int) -> float:
  """Every matched setting counts the same, however many cells it has."""
  total = 0.0
  for wanted in keys:
    values = [c.runs[seed][metric] for c in side if key(c) == wanted]
    total += sum(values) / len(values)
  return total / len(keys)


class Answer(NamedTuple):
  """What the seeds say.

  Attributes:
    text: of the question.
    found: the difference in percentage points, and its test.
    holm: its p-value, corrected for all questions to one metric.
  """

  text: str
  found: Comparison
  holm: float


def answers(cells: Sequence[Cell], metric: str) -> list[Answer]:
  """The comparisons that can be made of a metric, tested."""
  asked = []
  for question in questions(cells):
    first, second = paired_values(cells, question, metric)
    if first:
      percent = [[100 * x for x in side] for side in (first, second)]
      asked.append((question.text, compare(*percent)))
  corrected = holm([found.p_value for _, found in asked])
  return [Answer(*a, p) for a, p in zip(asked, corrected, strict=True)]
