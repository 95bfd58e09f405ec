"""Tables as people read them and Markdown renders them."""

import csv
import io
from collections.abc import Sequence

_NARROWEST = 3  # Of a column: what Markdown takes for a rule is "--:".


def markdown_table(
  header: Sequence[str], rows: Sequence[Sequence[object]]
) -> str:
  """A Markdown table with columns aligned; numbers to the right."""
  cells = [[str(cell) for cell in row] for row in rows]
  columns = list(zip(header, *cells, strict=True))
  widths = [max(_NARROWEST, *map(len, column)) for column in columns]
  left = [not _is_numeric(column[1:]) for column in columns]

  def line(row):
    padded = [
      cell.ljust(width) if to_left else cell.rjust(width)
      for cell, width, to_left in zip(row, widths, left, strict=True)
    ]
    return f"| {' | '.join(padded)} |"

  rule = [
    "-" * width if to_left else "-" * (width - 1) + ":"
    for width, to_left in zip(widths, left, strict=True)
  ]
  return "\n".join([line(header), line(rule), *map(line, cells)])


def _is_numeric(column: Sequence[str]) -> bool:
  """Whether it has numbers, and nothing else but gaps."""
  filled = [cell.replace(",", "").replace(".", "") for cell in column if cell]
  return bool(filled) and all(cell.isdigit() for cell in filled)


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """The same as comma-separated values."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([header, *rows])
  return text.getvalue()


def latex_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """The same as a LaTeX `tabular`, with booktabs' rules."""
  lines = [" & ".join(map(_latex, row)) + r" \\" for row in [header, *rows]]
  begin = r"\begin{tabular}{" + "l" * len(header) + "}"
  parts = [begin, r"\toprule", lines[0], r"\midrule", *lines[1:]]
  return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = str.maketrans(
  {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    "±": r"$\pm$",
  }
)


def _latex(cell: object) -> str:
  return str(cell).translate(_LATEX)
