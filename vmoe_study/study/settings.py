"""What distinguishes the cells of a table from each other."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_study.run.workdir import describe_changes
from vmoe_study.study.results import Cell

_ROUTING = ("router", "K", "capacity", "group", "batch priority")
OPTIONS = "model.moe.options."
_SAID = {
  "name",
  "model.moe.router",
  "model.moe.group_images",
  OPTIONS + "num_selected_experts",
  OPTIONS + "capacity_factor",
  OPTIONS + "batch_priority",
}


def names(cells: Sequence[Cell]) -> list[str]:
  """Of the columns that `settings` fills."""
  return [*_ROUTING, *others(cells)]


def settings(cell: Cell, cells: Sequence[Cell]) -> list[str]:
  """A cell's router, K, capacity factor, group, priority and `others`.

  Args:
    cell: to be described.
    cells: all of the table.
  """
  more = [field(cell, name) for name in others(cells)]
  if cell.router == "dense":
    return ["dense", "", "", "", "", *more]
  chosen = cell.num_selected_experts
  return [
    cell.router,
    str(chosen or ""),
    f"{cell.capacity_factor:g}",
    str(cell.group_images),
    ("no", "yes")[cell.batch_priority] if chosen else "",
    *more,
  ]


def others(cells: Sequence[Cell]) -> list[str]:
  """Fields of the config in which cells differ, besides their routing.

  Routers have options of their own: of these, those count in which cells of one
  router differ.
  """
  found = {n for n in _differing(cells) if not n.startswith("model.moe.")}
  for router in {cell.router for cell in cells}:
    found |= _differing([cell for cell in cells if cell.router == router])
  return sorted(found - _SAID)


def _differing(cells: Sequence[Cell]) -> set[str]:
  return {
    change.partition(":")[0]
    for cell in cells[1:]
    for change in describe_changes(cells[0].config, cell.config)
  }


def field(cell: Cell, name: str) -> str:
  """A field of the config, by its path; empty where there is none."""
  value: Any = cell.config
  for part in name.split("."):
    value = value.get(part, "") if isinstance(value, Mapping) else ""
  return value if isinstance(value, str) else json.dumps(value)
