"""Training on several data sets by weight."""

import cv2
import numpy as np
import pytest

from vmoe_study.config import parse
from vmoe_study.run.inputs import open_train_input


def _folder(root, value):
  for label in "ab":
    (root / "train" / label).mkdir(parents=True)
    for i in range(4):
      image = np.full((4, 4, 3), value, np.uint8)
      cv2.imwrite(str(root / "train" / label / f"{i}.png"), image)
  return {
    "name": "image_folder",
    "split": "train",
    "ops": "value_range(0, 1)",
    "num_classes": 2,
    "data_dir": str(root),
  }


def _config(tmp_path, **changes):
  sizes = {"patch_size": 2, "width": 4, "depth": 2, "mlp_dim": 4}
  white = _folder(tmp_path / "white", 255) | changes
  return {
    "name": "mixture",
    "model": {"fields": {**sizes, "num_heads": 1, "num_classes": 2}},
    "data": _folder(tmp_path / "black", 0),
    "mixture": {"white": {"data": white, "weight": 3}},
    "train": {"batch_size": 16, "num_steps": 1},
  }


def test_examples_come_in_proportion_to_the_weights(tmp_path):
  data = open_train_input(parse(_config(tmp_path)))
  assert data.num_examples == 16
  means = [data[step]["image"].mean() for step in range(4)]
  np.testing.assert_allclose(means, 0.75 * 255)


def test_all_data_sets_fit_the_head(tmp_path):
  with pytest.raises(
    ValueError, match=r"mixture.white.data.num_classes=3: must"
  ):
    parse(_config(tmp_path, num_classes=3))
