"""Writes an inspection to files: numbers, figures and a page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from etils import epath

from vmoe_study.drawing.figure_files import figure_bytes
from vmoe_study.inspection.page import render_page
from vmoe_study.inspection.result import Inspection

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def write_inspection(inspection: Inspection, folder: epath.PathLike) -> None:
  """Writes statistics.json, one PNG file per figure, and index.html."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(inspection.to_dict(), indent=2, allow_nan=False)
  (folder / "statistics.json").write_text(text + "\n")
  figures = inspection.figures().items()
  files = {name: figure_bytes(figure) for name, figure in figures}
  for name, data in files.items():
    (folder / f"{name}.png").write_bytes(data)
  (folder / "index.html").write_text(render_page(inspection, files))


def save_png(figure: Figure, path: epath.Path) -> None:
  """Writes a figure as a PNG file."""
  path.write_bytes(figure_bytes(figure))
