"""Figures as files: PNG to look at, SVG to print."""

import io
import warnings
from typing import Any, Literal

import matplotlib as mpl
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_study.drawing.fonts import fit_fonts

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
  """A figure as the content of a file; equal figures give equal bytes.

  Args:
    figure: to draw, with fonts for all of its texts.
    form: "png" or "svg".
    name: for the identifiers in an SVG file.
    dpi: of a PNG file, in dots per inch.
  """
  FigureCanvasAgg(figure)
  fit_fonts(figure)
  content = io.BytesIO()
  with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    figure.savefig(content, format=form, dpi=dpi, metadata=_METADATA[form])
  return content.getvalue()


def save_figure(
  figure: Figure, folder: epath.PathLike, name: str, dpi: int = DOTS_PER_INCH
) -> None:
  """Writes NAME.png and NAME.svg."""
  for form in _METADATA:
    content = figure_bytes(figure, form, name, dpi)
    (epath.Path(folder) / f"{name}.{form}").write_bytes(content)
