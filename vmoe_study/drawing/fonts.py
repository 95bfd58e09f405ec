"""Fonts for text in any script, from those that are installed.

Matplotlib's own font has Latin, Greek, Cyrillic and Arabic letters. For other
characters, Matplotlib takes the first font of a list that has them.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator

import matplotlib as mpl
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

# Fonts to try first, by the beginning of their names: plain and complete ones.
_PREFERRED = ("Noto Sans", "Droid Sans", "WenQuanYi", "IPAGothic", "Nanum")
_BOXES = "Last Resort"  # Matplotlib's font that has a box for everything.
_REGULAR = (400, "normal", "regular", "book")


def fit_fonts(figure: Figure) -> Figure:
  """Sets fonts that have the characters of a figure's texts.

  Characters that no font has are drawn as boxes.
  """
  boxes = [f.name for f in fontManager.ttflist if f.name.startswith(_BOXES)]
  for text in figure.findobj(Text):
    content = text.get_text()
    if not content.isascii():
      fonts = [*text.get_fontfamily(), *families(content), *boxes]
      text.set_fontfamily(list(dict.fromkeys(fonts)))
  return figure


def families(text: str) -> list[str]:
  """Font families for the characters that the usual font lacks.

  >>> families("größe")
  []
  """
  found = {_family(character) for character in text if not character.isascii()}
  return sorted(found - {None}, key=_rank)


@contextlib.contextmanager
def no_glyph_warnings() -> Iterator[None]:
  """Silences Matplotlib's warnings about characters that no font has."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    yield


def line_width(text: str, size: float) -> float:
  """Width of a line of text, in the unit of `size`."""
  fonts = [*mpl.rcParams["font.family"], *families(text)]
  style = FontProperties(family=fonts, size=size)
  with no_glyph_warnings():
    width, _, _ = RendererAgg(1, 1, dpi=72).get_text_width_height_descent(
      text, style, ismath=False
    )
  return width


@functools.cache
def _family(character: str) -> str | None:
  """The first family with a character; None if it is the usual one, or none."""
  usual = findfont(FontProperties(family=mpl.rcParamsDefault["font.family"]))
  if _has(usual, character):
    return None
  having = (name for name, path in _regular_fonts() if _has(path, character))
  return next(having, None)


@functools.cache
def _regular_fonts() -> list[tuple[str, str]]:
  """Family and path of each font of regular weight, the best ones first."""
  fonts = {
    (font.name, font.fname)
    for font in fontManager.ttflist
    if font.style == "normal" and font.weight in _REGULAR
  }
  return sorted(
    (font for font in fonts if not font[0].startswith(_BOXES)),
    key=lambda font: _rank(font[0]),
  )


def _rank(name: str) -> tuple[int, str]:
  places = (n for n, start in enumerate(_PREFERRED) if name.startswith(start))
  return next(places, len(_PREFERRED)), name


def _has(path: str, character: str) -> bool:
  font = _open(path)
  return font is not None and font.get_char_index(ord(character)) > 0


@functools.cache
def _open(path: str) -> FT2Font | None:
  """A font; None for kinds that Matplotlib cannot draw, such as bitmaps."""
  try:
    return FT2Font(path)
  except (OSError, RuntimeError):
    return None
