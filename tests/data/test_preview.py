"""The contact sheet shows the run's images above their labels."""

import numpy as np

from vmoe_study.data import preview
from vmoe_study.data.pipeline import train_input
from vmoe_study.data.spec import DataSpec
from vmoe_study.drawing.fonts import line_width


def cell(sheet, number):
  """Image and text of a cell, without margins."""
  height, width = preview.HEIGHT, preview.WIDTH
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
  for text in ("x" * 300, "two words " * 30, "größe", "猫" * 40):
    lines = preview._lines(text)
    assert 1 <= len(lines) <= preview.LINES
    for line in lines:
      assert line_width(line, preview.FONT_SIZE) <= preview.CELL
  assert preview._lines("x" * 300)[-1].endswith("x…")
  assert preview._lines("größe") == ["größe"]


def test_names_in_any_script_are_drawn(recwarn):
  """Names that no font has are drawn, too, without a warning each."""
  names = ["größe", "gr??e", "кошка", "$5_^$", "猫", "\U00013000", "a\nb"]
  blank = np.zeros((8, 8, 1), np.uint8)
  sheet = preview.sheet([blank] * len(names), names)
  drawn = {cell(sheet, n)[1].tobytes() for n in range(len(names))}
  assert len(drawn) == len(names)
  assert not recwarn.list
