"""Tables as people read them and Markdown renders them."""

from collections.abc import Sequence


def markdown_table(
  header: Sequence[str], rows: Sequence[Sequence[object]]
) -> str:
  """A Markdown table with columns aligned; numbers to the right."""
  cells = [[str(cell) for cell in row] for row in rows]
  widths = [
    max(len(row[i]) for row in [list(header), *cells])
    for i in range(len(header))
  ]
  left = [
    any(not _is_number(row[i]) for row in cells) for i in range(len(header))
  ]

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


def _is_number(cell: str) -> bool:
  return not cell or cell.replace(",", "").replace(".", "").isdigit()
