"""Image operations against Pillow, TensorFlow and their own definitions."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vmoe_study.data import augment


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
  """A smooth uint8 image."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / (9 + c)) + np.cos(y / (7 - c)) for c in range(channels)]
  return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


@given(
  height=st.integers(1, 400),
  width=st.integers(1, 400),
  seed=st.integers(0, 10**6),
  low=st.sampled_from([0.05, 0.3, 0.9]),
)
@settings(max_examples=300, deadline=None)
def test_boxes_keep_bounds_area_and_aspect(height, width, seed, low):
  rng = np.random.default_rng(seed)
  box = augment.sample_box(height, width, rng, area=(low, 1.0))
  top, left, h, w = box
  assert top >= 0 and left >= 0 and h >= 1 and w >= 1
  assert top + h <= height and left + w <= width
  if box != (0, 0, height, width):
    assert low <= h * w / (height * width) <= 1
    # The width is the nearest whole number to height * aspect.
    assert 3 / 4 * h - 0.5 <= w <= 4 / 3 * h + 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 200)])
def test_boxes_are_distributed_as_tensorflows(height, width):
  import tensorflow as tf

  count = 3000
  tf.random.set_seed(0)

  def draw(_):
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      [height, width, 3],
      tf.zeros([0, 0, 4]),
      area_range=(0.05, 1.0),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)

  @tf.function
  def draw_all():
    return tf.map_fn(draw, tf.range(count), fn_output_signature=tf.int32)

  theirs = draw_all().numpy()
  rng = np.random.default_rng(0)
  ours = np.asarray(
    [augment.sample_box(height, width, rng) for _ in range(count)]
  )

  def statistics(boxes):
    top, left, h, w = boxes.T
    centre = (top + h / 2, left + w / 2)
    return {
      "area": h * w,
      "aspect": w / h,
      "h": h,
      "y": centre[0],
      "x": centre[1],
    }

  mine, reference = statistics(ours), statistics(theirs)
  for name in mine:
    test = scipy.stats.ks_2samp(mine[name], reference[name])
    assert test.pvalue > 1e-3, (name, test)


def test_boxes_lie_at_independent_rows_and_columns():
  rng = np.random.default_rng(0)
  boxes = (augment.sample_box(200, 200, rng) for _ in range(2000))
  places = [
    (top / (200 - height), left / (200 - width))
    for top, left, height, width in boxes
    if height < 180 and width < 180
  ]
  assert len(places) > 1000
  assert abs(scipy.stats.spearmanr(*zip(*places, strict=True))[0]) < 0.1


def test_inception_crop_takes_the_box_that_was_drawn():
  image = photo(60, 90)
  crop = augment.inception_crop(image, 32, rng=np.random.default_rng(5))
  box = augment.sample_box(60, 90, np.random.default_rng(5))
  top, left, h, w = box
  part = Image.fromarray(image[top : top + h, left : left + w])
  pillow = np.asarray(part.resize((32, 32), Image.Resampling.BILINEAR), int)
  assert crop.shape == (32, 32, 3) and crop.dtype == np.uint8
  assert np.abs(crop.astype(int) - pillow).mean() < 6


def test_resize_small_keeps_the_aspect():
  assert augment.resize_small(photo(100, 150), 50).shape == (50, 75, 3)
  assert augment.resize_small(photo(30, 20, 1), 40).shape == (60, 40, 1)


def test_central_crop():
  image = photo(11, 20)
  np.testing.assert_array_equal(
    augment.central_crop(image, 7), image[2:9, 6:13]
  )
  with pytest.raises(augment.ImageError, match="resize_small"):
    augment.central_crop(image, 12)


def test_pad_crop_moves_the_image_over_zeros():
  image = photo(8, 8, 1)
  rng = np.random.default_rng(0)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  windows = [padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
  seen = set()
  for _ in range(400):
    crop = augment.pad_crop(image, 2, rng=rng)
    (match,) = [i for i, w in enumerate(windows) if np.array_equal(w, crop)]
    seen.add(match)
  assert seen == set(range(25))


def test_flip_is_a_mirror_half_of_the_time():
  image, rng = photo(6, 7), np.random.default_rng(0)
  flips = 0
  for _ in range(400):
    out = augment.flip_lr(image, rng=rng)
    flipped = np.array_equal(out, image[:, ::-1])
    assert flipped or np.array_equal(out, image)
    flips += flipped
  assert 160 < flips < 240


def test_value_range_is_affine():
  levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  out = augment.value_range(levels, -1, 1)
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, levels / 127.5 - 1, atol=1e-6)
