"""The 16 distortions of RandAugment (arXiv:1909.13719) in Pillow's arithmetic.

Their ranges are the usual ones for Vision Transformers: the strength is a
fraction of a fixed range and may exceed 1, and signs are random. Lengths are
given for 224-pixel images and scale with the smaller side. Pixels from outside
the image are grey (128). The arithmetic of `ImageOps` and `ImageEnhance` is
computed with OpenCV and 256-entry tables. Every distortion keeps shape and
dtype: uint8 (H, W, C), C = 1 or 3.
"""

from collections.abc import Callable

import numpy as np
from etils import epy

with epy.lazy_imports():  # Checking a config needs no OpenCV.
  import cv2

Image = np.ndarray
Rng = np.random.Generator

GREY = 128
LEVELS = np.arange(256)
MAX_ROTATION = 30.0  # degrees
MAX_SHEAR = 0.3
REFERENCE_SIDE = 224  # pixels
MAX_TRANSLATION = 100.0  # pixels of an image of the reference side
MAX_CUTOUT = 40.0  # half the side of the square, in the same pixels
MAX_SOLARIZE_ADD = 110
MAX_BITS = 4  # of posterize


def _lookup(image: Image, table: np.ndarray) -> Image:
  """Maps levels by a (256,) table, or by one table per channel (C, 256)."""
  table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
  if table.ndim == 2:
    table = np.ascontiguousarray(table.T)[None]  # (1, 256, C) for OpenCV
  return cv2.LUT(image, table).reshape(image.shape)


def _blend(base: Image, image: Image, factor: float) -> Image:
  """base + factor * (image - base), clipped to 0..255."""
  return cv2.addWeighted(image, factor, base, 1 - factor, 0).reshape(
    image.shape
  )


def _grey(image: Image) -> Image:
  """ITU-R 601 luma in every channel."""
  if image.shape[-1] == 1:
    return image
  return cv2.cvtColor(
    cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB
  )


def _warp(image: Image, matrix: np.ndarray | list[list[float]]) -> Image:
  """Pixel (x, y) of the result is pixel `matrix` @ (x, y, 1) of the image."""
  height, width, channels = image.shape
  return cv2.warpAffine(
    image,
    np.asarray(matrix, np.float64),
    (width, height),
    flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
    borderValue=(GREY,) * channels,
  ).reshape(image.shape)


def autocontrast(image: Image) -> Image:
  """Stretches every channel to span 0..255."""
  low = image.min((0, 1)).astype(np.float64)[:, None]
  high = image.max((0, 1)).astype(np.float64)[:, None]
  span = np.maximum(high - low, 1)
  stretched = (LEVELS - low) * 255 / span
  return _lookup(image, np.floor(np.where(high > low, stretched, LEVELS)))


def equalize(image: Image) -> Image:
  """Equalizes every channel's histogram, as Pillow does."""
  tables = []
  for channel in range(image.shape[-1]):
    histogram = np.bincount(image[..., channel].ravel(), minlength=256)
    filled = histogram[histogram > 0]
    step = (filled.sum() - filled[-1]) // 255
    below = np.cumsum(histogram) - histogram
    tables.append((step // 2 + below) // step if step else LEVELS)
  return _lookup(image, np.stack(tables))


def invert(image: Image) -> Image:
  """255 minus every level."""
  return 255 - image


def posterize(image: Image, bits: int) -> Image:
  """Keeps the `bits` highest bits of every level."""
  return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: Image, threshold: int) -> Image:
  """Inverts the levels at and above `threshold`."""
  return _lookup(image, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def solarize_add(image: Image, addition: int) -> Image:
  """Adds `addition` to the levels below 128."""
  return _lookup(image, np.where(LEVELS < 128, LEVELS + addition, LEVELS))


def color(image: Image, factor: float) -> Image:
  """Blends with the grey image."""
  return _blend(_grey(image), image, factor)


def contrast(image: Image, factor: float) -> Image:
  """Blends with the mean luma."""
  mean = int(_grey(image).mean() + 0.5)
  return _lookup(image, mean + factor * (LEVELS - mean))


def brightness(image: Image, factor: float) -> Image:
  """Multiplies every level."""
  return _lookup(image, LEVELS * factor)


def sharpness(image: Image, factor: float) -> Image:
  """Blends with a smoothed image (3x3, centre 5, others 1), except at edges."""
  kernel = np.ones((3, 3), np.float32)
  kernel[1, 1] = 5
  smooth = cv2.filter2D(image, -1, kernel / kernel.sum()).reshape(image.shape)
  base = image.copy()
  base[1:-1, 1:-1] = smooth[1:-1, 1:-1]
  return _blend(base, image, factor)


def rotate(image: Image, degrees: float) -> Image:
  """Rotates counter-clockwise about the centre, nearest pixel."""
  height, width = image.shape[:2]
  centre = ((width - 1) / 2, (height - 1) / 2)
  return _warp(image, cv2.getRotationMatrix2D(centre, -degrees, 1.0))


def shear_x(image: Image, slope: float) -> Image:
  """Shifts every row by `slope` times its number."""
  return _warp(image, [[1, slope, 0], [0, 1, 0]])


def shear_y(image: Image, slope: float) -> Image:
  """Shifts every column by `slope` times its number."""
  return _warp(image, [[1, 0, 0], [slope, 1, 0]])


def translate_x(image: Image, pixels: float) -> Image:
  """Shifts the image to the left by `pixels`."""
  return _warp(image, [[1, 0, pixels], [0, 1, 0]])


def translate_y(image: Image, pixels: float) -> Image:
  """Shifts the image up by `pixels`."""
  return _warp(image, [[1, 0, 0], [0, 1, pixels]])


def cutout(image: Image, half_side: int, rng: Rng) -> Image:
  """Fills a square around a random pixel with grey."""
  height, width = image.shape[:2]
  y, x = int(rng.integers(height)), int(rng.integers(width))
  return fill_square(image, half_side, y, x)


def fill_square(image: Image, half_side: int, y: int, x: int) -> Image:
  """Fills rows y - half_side to y + half_side - 1, and columns likewise."""
  image = image.copy()
  rows = slice(max(0, y - half_side), y + half_side)
  image[rows, max(0, x - half_side) : x + half_side] = GREY
  return image


def random_sign(rng: Rng) -> int:
  """1 or -1."""
  return 1 if rng.random() < 0.5 else -1


def enhancement(strength: float) -> float:
  """The factor of color, contrast, brightness and sharpness."""
  return 0.1 + 1.8 * strength


def _scaled(image: Image, pixels: float) -> float:
  """Converts a length at the reference side to pixels of this image."""
  return pixels * min(image.shape[:2]) / REFERENCE_SIDE


Distortion = Callable[[Image, float, Rng], Image]

# Name -> (image, strength, rng); strength 1 is the full range.
DISTORTIONS: dict[str, Distortion] = {
  "autocontrast": lambda x, strength, rng: autocontrast(x),
  "equalize": lambda x, strength, rng: equalize(x),
  "invert": lambda x, strength, rng: invert(x),
  "rotate": lambda x, s, rng: rotate(x, random_sign(rng) * s * MAX_ROTATION),
  "posterize": lambda x, s, rng: posterize(x, min(8, int(s * MAX_BITS))),
  "solarize": lambda x, s, rng: solarize(x, int(s * 256)),
  "solarize_add": lambda x, s, rng: solarize_add(x, int(s * MAX_SOLARIZE_ADD)),
  "color": lambda x, s, rng: color(x, enhancement(s)),
  "contrast": lambda x, s, rng: contrast(x, enhancement(s)),
  "brightness": lambda x, s, rng: brightness(x, enhancement(s)),
  "sharpness": lambda x, s, rng: sharpness(x, enhancement(s)),
  "shear_x": lambda x, s, rng: shear_x(x, random_sign(rng) * s * MAX_SHEAR),
  "shear_y": lambda x, s, rng: shear_y(x, random_sign(rng) * s * MAX_SHEAR),
  "translate_x": lambda x, s, rng: translate_x(
    x, random_sign(rng) * _scaled(x, s * MAX_TRANSLATION)
  ),
  "translate_y": lambda x, s, rng: translate_y(
    x, random_sign(rng) * _scaled(x, s * MAX_TRANSLATION)
  ),
  "cutout": lambda x, s, rng: cutout(x, round(_scaled(x, s * MAX_CUTOUT)), rng),
}
