"""The distortions of RandAugment as used by the public V-MoE recipes.

They are those of `autoaugment.py` of github.com/tensorflow/tpu, which
github.com/google-research/big_vision ported as `pp/autoaugment.py`. Pixel
values are equal to theirs: float32 arithmetic in the same order, and casts that
truncate. This module holds what differs from `data.distortions`, which is more
than rounding:

- `contrast` blends with a constant, the number of pixels / 256, not the mean;
- the threshold of `solarize` is taken modulo 256, so 256 inverts all levels;
- `posterize` keeps at least one bit;
- lengths are in pixels and do not scale with the image;
- geometric operations take the nearest pixel; halves round away from zero.
"""

import math

import numpy as np

from vmoe_study.data import distortions as pillow
from vmoe_study.data.distortions import GREY, Distortion, Image, random_sign

_LUMA = np.float32([0.2989, 0.587, 0.114])


def autocontrast(image: Image) -> Image:
  """Stretches every channel to span 0..255."""
  low, high = np.float32(image.min((0, 1))), np.float32(image.max((0, 1)))
  scale = np.float32(255) / np.where(high > low, high - low, np.float32(1))
  stretched = _truncated(np.float32(image) * scale - low * scale)
  return np.where(high > low, stretched, image)


def posterize(image: Image, bits: int) -> Image:
  """Keeps the `bits` highest bits of every level; 1 if not from 1 to 8."""
  shift = 8 - bits if 1 <= bits <= 8 else 7
  return image >> shift << shift


def solarize(image: Image, threshold: int) -> Image:
  """Inverts the levels at and above `threshold` modulo 256."""
  return np.where(image < threshold % 256, image, 255 - image)


def color(image: Image, factor: float) -> Image:
  """Blends with the grey image."""
  return _blend(_grey(image), image, factor)


def contrast(image: Image, factor: float) -> Image:
  """Blends with the level (number of pixels) / 256."""
  level = min(255, image.shape[0] * image.shape[1] // 256)
  return _blend(np.full_like(image, level), image, factor)


def brightness(image: Image, factor: float) -> Image:
  """Multiplies every level."""
  return _blend(np.zeros_like(image), image, factor)


def sharpness(image: Image, factor: float) -> Image:
  """Blends with a smoothed image (3x3, centre 5, others 1), except at edges."""
  height, width = image.shape[:2]
  base = image.copy()
  if min(height, width) >= 3:
    base[1:-1, 1:-1] = _smooth(image)
  return _blend(base, image, factor)


def rotate(image: Image, degrees: float) -> Image:
  """Rotates counter-clockwise about the centre."""
  right, bottom = np.float32(image.shape[1] - 1), np.float32(image.shape[0] - 1)
  angle = np.float32(math.radians(degrees))
  cos, sin = np.cos(angle), np.sin(angle)
  x = (right - (cos * right - sin * bottom)) / np.float32(2)
  y = (bottom - (sin * right + cos * bottom)) / np.float32(2)
  return _warp(image, (cos, -sin, x), (sin, cos, y))


def shear_x(image: Image, slope: float) -> Image:
  """Shifts every row by `slope` times its number."""
  return _warp(image, (1, slope, 0), (0, 1, 0))


def shear_y(image: Image, slope: float) -> Image:
  """Shifts every column by `slope` times its number."""
  return _warp(image, (1, 0, 0), (slope, 1, 0))


def translate_x(image: Image, pixels: float) -> Image:
  """Shifts the image to the left by `pixels`."""
  return _warp(image, (1, 0, pixels), (0, 1, 0))


def translate_y(image: Image, pixels: float) -> Image:
  """Shifts the image up by `pixels`."""
  return _warp(image, (1, 0, 0), (0, 1, pixels))


def _truncated(levels: np.ndarray) -> Image:
  return np.clip(levels, 0, 255).astype(np.uint8)


def _blend(base: Image, image: Image, factor: float) -> Image:
  """base + factor * (image - base), truncated."""
  start, end = np.float32(base), np.float32(image)
  return _truncated(start + np.float32(factor) * (end - start))


def _grey(image: Image) -> Image:
  """Luma in every channel, computed with floats from 0 to 1."""
  if image.shape[-1] == 1:
    return image
  parts = np.float32(image) * np.float32(1 / 255) * _LUMA
  luma = (parts[..., 0] + parts[..., 1] + parts[..., 2]) * np.float32(255.5)
  return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=-1)


def _smooth(image: Image) -> Image:
  """3x3 means of the inner pixels, by fused multiply-adds in float32.

  Because products are not rounded, constant images of most levels are
  unchanged, as in the original.
  """
  height, width, channels = image.shape
  kernel = np.ones((3, 3), np.float32)
  kernel[1, 1] = 5
  kernel /= np.float32(13)
  total = np.zeros((height - 2, width - 2, channels), np.float32)
  for (y, x), weight in np.ndenumerate(np.float64(kernel)):
    part = image[y : y + height - 2, x : x + width - 2]
    total = np.float32(np.float64(total) + weight * part)
  return _truncated(total)


def _warp(image: Image, *rows: tuple[float, float, float]) -> Image:
  """Pixel (x, y) of the result is the pixel nearest to `rows` @ (x, y, 1)."""
  height, width = image.shape[:2]
  y, x = np.indices((height, width), np.float32)
  x, y = (
    _rounded(np.float32(a) * x + np.float32(b) * y + np.float32(c))
    for a, b, c in rows
  )
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  result = np.full_like(image, GREY)
  result[inside] = image[y[inside], x[inside]]
  return result


def _rounded(x: np.ndarray) -> np.ndarray:
  """To the nearest integer, halves away from zero."""
  exact = np.float64(x)
  return np.trunc(exact + np.copysign(0.5, exact)).astype(np.int64)


DISTORTIONS: dict[str, Distortion] = pillow.DISTORTIONS | {
  "autocontrast": lambda x, strength, rng: autocontrast(x),
  "rotate": lambda x, s, rng: rotate(
    x, random_sign(rng) * s * pillow.MAX_ROTATION
  ),
  "posterize": lambda x, s, rng: posterize(x, int(s * pillow.MAX_BITS)),
  "solarize": lambda x, s, rng: solarize(x, int(s * 256)),
  "color": lambda x, s, rng: color(x, pillow.enhancement(s)),
  "contrast": lambda x, s, rng: contrast(x, pillow.enhancement(s)),
  "brightness": lambda x, s, rng: brightness(x, pillow.enhancement(s)),
  "sharpness": lambda x, s, rng: sharpness(x, pillow.enhancement(s)),
  "shear_x": lambda x, s, rng: shear_x(
    x, random_sign(rng) * s * pillow.MAX_SHEAR
  ),
  "shear_y": lambda x, s, rng: shear_y(
    x, random_sign(rng) * s * pillow.MAX_SHEAR
  ),
  "translate_x": lambda x, s, rng: translate_x(
    x, random_sign(rng) * s * pillow.MAX_TRANSLATION
  ),
  "translate_y": lambda x, s, rng: translate_y(
    x, random_sign(rng) * s * pillow.MAX_TRANSLATION
  ),
  "cutout": lambda x, s, rng: pillow.cutout(x, int(s * pillow.MAX_CUTOUT), rng),
}
