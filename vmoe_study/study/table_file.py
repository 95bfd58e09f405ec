"""Tables of configs in a Python file, and the analyses of their results."""

from collections.abc import Mapping
from typing import Any, Protocol

from vmoe_study.run.config_file import find_file, load_module
from vmoe_study.study.planned import Analysis


class Row(Protocol):
  """A row of a table.

  Attributes:
    name: unique in the table.
    config: "FILE.py:ARGUMENTS".
    overrides: changes of single fields of the config, "FIELD=VALUE".
    expected: published percentage by metric.
    source: source of the expected numbers.
    note: remark on the comparability of the numbers.
  """

  name: str
  config: str
  overrides: tuple[str, ...]
  expected: Mapping[str, float]
  source: str
  note: str


def load_table(table: str) -> dict[str, Row]:
  """Reads the rows of a table, by name.

  Args:
    table: "FILE.py:TABLE", where FILE.py has a dict `TABLES` of rows.

  Raises:
    ValueError: there is no such file or table.
  """
  return {row.name: row for row in _find(table)}


def load_analysis(table: str) -> Analysis:
  """Reads the planned analysis of a table, its attribute `analysis`.

  Args:
    table: see `load_table`.

  Raises:
    ValueError: there is no such table, it has no analysis, or a contrast names
      a row that the table does not have.
  """
  found = _find(table)
  analysis = getattr(found, "analysis", None)
  if analysis is None:
    raise ValueError(
      f"{table}: has no planned contrasts. Leave out --planned, or choose "
      "another table."
    )
  names = {row.name for row in found}
  for contrast in analysis.contrasts:
    if unknown := sorted(contrast.weights.keys() - names):
      raise ValueError(
        f"{table}: contrast {contrast.text!r} names {unknown[0]!r}, which is "
        "no row of the table. Correct the name."
      )
  return analysis


def _find(table: str) -> Any:
  path, _, name = table.partition(":")
  file = find_file(path)
  if file is None:
    raise ValueError(f"{table}: there is no file {path}. Give FILE.py:TABLE.")
  tables = getattr(load_module(file), "TABLES", {})
  if name not in tables:
    raise ValueError(
      f"{table}: must be FILE.py:TABLE, where TABLE is one of "
      f"{', '.join(tables)}."
    )
  return tables[name]
