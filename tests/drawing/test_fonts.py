"""Texts in any script, whatever fonts are installed."""

import warnings

import pytest
from matplotlib.figure import Figure

from vmoe_study.drawing import fonts


@pytest.fixture
def _own_fonts_only(monkeypatch):
  """Only the fonts that Matplotlib brings along, none of them with Han."""
  own = [f for f in fonts.fontManager.ttflist if "matplotlib" in f.fname]
  monkeypatch.setattr(fonts.fontManager, "ttflist", own)
  fonts._family.cache_clear()
  fonts._regular_fonts.cache_clear()
  yield
  fonts._family.cache_clear()
  fonts._regular_fonts.cache_clear()


@pytest.mark.usefixtures("_own_fonts_only")
def test_what_no_font_has_is_drawn_without_a_warning(tmp_path):
  figure = Figure()
  figure.suptitle("咐 and more")
  fonts.fit_fonts(fonts.fit_fonts(figure))  # As often as one likes.
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    figure.savefig(tmp_path / "figure.png")
