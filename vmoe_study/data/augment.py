"""Image operations as plain functions.

Images are uint8 (H, W, C) with C = 1 or 3 (RGB). Operations that draw random
numbers take `rng`. `ops.parse_ops` finds operations by name.
"""

import math

import numpy as np
from etils import epy

from vmoe_study.data.decoding import MAX_PIXELS
from vmoe_study.data.image_header import ImageError

with epy.lazy_imports():  # Checking a config needs no OpenCV.
  import cv2

Image = np.ndarray
Rng = np.random.Generator


def _resize(image: Image, height: int, width: int, method: int) -> Image:
  """Resizes with OpenCV, and restores the channel axis that it may drop.

  Raises:
    ImageError: the result is too large, as for a long and thin image.
  """
  if height * width > MAX_PIXELS:
    raise ImageError(
      f"{image.shape[0]} x {image.shape[1]} pixels would become {height} x "
      f"{width}: at most {MAX_PIXELS} are allowed. Replace the file."
    )
  resized = cv2.resize(image, (width, height), interpolation=method)
  return resized.reshape(height, width, image.shape[-1])


def resize(image: Image, size: int) -> Image:
  """Resizes to (size, size), bilinear; does not keep the aspect ratio."""
  return _resize(image, size, size, cv2.INTER_LINEAR)


def resize_small(image: Image, size: int) -> Image:
  """Resizes so that the smaller side is `size`; keeps the aspect ratio."""
  height, width = image.shape[:2]
  scale = size / min(height, width)
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  return _resize(image, round(height * scale), round(width * scale), method)


def central_crop(image: Image, size: int) -> Image:
  """Crops the central (size, size).

  Raises:
    ImageError: the image is smaller.
  """
  height, width = image.shape[:2]
  if min(height, width) < size:
    raise ImageError(
      f"central_crop({size}): the image has {height} x {width} pixels, which "
      f"is too small. Put resize_small({size}) before it."
    )
  top, left = (height - size) // 2, (width - size) // 2
  return image[top : top + size, left : left + size]


def sample_box(
  height: int,
  width: int,
  rng: Rng,
  area: tuple[float, float] = (0.05, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
  """Draws an inception-style crop of a (height, width) image.

  The aspect ratio (width over height) is uniform in `aspect`. The height is
  then uniform among those for which the crop fits into the image and its share
  of the image's area is in `area`. This is the distribution of TensorFlow's
  `sample_distorted_bounding_box`. If 100 aspect ratios allow no such height,
  the whole image is returned.

  Returns:
    (top, left, crop height, crop width), in pixels.
  """
  low, high = (share * height * width for share in area)
  for _ in range(100):
    draws = rng.random(4).tolist()
    ratio = aspect[0] + draws[0] * (aspect[1] - aspect[0])
    tallest = int(min(math.sqrt(high / ratio), height, (width + 0.5) / ratio))
    shortest = max(1, math.ceil(math.sqrt(low / ratio)))
    if shortest > tallest:
      continue
    crop_height = shortest + int(draws[1] * (tallest - shortest + 1))
    crop_width = round(crop_height * ratio)
    if crop_width <= width and low <= crop_height * crop_width <= high:
      top = int(draws[2] * (height - crop_height + 1))
      left = int(draws[3] * (width - crop_width + 1))
      return top, left, crop_height, crop_width
  return 0, 0, height, width


def inception_crop(
  image: Image, size: int, min_area: float = 0.05, *, rng: Rng
) -> Image:
  """Resizes a random crop (`sample_box`) to (size, size), bilinear."""
  height, width = image.shape[:2]
  top, left, height, width = sample_box(height, width, rng, (min_area, 1.0))
  return resize(image[top : top + height, left : left + width], size)


def pad_crop(image: Image, pad: int, *, rng: Rng) -> Image:
  """Pads every side with `pad` zeros, then crops to the old size at random."""
  height, width, channels = image.shape
  shape = (height + 2 * pad, width + 2 * pad, channels)
  padded = np.zeros(shape, image.dtype)
  padded[pad : pad + height, pad : pad + width] = image
  top, left = rng.integers(0, 2 * pad + 1, size=2)
  return padded[top : top + height, left : left + width]


def flip_lr(image: Image, *, rng: Rng) -> Image:
  """Flips horizontally with probability 1/2."""
  if rng.random() < 0.5:
    return cv2.flip(image, 1).reshape(image.shape)
  return image


def rgb(image: Image) -> Image:
  """Repeats a grey image to three channels; RGB images are unchanged."""
  return image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)


def value_range(images: Image, low: float, high: float) -> np.ndarray:
  """Maps 0..255 linearly to float32 low..high; NumPy or JAX, any shape."""
  # For integers low and high, only the division rounds.
  return (images.astype(np.float32) * (high - low) + 255 * low) / 255
