"""Names that users gave fit in figures, in any script."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from vmoe_study.drawing.figure_files import figure_bytes, figure_pixels
from vmoe_study.drawing.fonts import families
from vmoe_study.drawing.labels import name_label, text_width

NAMES = [
  "größe",
  "кошка",
  "猫と犬",
  "$5_^$",
  "\U00013000",
  "two\nlines",
  "\u202ex",
]


@pytest.mark.parametrize("width", [5, 8, 32])
def test_labels_are_as_wide_as_they_may_be(width):
  long = "0123456789" * 4
  shown = name_label(long, width)
  head, tail = shown.split("…")
  assert len(shown) == width and abs(len(head) - len(tail)) <= 1
  assert long.startswith(head) and long.endswith(tail)
  wide = name_label("猫" * 40, width)
  assert text_width(wide) in (width - 1, width)
  assert name_label(long[:width], width) == long[:width]


def test_labels_have_one_line_and_no_formula():
  assert name_label("two\r\nlines\tand a \u202ebidi") == "two lines and a bidi"
  assert name_label("a$b$") == r"a\$b\$"


def picture(name):
  figure = Figure(figsize=(2, 1), dpi=60)
  figure.subplots().set_yticks([0], [name_label(name)])
  return figure


def test_every_name_is_drawn_without_a_warning(recwarn):
  for name in NAMES:
    pixels = figure_pixels(picture(name))
    assert (pixels < 100).any()
    assert figure_bytes(picture(name), "svg").startswith(b"<?xml")
  assert not recwarn.list


def test_letters_of_another_script_come_from_a_font_that_has_them():
  """Two characters look alike only if both are boxes of a missing font."""
  if not families("猫犬"):
    pytest.skip("no font with Han characters is installed")
  first, second = (figure_pixels(picture(name)) for name in "猫犬")
  assert not np.array_equal(first, second)
  box = figure_pixels(picture("\U00013000"))
  assert not np.array_equal(first, box)


def test_equal_figures_give_equal_bytes():
  for form in ("png", "svg"):
    first, second = (
      figure_bytes(picture("猫"), form, "name") for _ in range(2)
    )
    assert first == second
    assert not re.search(rb"Matplotlib|20\d\d-\d\d", second)
