"""Writes an inspection to files: numbers, figures and a page."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from etils import epath

from vmoe_study.inspection.page import render_page
from vmoe_study.inspection.result import Inspection

if TYPE_CHECKING:
  from matplotlib.figure import Figure

DOTS_PER_INCH = 110


def write_inspection(inspection: Inspection, folder: epath.PathLike) -> None:
  """Writes statistics.json, one PNG file per figure, and index.html."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(inspection.to_dict(), indent=2, allow_nan=False)
  (folder / "statistics.json").write_text(text + "\n")
  files = {name: _png(figure) for name, figure in inspection.figures().items()}
  for name, data in files.items():
    (folder / f"{name}.png").write_bytes(data)
  (folder / "index.html").write_text(render_page(inspection, files))


def save_png(figure: Figure, path: epath.Path) -> None:
  """Writes a figure as a PNG file."""
  path.write_bytes(_png(figure))


def _png(figure: Figure) -> bytes:
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
  return file.getvalue()
