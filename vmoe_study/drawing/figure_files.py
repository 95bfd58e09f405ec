"""Figures as files: PNG for the screen, SVG for print."""

import io
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_study.drawing.fonts import fit_fonts, no_glyph_warnings

DOTS_PER_INCH = 110
Form = Literal["png", "svg"]
# Without the date and the version, so that equal figures give equal bytes.
_METADATA: dict[Form, dict[str, Any]] = {
  "png": {"Software": None},
  "svg": {"Date": None, "Creator": None},
}


def figure_bytes(
  figure: Figure, form: Form = "png", name: str = "", dpi: int = DOTS_PER_INCH
) -> bytes:
  """The content of a figure's file; equal figures give equal bytes.

  Args:
    figure: the figure; its texts get fonts that have all their characters.
    form: "png" or "svg".
    name: seeds the identifiers in an SVG file.
    dpi: resolution of a PNG file, in dots per inch.
  """
  FigureCanvasAgg(figure)
  content = io.BytesIO()
  fit_fonts(figure)
  with mpl.rc_context({"svg.hashsalt": name}), no_glyph_warnings():
    figure.savefig(content, format=form, dpi=dpi, metadata=_METADATA[form])
  return content.getvalue()


def figure_pixels(figure: Figure) -> UInt8[np.ndarray, "H W 3"]:
  """A figure as an image, RGB, with the dots per inch of the figure."""
  canvas = FigureCanvasAgg(figure)
  fit_fonts(figure)
  with no_glyph_warnings():
    canvas.draw()
  return np.array(canvas.buffer_rgba())[..., :3]


def save_figure(
  figure: Figure, folder: epath.PathLike, name: str, dpi: int = DOTS_PER_INCH
) -> None:
  """Writes NAME.png and NAME.svg."""
  for form in _METADATA:
    content = figure_bytes(figure, form, name, dpi)
    (epath.Path(folder) / f"{name}.{form}").write_bytes(content)
