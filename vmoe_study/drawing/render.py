"""Tables as text: Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Sequence

from tabulate import tabulate

# A bare "|" would end a cell, and "<" begin a tag.
_MARKDOWN = re.compile(r"\||<(?=[A-Za-z/!?])")
# What tabulate leaves: "|" is a dash in the fonts that LaTeX uses by default.
_LATEX = {"±": r"$\pm$", "|": r"\textbar{}"}


def markdown_table(
  header: Sequence[str], rows: Sequence[Sequence[object]]
) -> str:
  """A Markdown table with aligned columns; numbers are aligned to the right.

  Args:
    header: column names.
    rows: cells, converted with `str`. "|" and tags are escaped.

  Raises:
    ValueError: a row is longer or shorter than the header.

  >>> print(markdown_table(["run", "steps"], [["a|b", 10], ["c", 200]]))
  | run   |   steps |
  |:------|--------:|
  | a\\|b  |      10 |
  | c     |     200 |
  """
  escaped = [
    [_MARKDOWN.sub(r"\\\g<0>", text) for text in row]
    for row in _one_line_each([header, *rows])
  ]
  return _aligned("pipe", escaped)


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """A table as comma-separated values, with the header as its first line."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([header, *rows])
  return text.getvalue()


def latex_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """A LaTeX `tabular` with the rules of booktabs; its specials are escaped."""
  cells = _one_line_each([header, *rows])
  text = _aligned("latex_booktabs", cells)
  for symbol, command in _LATEX.items():
    text = text.replace(symbol, command)
  return text + "\n"


def _one_line_each(rows: Sequence[Sequence[object]]) -> list[list[str]]:
  """Cells as text without line breaks, which would end them."""
  return [[" ".join(str(cell).splitlines()) for cell in row] for row in rows]


def _aligned(form: str, lines: Sequence[Sequence[str]]) -> str:
  header, *rows = lines
  numeric = [_is_numeric(cells) for _, *cells in zip(*lines, strict=True)]
  return tabulate(
    rows,
    header,
    tablefmt=form,
    disable_numparse=True,  # Numbers are formatted already.
    colalign=["right" if each else "left" for each in numeric],
  )


def _is_numeric(column: Sequence[str]) -> bool:
  """Whether a column has numbers, and nothing else except empty cells."""
  filled = [cell.replace(",", "").replace(".", "") for cell in column if cell]
  return bool(filled) and all(cell.isdigit() for cell in filled)
