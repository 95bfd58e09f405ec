"""The authors' distortions against arrays that the original code printed."""

import pathlib
import re

import numpy as np
import pytest

from vmoe_study.data import distortions_authors as authors
from vmoe_study.data.randaugment import VARIANTS, randaug

REFERENCE = pathlib.Path(__file__).parent / "reference" / "randaug_ops.npz"


@pytest.fixture(scope="module")
def arrays():
  return dict(np.load(REFERENCE))


class _Draws:
  """In place of random numbers: a sign, and a centre."""

  def __init__(self, sign="pos", centre=()):
    self._uniform = 0.0 if sign == "pos" else 0.9
    self._centre = list(centre)

  def random(self):
    return self._uniform

  def integers(self, high):
    return self._centre.pop(0)


def _name(op):
  """ "SolarizeAdd" is "solarize_add"."""
  name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", op).lower()
  return name.replace("auto_", "auto")


def _distort(op, magnitude, draw, image):
  """The distortion that an array's name asks for."""
  centre = [int(n) for n in re.findall(r"\d+", draw)]
  pixels = re.fullmatch(r"(pixels|pad)(.*)", magnitude)
  if pixels and op == "Cutout":
    return authors.pillow.fill_square(image, int(pixels[2]), *centre)
  if pixels:
    shift = float(pixels[2]) * (-1 if draw == "neg" else 1)
    return getattr(authors, _name(op))(image, shift)
  strength = 1.0 if magnitude == "any" else float(magnitude) / 10
  distort = authors.DISTORTIONS[_name(op)]
  return distort(image, strength, _Draws(draw, centre))


def test_all_levels_are_those_of_the_original(arrays):
  image = arrays.pop("image")
  assert len({key.split("/")[0] for key in arrays}) == 16
  for key, expected in arrays.items():
    found = _distort(*key.split("/"), image)
    np.testing.assert_array_equal(found, expected, err_msg=key)


def test_where_the_original_is_odd():
  """At other sizes and magnitudes than the arrays have."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (224, 224, 3), np.uint8)
  table, draws = authors.DISTORTIONS, _Draws()
  assert (table["contrast"](0 * image, -0.05, draws) == 194).all()  # 0.99 * 196
  large = rng.integers(0, 256, (300, 300, 3), np.uint8)
  assert (table["contrast"](0 * large, -0.05, draws) == 252).all()  # 0.99 * 255
  solarized = table["solarize"](image, 1.5, draws)  # 384 is 128.
  np.testing.assert_array_equal(
    solarized, np.where(image < 128, image, 255 - image)
  )
  np.testing.assert_array_equal(
    table["posterize"](image, 3.0, draws), 128 * (image // 128)
  )
  shifted = table["translate_x"](image, 1.0, draws)
  np.testing.assert_array_equal(shifted[:, :124], image[:, 100:])
  assert (shifted[:, 124:] == 128).all()
  assert (table["shear_x"](image, 0.0, draws) == image).all()
  # Row 5 moves by 1.5 pixels: halves are rounded away from zero.
  sheared = table["shear_x"](image, 1.0, draws)
  np.testing.assert_array_equal(sheared[5, :100], image[5, 2:102])


def test_smoothing_a_constant_image_loses_a_level_at_some():
  """Means are truncated: float32 sums of 13 equal parts may fall short."""
  kept = [
    (authors.sharpness(np.full((5, 5, 3), v, np.uint8), 0.0)[2, 2] == v).all()
    for v in range(256)
  ]
  assert sum(kept) == 203  # As TensorFlow 2.21's depthwise_conv2d.


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 9, 1), (40, 31, 1)])
def test_shapes_are_kept(shape):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, shape, np.uint8)
  for distort in authors.DISTORTIONS.values():
    out = distort(image, 1.7, rng)
    assert out.shape == image.shape and out.dtype == np.uint8


def test_the_variant_is_chosen_by_name():
  image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  for variant, table in VARIANTS.items():
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    found = randaug(image, 4, 20, variant, rng=rng)
    expected = image
    for number in same.integers(16, size=4):
      expected = list(table.values())[number](expected, 2.0, same)
    np.testing.assert_array_equal(found, expected)
