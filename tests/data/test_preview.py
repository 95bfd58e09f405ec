"""The contact sheet shows the run's images above their labels."""

import cv2
import numpy as np

from vmoe_study.data import preview
from vmoe_study.data.pipeline import train_input
from vmoe_study.data.spec import DataSpec


def cell(sheet, number):
  """Image and text of a cell, without margins."""
  height = sheet.shape[0] // preview.ROWS
  width = sheet.shape[1] // preview.COLUMNS
  row, column = divmod(number, preview.COLUMNS)
  part = sheet[row * height :, column * width :][:height, :width]
  inner = preview.MARGIN // 2 + preview.CELL
  picture = part[preview.MARGIN // 2 : inner, preview.MARGIN // 2 : inner]
  return picture, part[inner + preview.MARGIN // 2 :]


def test_every_image_stands_over_its_label(data_dir):
  spec = DataSpec(
    "digits", "train", "value_range(-1, 1)", 10, data_dir, label_smoothing=0.1
  )
  # The batches are smaller than the sheet: it takes several.
  data = train_input(spec, batch_size=16, seed=3)
  sheet = preview.training_sheet(data)
  batch = train_input(spec, batch_size=40, seed=3)[0]
  texts = {}
  for number, (image, label) in enumerate(
    zip(batch["image"], batch["label"], strict=True)
  ):
    picture, text = cell(sheet, number)
    centres = picture[10::20, 10::20]
    np.testing.assert_array_equal(centres, np.repeat(image, 3, -1))
    assert (text < 100).any()
    texts.setdefault(int(label), []).append(text.tobytes())
  assert all(len(set(same)) == 1 for same in texts.values())
  assert len({same[0] for same in texts.values()}) == len(texts)


def test_colours_and_shapes_are_kept():
  images = [np.zeros((30, 60, 3), np.uint8) for _ in range(9)]
  images[8][..., 0] = 255
  sheet = preview.sheet(images, ["red"] * 9)
  assert sheet.shape[1] == preview.COLUMNS * (preview.CELL + preview.MARGIN)
  row = sheet[sheet.shape[0] // 2 :]
  red = (row == (255, 0, 0)).all(-1)
  assert red.sum() == preview.CELL * preview.CELL // 2
  assert not (sheet[: sheet.shape[0] // 2] == (255, 0, 0)).all(-1).any()


def test_long_names_are_cut_to_the_width():
  for text in ("x" * 300, "two words " * 30, "größe"):
    lines = preview._lines(text)
    assert len(lines) <= preview.LINES
    for line in lines:
      width = cv2.getTextSize(line, preview.FONT, preview.SCALE, 1)[0][0]
      assert width <= preview.CELL + 3
  assert preview._lines("x" * 300)[-1].endswith("...")
  assert preview._lines("größe") == ["gr??e"]
