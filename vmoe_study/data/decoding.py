"""Decodes image files as viewers show them: upright and without alpha."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epy

from vmoe_study.data.image_header import (
  ImageError,
  ImageHeader,
  read_header,
  unreadable,
)

with epy.lazy_imports():  # Checking a config needs no OpenCV.
  import cv2

Image = np.ndarray

MAX_PIXELS = 2**27
"""Of an image, by default: 134 million, 400 MB as RGB."""
BACKGROUND = 255
"""White, on which transparent images are laid."""
_BLOCK_PIXELS = 2**20


def decode(
  data: bytes | Image, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> Image:
  """Decodes a JPEG, PNG, WebP, GIF, BMP or TIFF file, or returns an array.

  The EXIF orientation is applied, and transparent pixels are laid on white.
  TensorFlow's decoder does neither. Of 16-bit values the upper 8 bits are kept.

  Args:
    data: the file's bytes.
    channels: 3 for RGB, 1 for grey; other images are converted.
    max_pixels: maximum number of pixels, checked before memory is allocated.

  Returns:
    uint8 (H, W, channels).

  Raises:
    ImageError: the bytes are not an image, or a truncated one, or the image has
      no pixels or too many, or the array is not uint8 (H, W, channels).
  """
  if isinstance(data, bytes):
    header = read_header(data)
    check_pixels(header.height, header.width, max_pixels)
    image = _upright(_read(data, header, channels), header.orientation)
    return np.ascontiguousarray(image)
  if data.size == 0:
    raise ImageError(
      f"shape={data.shape}: the image has no pixels. Replace the file."
    )
  if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != channels:
    raise ImageError(
      f"{data.dtype}{data.shape}: an image must be uint8 (height, width, "
      f"{channels}). Convert the data set."
    )
  check_pixels(*data.shape[:2], max_pixels)
  return data


def check_pixels(height: int, width: int, max_pixels: int) -> None:
  """Raises ImageError if an image is larger than allowed."""
  if height * width > max_pixels:
    raise ImageError(
      f"{height} x {width} pixels: an image must have at most {max_pixels}. "
      "Replace the file by a smaller one, or set max_pixels of the data set."
    )


def _read(data: bytes, header: ImageHeader, channels: int) -> Image:
  """Pixels (H, W, channels), in the orientation of the file."""
  if header.is_tiff:
    return _read_tiff(data, channels)
  if header.is_plain_cmyk:
    return _read_plain_cmyk(data, channels)
  if header.has_alpha:
    return _read_transparent(data, header, channels)
  kind = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
  image = _imdecode(data, kind | cv2.IMREAD_IGNORE_ORIENTATION)
  return image.reshape(*image.shape[:2], channels)


def _imdecode(data: bytes, flags: int) -> Image:
  cv2.utils.logging.setLogLevel(0)  # OpenCV would also print what it raises.
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error as error:
    raise unreadable(data) from error
  if image is None:
    raise unreadable(data)
  return image


def _read_plain_cmyk(data: bytes, channels: int) -> Image:
  """Converts CMYK as TensorFlow does: multiplies colours by black, as light.

  Uses Pillow, as OpenCV does not return the four channels. Pillow assumes that
  they are inverted, so it returns 255 minus the ink here: the light.
  """
  with _pillow(data) as picture:
    light = np.asarray(picture, np.uint16)
  bgr = light[..., 2::-1] * light[..., 3:] // 255
  return _convert(bgr.astype(np.uint8), channels)


def _read_tiff(data: bytes, channels: int) -> Image:
  """The first page of a TIFF, upright and on the background.

  Uses Pillow, because OpenCV loses the transparency of grey images and
  multiplies colours by it.
  """
  import PIL.ImageOps

  with _pillow(data) as picture:
    upright = PIL.ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):
      grey = (np.asarray(upright)[..., None] >> 8).astype(np.uint8)
      return _convert(grey, channels)
    if upright.mode in ("I", "F"):
      raise ImageError(
        "a TIFF file of 32 bits per pixel and channel: must have 8 or 16. "
        "Convert the file."
      )
    rgba = np.asarray(upright.convert("RGBA"))
  return _convert(_lay_on_background(rgba[..., [2, 1, 0, 3]]), channels)


@contextlib.contextmanager
def _pillow(data: bytes) -> Iterator[Any]:
  """Opens a file with Pillow, which raises errors of many types."""
  import PIL.Image

  try:
    yield PIL.Image.open(io.BytesIO(data))
  except ImageError:
    raise
  except Exception as error:
    raise unreadable(data) from error


def _read_transparent(data: bytes, header: ImageHeader, channels: int) -> Image:
  """Lays an image on the background."""
  image = _imdecode(data, cv2.IMREAD_UNCHANGED)
  image = image.reshape(*image.shape[:2], -1)
  clear = None
  if header.transparent_grey is not None and image.shape[2] == 1:
    clear = image == _scaled(header.transparent_grey, header.bit_depth)
  if image.dtype == np.uint16:
    image = (image >> 8).astype(np.uint8)
  if clear is not None:
    image = np.where(clear, np.uint8(BACKGROUND), image)
  if image.shape[2] == 4:
    image = _lay_on_background(image)
  return _convert(image, channels)


def _lay_on_background(image: Image) -> Image:
  """From BGRA to BGR, some rows at a time to need little memory."""
  mixed = np.empty((*image.shape[:2], 3), np.uint8)
  step = max(1, _BLOCK_PIXELS // image.shape[1])
  for top in range(0, len(image), step):
    rows = image[top : top + step].astype(np.uint16)
    colour, alpha = rows[..., :3], rows[..., 3:]
    total = colour * alpha + BACKGROUND * (255 - alpha)
    mixed[top : top + step] = (total + 127) // 255
  return mixed


def _scaled(value: int, bit_depth: int) -> int:
  """Scales a grey value of fewer than 8 bits as OpenCV does."""
  return value * 255 // (2**bit_depth - 1) if bit_depth < 8 else value


def _convert(image: Image, channels: int) -> Image:
  """From grey or BGR to grey or RGB."""
  if image.shape[2] == 1:
    return image.repeat(channels, axis=2)
  if channels == 1:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
  return image[..., ::-1]


def _upright(image: Image, orientation: int) -> Image:
  """Undoes the orientation of the camera."""
  if orientation >= 5:
    image = image.swapaxes(0, 1)
  # Now the rows, the columns or both may be reversed.
  rows = -1 if orientation in (3, 4, 7, 8) else 1
  columns = -1 if orientation in (2, 3, 6, 7) else 1
  return image[::rows, ::columns]
