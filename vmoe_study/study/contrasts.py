"""The contrasts of the study: two sets of cells, compared seed by seed.

Each contrast compares cells that agree in all other settings. The results of
2401.15969 predict the sign of some contrasts. The others isolate factors that
these results may depend on, which are group size, batch priority, and the gain
over a dense model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vmoe_study.study.results import Cell
from vmoe_study.study.settings import OPTIONS, differing_fields, field_text
from vmoe_study.study.statistics import Comparison, compare, holm

_TOKENS, _EXPERTS = "_token_choice", "_expert_choice"
_KINDS = {_TOKENS: "token choice", _EXPERTS: "expert choice"}
_SPARSE = tuple(_KINDS)


class Contrast(NamedTuple):
  """A comparison of two sides: the first minus the second.

  Attributes:
    text: "first against second", in words.
    first: predicate: whether a cell belongs to the first side.
    second: predicate: whether a cell belongs to the second side.
    match: settings of a cell that matched cells must share, in addition to all
      settings other than routing.
  """

  text: str
  first: Callable[[Cell], bool]
  second: Callable[[Cell], bool]
  match: Callable[[Cell], Any]


def _selects_router(router: str, **properties: Any) -> Callable[[Cell], bool]:
  """Selects cells by the suffix of the router's name and other properties."""
  wanted = properties.items()

  def belongs(cell: Cell) -> bool:
    matches = all(getattr(cell, name) == value for name, value in wanted)
    return cell.router.endswith(router) and matches

  return belongs


def _cost(cell: Cell) -> Any:
  return cell.cost, cell.num_experts


def _cost_and_priority(cell: Cell) -> Any:
  return *_cost(cell), cell.batch_priority


def _router_and_cost(cell: Cell) -> Any:
  return cell.router, *_cost(cell)


def _all_but_group(cell: Cell) -> Any:
  return cell.router, *_cost_and_priority(cell)


def _no_settings(cell: Cell) -> Any:
  return None


_DENSE = _selects_router("dense")


def contrasts(cells: Sequence[Cell]) -> Iterator[Contrast]:
  """All contrasts, for the group sizes that occur in these cells."""
  groups = sorted({c.group_images for c in cells if c.router.endswith(_SPARSE)})
  for group in groups:
    yield from _within_group_size(group)
  if len(groups) > 1:
    yield from _between_group_sizes(groups[0], groups[-1])
  soft = _selects_router("soft", cost=1)
  yield Contrast("Soft MoE at cost 1 against dense", soft, _DENSE, _no_settings)


def _within_group_size(group: int) -> Iterator[Contrast]:
  def side(router, **properties):
    return _selects_router(router, group_images=group, **properties)

  where = f", groups of {group}"
  for priority in (False, True):
    kind = "with" if priority else "without"
    yield Contrast(
      f"expert choice against token choice {kind} batch priority{where}",
      side(_EXPERTS),
      side(_TOKENS, batch_priority=priority),
      _cost,
    )
  for router, kind in _KINDS.items():
    # Soft MoE always routes single images.
    text = f"Soft MoE against {kind}{where}"
    yield Contrast(text, _selects_router("soft"), side(router), _cost)
  yield Contrast(
    f"Sinkhorn against softmax token choice{where}",
    side("sinkhorn_token_choice"),
    side("softmax_token_choice"),
    _cost_and_priority,
  )
  for affinity in ("sinkhorn", "sparsity_constrained"):
    name = affinity.replace("_", "-").capitalize()
    yield Contrast(
      f"{name} against softmax expert choice{where}",
      side(f"{affinity}_expert_choice"),
      side("softmax_expert_choice"),
      _cost,
    )
  yield Contrast(
    f"batch priority against none, token choice{where}",
    side(_TOKENS, batch_priority=True),
    side(_TOKENS, batch_priority=False),
    _router_and_cost,
  )
  for router, kind in _KINDS.items():
    text = f"{kind} at cost 1 against dense{where}"
    yield Contrast(text, side(router, cost=1), _DENSE, _no_settings)


def _between_group_sizes(low: int, high: int) -> Iterator[Contrast]:
  for router, kind in _KINDS.items():
    yield Contrast(
      f"{kind}, groups of {high} against groups of {low}",
      _selects_router(router, group_images=high),
      _selects_router(router, group_images=low),
      _all_but_group,
    )
  yield Contrast(
    f"expert choice in groups of {low} against token choice with batch "
    f"priority in groups of {high}",
    _selects_router(_EXPERTS, group_images=low),
    _selects_router(_TOKENS, group_images=high, batch_priority=True),
    _cost,
  )


def paired_values(
  cells: Sequence[Cell], contrast: Contrast, metric: str
) -> tuple[list[float], list[float]]:
  """Mean of each side by seed, for the seeds that all of its cells have.

  Cells without a match on the other side, or without runs, are left out.
  """
  fields = [
    name for name in differing_fields(cells) if not name.startswith(OPTIONS)
  ]

  def key(cell):
    return contrast.match(cell), *(field_text(cell, name) for name in fields)

  measured = [c for c in cells if any(metric in run for run in c.runs.values())]
  sides = [
    [cell for cell in measured if belongs(cell)]
    for belongs in (contrast.first, contrast.second)
  ]
  keys = set.intersection(*({key(cell) for cell in side} for side in sides))
  matched = [c for side in sides for c in side if key(c) in keys]
  if not matched:
    return [], []
  seeds = set.intersection(
    *({s for s, run in c.runs.items() if metric in run} for c in matched)
  )
  first, second = (
    [_mean_over_keys(side, keys, key, metric, seed) for seed in sorted(seeds)]
    for side in sides
  )
  return first, second


def _mean_over_keys(side, keys, key, metric: str, seed: int) -> float:
  """Gives every key the same weight, however many cells share it."""
  total = 0.0
  for wanted in keys:
    values = [c.runs[seed][metric] for c in side if key(c) == wanted]
    total += sum(values) / len(values)
  return total / len(keys)


class ContrastResult(NamedTuple):
  """A contrast, estimated and tested over seeds.

  Attributes:
    text: text of the contrast.
    comparison: the difference in percentage points and its paired test.
    holm_p_value: the p-value after Holm's correction for all contrasts of the
      metric.
  """

  text: str
  comparison: Comparison
  holm_p_value: float


def contrast_results(
  cells: Sequence[Cell], metric: str
) -> list[ContrastResult]:
  """Tests every contrast for which both sides have runs with the metric."""
  tested = []
  for contrast in contrasts(cells):
    first, second = paired_values(cells, contrast, metric)
    if first:
      percent = [[100 * x for x in side] for side in (first, second)]
      tested.append((contrast.text, compare(*percent)))
  corrected = holm([comparison.p_value for _, comparison in tested])
  return [
    ContrastResult(text, comparison, p_value)
    for (text, comparison), p_value in zip(tested, corrected, strict=True)
  ]
