"""The settings of a cell: the columns by which the rows of a table differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vmoe_study.run.saved_config import describe_changes
from vmoe_study.study.results import Cell

RUN = "run"
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


class Settings(NamedTuple):
  """The columns that distinguish the rows of a table.

  Attributes:
    names: headers of the columns.
    rows: texts of each cell, in the order of the cells.
    common: contents of the routing columns that are left out because they are
      the same in every row to which they apply.
  """

  names: list[str]
  rows: list[list[str]]
  common: dict[str, str]


def settings(cells: Sequence[Cell]) -> Settings:
  """The router, and the settings in which cells differ.

  If these do not distinguish all rows, the first column is the name of the run.
  """
  fields = differing_fields(cells)
  values = [
    _routing(cell) | {name: field_text(cell, name) for name in fields}
    for cell in cells
  ]
  common = {
    name: text
    for name in _ROUTING[1:]
    if len(cells) > 1 and len(found := _texts(values, name)) == 1
    for text in found
  }
  names = [
    name
    for name in (*_ROUTING, *fields)
    if name == "router" or (_texts(values, name) and name not in common)
  ]
  rows = [[value[name] for name in names] for value in values]
  if len(set(map(tuple, rows))) < len(rows):
    names = [RUN, *names]
    rows = [[c.name, *row] for c, row in zip(cells, rows, strict=True)]
  return Settings(names, rows, common)


def _texts(values: Sequence[Mapping[str, str]], name: str) -> set[str]:
  """The distinct nonempty texts of a column."""
  return {value[name] for value in values} - {""}


def _routing(cell: Cell) -> dict[str, str]:
  """The columns on routing; those that do not apply are empty."""
  texts = dict.fromkeys(_ROUTING, "") | {"router": cell.router}
  if cell.router == "dense":
    return texts
  chosen = cell.num_selected_experts
  return texts | {
    "K": str(chosen or ""),
    "capacity": f"{cell.capacity_factor:g}",
    "group": str(cell.group_images),
    "batch priority": ("no", "yes")[cell.batch_priority] if chosen else "",
  }


def differing_fields(cells: Sequence[Cell]) -> list[str]:
  """Fields of the config, other than routing fields, in which cells differ.

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
    cell: a cell of the results.
    name: path of the field, such as "train.batch_size".
  """
  value: Any = cell.config
  for part in name.split("."):
    value = value.get(part, "") if isinstance(value, Mapping) else ""
  return value if isinstance(value, str) else json.dumps(value)
