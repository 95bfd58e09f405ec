"""RandAugment's distortions against Pillow's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from vmoe_study.data import distortions as ra
from vmoe_study.data.randaugment import randaug


@pytest.fixture(scope="module")
def image() -> np.ndarray:
  """uint8 (40, 50, 3): clouds with noise, not spanning the whole range."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:40, :50]
  base = 120 + 60 * np.sin(x / 9) * np.cos(y / 7)
  noise = rng.integers(-20, 20, (40, 50, 3))
  return (base[..., None] + noise).astype(np.uint8)


def enhance(kind, factor):
  return lambda picture: kind(picture).enhance(factor)


PAIRS = {
  "autocontrast": (ra.autocontrast, ImageOps.autocontrast),
  "equalize": (ra.equalize, ImageOps.equalize),
  "invert": (ra.invert, ImageOps.invert),
  "posterize": (
    lambda x: ra.posterize(x, 3),
    lambda p: ImageOps.posterize(p, 3),
  ),
  "solarize": (
    lambda x: ra.solarize(x, 110),
    lambda p: ImageOps.solarize(p, 110),
  ),
  "color": (lambda x: ra.color(x, 1.7), enhance(ImageEnhance.Color, 1.7)),
  "contrast": (
    lambda x: ra.contrast(x, 0.4),
    enhance(ImageEnhance.Contrast, 0.4),
  ),
  "brightness": (
    lambda x: ra.brightness(x, 1.6),
    enhance(ImageEnhance.Brightness, 1.6),
  ),
  "sharpness": (
    lambda x: ra.sharpness(x, 1.9),
    enhance(ImageEnhance.Sharpness, 1.9),
  ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_levels_agree_with_pillow(name, image):
  ours, pillows = PAIRS[name]
  expected = np.asarray(pillows(Image.fromarray(image)), int)
  # Pillow rounds intermediate images; a factor of 1.9 doubles that error.
  assert np.abs(ours(image) - expected).max() <= 2
  assert np.abs(ours(image) - expected).mean() <= 0.6


AFFINE = {
  "shear_x": (ra.shear_x, 0.2, (1, 0.2, 0, 0, 1, 0)),
  "shear_y": (ra.shear_y, -0.2, (1, 0, 0, -0.2, 1, 0)),
  "translate_x": (ra.translate_x, 7, (1, 0, 7, 0, 1, 0)),
  "translate_y": (ra.translate_y, -4, (1, 0, 0, 0, 1, -4)),
}


@pytest.mark.parametrize("name", AFFINE)
def test_geometry_agrees_with_pillow(name, image):
  ours, amount, matrix = AFFINE[name]
  expected = Image.fromarray(image).transform(
    (50, 40), Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128)
  )
  # Nearest pixels may differ where a coordinate falls between two.
  same = (ours(image, amount) == np.asarray(expected)).all(-1)
  assert same.mean() > 0.9


def test_rotation_agrees_with_pillow(image):
  expected = Image.fromarray(image).rotate(17, fillcolor=(128, 128, 128))
  same = (ra.rotate(image, 17) == np.asarray(expected)).all(-1)
  assert same.mean() > 0.9


def test_solarize_add_spares_bright_levels(image):
  out = ra.solarize_add(image, 40)
  np.testing.assert_array_equal(out, np.where(image < 128, image + 40, image))


def test_cutout_is_a_grey_square(image):
  dark = np.zeros_like(image)
  out = ra.cutout(dark, 5, np.random.default_rng(0))
  rows, columns = np.nonzero(out[..., 0])
  assert set(out[rows, columns].ravel()) == {ra.GREY}
  height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
  assert height <= 10 and width <= 10 and len(rows) == height * width
  assert not dark.any()


def test_all_sixteen_distortions_change_an_image(image):
  assert len(ra.DISTORTIONS) == 16
  for name, distort in ra.DISTORTIONS.items():
    out = distort(image, 0.7, np.random.default_rng(0))
    assert not np.array_equal(out, image), name


@given(
  height=st.integers(1, 40),
  width=st.integers(1, 40),
  channels=st.sampled_from([1, 3]),
  magnitude=st.floats(0, 20),
  seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_shape_and_dtype_are_kept(height, width, channels, magnitude, seed):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (height, width, channels), np.uint8)
  before = image.copy()
  out = randaug(image, 3, magnitude, rng=rng)
  assert out.shape == image.shape and out.dtype == np.uint8
  np.testing.assert_array_equal(image, before)
  for distort in ra.DISTORTIONS.values():
    out = distort(image, magnitude / 10, rng)
    assert out.shape == image.shape and out.dtype == np.uint8
