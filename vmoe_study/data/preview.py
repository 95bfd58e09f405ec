"""A contact sheet of training images with their labels."""

import bisect
import dataclasses
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

from vmoe_study.data.classes import class_label
from vmoe_study.data.examples import Batch
from vmoe_study.data.pipeline import TrainInput
from vmoe_study.drawing.figure_files import figure_pixels
from vmoe_study.drawing.fonts import line_width

COLUMNS, ROWS = 8, 5
CELL = 160  # Pixels: the larger side of an image on the sheet.
MARGIN = 8
LINE = 18  # Height of a line of text.
LINES = 2
FONT_SIZE = 13  # Pixels.
WIDTH, HEIGHT = CELL + MARGIN, CELL + MARGIN + LINE * LINES  # With the text.


def training_sheet(data: TrainInput) -> np.ndarray:
  """Draws the first training images, augmented as in training.

  The float operations are left out: value range, label smoothing and mixup.

  Returns:
    uint8 (H, W, 3), RGB.
  """
  count = COLUMNS * ROWS
  batches = [data[n] for n in range(-(-count // data.batch_size))]
  batch: Batch = {
    name: np.concatenate([b[name] for b in batches])[:count]
    for name in batches[0]
  }
  plain = dataclasses.replace(data.device_ops, label_smoothing=0.0)
  texts = [
    ", ".join(class_label(data.class_names, c) for c in np.flatnonzero(row))
    or "-"
    for row in plain.label_vectors(batch["label"])
  ]
  return sheet(batch["image"], texts)


def sheet(images: Iterable[np.ndarray], texts: Sequence[str]) -> np.ndarray:
  """Arranges uint8 (H, W, C) images in rows, each with its text below."""
  num_rows = -(-len(texts) // COLUMNS)
  drawn = _draw_texts(texts, num_rows)
  for number, image in enumerate(images):
    row, column = divmod(number, COLUMNS)
    picture = _enlarged(image)
    height, width = picture.shape[:2]
    top = row * HEIGHT + (CELL + MARGIN - height) // 2
    left = column * WIDTH + (CELL + MARGIN - width) // 2
    drawn[top : top + height, left : left + width] = picture
  return drawn


def _enlarged(image: np.ndarray) -> np.ndarray:
  """Resizes so that the larger side fills the cell; pixels stay visible."""
  height, width = image.shape[:2]
  scale = CELL / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  method = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
  resized = cv2.resize(image, size, interpolation=method)
  return resized.reshape(size[1], size[0], image.shape[-1])


def _draw_texts(texts: Sequence[str], num_rows: int) -> np.ndarray:
  """A white sheet with the texts of all cells, at one pixel per point."""
  shape = num_rows * HEIGHT, COLUMNS * WIDTH
  figure = Figure(figsize=(shape[1] / 72, shape[0] / 72), dpi=72)
  for number, text in enumerate(texts):
    row, column = divmod(number, COLUMNS)
    for place, line in enumerate(_lines(text), start=1):
      x = column * WIDTH + MARGIN // 2
      y = row * HEIGHT + CELL + MARGIN // 2 + LINE * place - 4
      at = x / shape[1], 1 - y / shape[0]
      figure.text(*at, line, size=FONT_SIZE, parse_math=False)
  return figure_pixels(figure)


def _lines(text: str) -> list[str]:
  """Wraps a text into lines that fit."""
  rest = " ".join(text.split())
  lines: list[str] = []
  while rest and len(lines) < LINES:
    fitting = _fitting(rest)
    lines.append(rest[:fitting])
    rest = rest[fitting:].lstrip()
  if rest:
    lines[-1] = lines[-1][:-2] + "…"
  return lines


def _fitting(text: str) -> int:
  """Number of characters that fit into a line; at least one."""
  lengths = range(1, len(text) + 1)
  return max(
    1,
    bisect.bisect(lengths, CELL, key=lambda n: line_width(text[:n], FONT_SIZE)),
  )
