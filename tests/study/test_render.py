"""Tables as Markdown."""

import pytest

from vmoe_study.study.render import markdown_table


@pytest.mark.parametrize(
  ("cells", "rule"),
  [
    (["1"], "--:"),
    (["1,234.5", ""], "------:"),
    (["1", "x"], "---"),
    (["", ""], "---"),
    ([], "---"),
  ],
)
def test_numbers_and_nothing_else_stand_on_the_right(cells, rule):
  table = markdown_table(["a"], [[cell] for cell in cells])
  lines = table.splitlines()
  assert lines[1] == f"| {rule} |"
  assert len(set(map(len, lines))) == 1
