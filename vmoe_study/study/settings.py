"""The settings of a cell: the columns by which the rows of a table differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_study.run.saved_config import describe_changes
from vmoe_study.study.results import Cell

_ROUTING = ("router", "K", "capacity", "group", "batch priority")
OPTIONS = "model.moe.options."
# Fields of the config that the routing columns show, and the config's name.
_SHOWN = {
  "name",
  "model.moe.router",
  "model.moe.group_images",
  OPTIONS + "num_selected_experts",
  OPTIONS + "capacity_factor",
  OPTIONS + "batch_priority",
}


def setting_names(cells: Sequence[Cell]) -> list[str]:
  """Headers of the columns that `setting_values` fills."""
  return [*_ROUTING, *differing_fields(cells)]


def setting_values(cell: Cell, cells: Sequence[Cell]) -> list[str]:
  """The routing of a cell and its values of the `differing_fields`.

  Args:
    cell: the cell to describe.
    cells: all cells of the table.
  """
  more = [field_text(cell, name) for name in differing_fields(cells)]
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


def differing_fields(cells: Sequence[Cell]) -> list[str]:
  """Fields of the config, besides those of the routing, in which cells differ.

  Every router has its own options. An option is listed if it differs between
  cells of the same router.
  """
  found = {n for n in _differing(cells) if not n.startswith("model.moe.")}
  for router in {cell.router for cell in cells}:
    found |= _differing([cell for cell in cells if cell.router == router])
  return sorted(found - _SHOWN)


def _differing(cells: Sequence[Cell]) -> set[str]:
  return {
    change.partition(":")[0]
    for cell in cells[1:]
    for change in describe_changes(cells[0].config, cell.config)
  }


def field_text(cell: Cell, name: str) -> str:
  """The value of a config field as text; "" where the field does not exist.

  Args:
    cell: of the results.
    name: path of the field, such as "train.batch_size".
  """
  value: Any = cell.config
  for part in name.split("."):
    value = value.get(part, "") if isinstance(value, Mapping) else ""
  return value if isinstance(value, str) else json.dumps(value)
