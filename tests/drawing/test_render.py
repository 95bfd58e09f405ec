"""Tables as Markdown, CSV and LaTeX."""

import pytest

from vmoe_study.drawing.render import csv_table, latex_table, markdown_table


@pytest.mark.parametrize(
  ("cells", "right"),
  [
    (["1"], True),
    (["1,234.5", ""], True),
    (["1", "x"], False),
    (["", ""], False),
    ([], False),
  ],
)
def test_only_columns_of_numbers_are_aligned_to_the_right(cells, right):
  table = markdown_table(["a"], [[cell] for cell in cells])
  lines = table.splitlines()
  assert lines[1].endswith("-:|") == right
  assert lines[1].startswith("|:-") != right or not cells
  assert len(set(map(len, lines))) == 1


def test_text_is_kept_as_it_is():
  rows = [["1.50", "nan", "1e3", "007", ""]]
  line = markdown_table("abcde", rows).splitlines()[2]
  assert [cell.strip() for cell in line.split("|")[1:-1]] == rows[0]


def test_special_characters_do_not_break_a_table():
  cells = ["|x|", "two\u2028\nlines", "<b>", "p < 0.1"]
  table = markdown_table(["a|b", "c", "d", "e"], [cells])
  lines = table.splitlines()
  assert len(lines) == 3
  assert r"\<b>" in lines[2] and "p < 0.1" in lines[2]
  assert r"a\|b" in lines[0]
  assert r"\|x\|" in lines[2] and "two  lines" in lines[2]


def test_a_row_of_another_length_is_an_error():
  with pytest.raises(ValueError):
    markdown_table(["a", "b"], [["1"]])


def test_csv_and_latex_have_the_same_cells():
  header, rows = ["a_b", "±"], [["50%", "1, 2"]]
  assert csv_table(header, rows) == 'a_b,±\n50%,"1, 2"\n'
  _, _, first, _, second, *_ = latex_table(header, rows).splitlines()
  assert first.split() == [r"a\_b", "&", r"$\pm$", r"\\"]
  assert second.split() == [r"50\%", "&", "1,", "2", r"\\"]


def test_specials_of_latex_are_escaped():
  """All ten, and the bar, which the usual fonts of LaTeX show as a dash."""
  table = latex_table([r"#$%&_{}~^\|", "a\n\nb"], [["1", "2"]])
  specials, more = table.splitlines()[2].removesuffix(r"\\").split(" & ")
  expected = r"\#\$\%\&\_\{\}\textasciitilde{}\^{}\textbackslash{}\textbar{}"
  assert specials.strip() == expected
  assert more.split() == ["a", "b"]
