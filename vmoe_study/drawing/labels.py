"""User-given names as labels in figures."""

import unicodedata

_WIDE = ("F", "W")  # Characters that take the place of two.


def name_label(text: str, width: int = 32) -> str:
  """A name on one line, no wider than `width` letters, for Matplotlib.

  A dollar sign does not start a formula.

  >>> name_label("a_very_long_name_of_a_class", 12)
  'a_very…class'
  """
  return shortened(text, width).replace("$", r"\$")


def shortened(text: str, width: int) -> str:
  """A text on one line, no wider than `width` letters.

  The middle of a longer one is left out. Line breaks and other characters that
  cannot be seen become spaces.
  """
  text = " ".join("".join(map(_visible, text)).split())
  if text_width(text) <= width:
    return text
  head = _prefix(text, width // 2)
  tail = _prefix(text[::-1], width - 1 - text_width(head))[::-1]
  return f"{head}…{tail}"


def text_width(text: str) -> int:
  """Width of a text in letters."""
  return sum(map(_width, text))


def _visible(character: str) -> str:
  return character if character.isprintable() else " "


def _width(character: str) -> int:
  if unicodedata.combining(character):
    return 0
  return 2 if unicodedata.east_asian_width(character) in _WIDE else 1


def _prefix(text: str, width: int) -> str:
  end = 0
  while end < len(text) and text_width(text[: end + 1]) <= width:
    end += 1
  return text[:end]
