"""A contact sheet of training images with their labels."""

import dataclasses
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from vmoe_study.data.classes import class_label
from vmoe_study.data.examples import Batch
from vmoe_study.data.pipeline import TrainInput

COLUMNS, ROWS = 8, 5
CELL = 160  # Pixels: the larger side of an image on the sheet.
MARGIN = 8
LINE = 18  # Height of a line of text.
LINES = 2
FONT, SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def training_sheet(data: TrainInput) -> np.ndarray:
  """Draws the first training images, augmented as for the model.

  As the model gets them, but without the operations in float: value range,
  label smoothing and mixup.

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
  cells = [_cell(*pair) for pair in zip(images, texts, strict=True)]
  blank = np.full_like(cells[0], 255)
  cells += [blank] * (-len(cells) % COLUMNS)
  rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
  return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def _cell(image: np.ndarray, text: str) -> np.ndarray:
  width, height = CELL + MARGIN, CELL + MARGIN + LINE * LINES
  cell = np.full((height, width, 3), 255, np.uint8)
  image = _enlarged(image)
  top, left = ((CELL + MARGIN - side) // 2 for side in image.shape[:2])
  cell[top : top + image.shape[0], left : left + image.shape[1]] = image
  for number, line in enumerate(_lines(text)):
    base = (MARGIN // 2, CELL + MARGIN // 2 + LINE * (number + 1) - 4)
    cv2.putText(cell, line, base, FONT, SCALE, (0, 0, 0), 1, cv2.LINE_AA)
  return cell


def _enlarged(image: np.ndarray) -> np.ndarray:
  """Resizes so that the larger side fills the cell; pixels stay visible."""
  height, width = image.shape[:2]
  scale = CELL / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  method = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
  resized = cv2.resize(image, size, interpolation=method)
  return resized.reshape(size[1], size[0], image.shape[-1])


def _lines(text: str) -> list[str]:
  """Breaks a text into the lines that fit; the font has ASCII only."""
  rest = text.encode("ascii", "replace").decode()
  lines: list[str] = []
  while rest and len(lines) < LINES:
    fitting = _fitting(rest)
    lines.append(rest[:fitting])
    rest = rest[fitting:].lstrip()
  if rest:
    lines[-1] = lines[-1][:-3] + "..."
  return lines


def _fitting(text: str) -> int:
  """Number of characters that fit into a line; at least one."""
  for count in range(len(text), 1, -1):
    if cv2.getTextSize(text[:count], FONT, SCALE, 1)[0][0] <= CELL:
      return count
  return 1
