"""Image operations as plain functions, and the strings that name them.

An operation takes an image and its arguments; one that draws random numbers
also takes `rng`. Images are uint8 (H, W, C) with C = 1 or 3 (RGB).
A configuration names operations in the field's manner, after decoding:
"inception_crop(224)|flip_lr|value_range(-1, 1)". `value_range` comes last, and
is applied to whole batches, after they have left the worker processes: bytes
travel four times lighter than floats.
"""

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from vmoe_study.data.randaugment import randaug

Image = np.ndarray
Rng = np.random.Generator


class ImageError(ValueError):
  """An image that cannot be decoded or used."""


def decode(data: bytes | Image, channels: int = 3) -> Image:
  """Decodes a JPEG or PNG file; an array passes through.

  Args:
    data: the file's bytes.
    channels: 3 for RGB, 1 for grey; images of the other kind are converted.

  Returns:
    uint8 (H, W, channels). The orientation tag of cameras is ignored, as
    TensorFlow's decoder does.

  Raises:
    ImageError: the bytes are no image, a JPEG that was cut short, or empty.
  """
  if isinstance(data, bytes):
    if data[:2] == b"\xff\xd8" and not _jpeg_is_whole(data):
      raise ImageError("the JPEG data is cut short")
    kind = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    array = np.frombuffer(data, np.uint8)
    image = (
      cv2.imdecode(array, kind | cv2.IMREAD_IGNORE_ORIENTATION)
      if len(data)
      else None
    )
    if image is None:
      raise ImageError(f"{len(data)} bytes that are no readable image")
    data = image[..., None] if channels == 1 else image
  if data.size == 0:
    raise ImageError(f"an image of shape {data.shape} has no pixels")
  return data


def _jpeg_is_whole(data: bytes) -> bool:
  """Whether an end-of-image marker follows the last start of scan.

  OpenCV fills what is missing with grey and only warns. Inside a scan 0xFF is
  always followed by a zero or a restart marker, so both markers are real.
  """
  if data.endswith(b"\xff\xd9"):  # Nearly always, and no search is needed.
    return True
  return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _resize(image: Image, height: int, width: int, method: int) -> Image:
  """OpenCV's resize, which drops a last axis of size one."""
  resized = cv2.resize(image, (width, height), interpolation=method)
  return resized.reshape(height, width, image.shape[-1])


def resize(image: Image, size: int) -> Image:
  """Resizes to (size, size), bilinear, whatever the aspect."""
  return _resize(image, size, size, cv2.INTER_LINEAR)


def resize_small(image: Image, size: int) -> Image:
  """Resizes so that the smaller side is `size`, keeping the aspect."""
  height, width = image.shape[:2]
  scale = size / min(height, width)
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  return _resize(image, round(height * scale), round(width * scale), method)


def central_crop(image: Image, size: int) -> Image:
  """Cuts out the central (size, size).

  Raises:
    ImageError: the image is smaller than that.
  """
  height, width = image.shape[:2]
  if min(height, width) < size:
    raise ImageError(
      f"central_crop({size}) of a {height}x{width} image; put"
      f" resize_small({size}) or larger before it"
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

  The aspect (width over height) is uniform in `aspect`; then the crop's height
  is uniform among those whose area lies in `area` (as a share of the image)
  and that fit. This is the distribution of TensorFlow's
  sample_distorted_bounding_box. If a hundred aspects allow no such height, the
  whole image is taken.

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
  """A random crop (`sample_box`) resized to (size, size), bilinear."""
  height, width = image.shape[:2]
  top, left, height, width = sample_box(height, width, rng, (min_area, 1.0))
  return resize(image[top : top + height, left : left + width], size)


def pad_crop(image: Image, pad: int, *, rng: Rng) -> Image:
  """Pads every side with `pad` zeros and cuts out the old size at random."""
  height, width, channels = image.shape
  shape = (height + 2 * pad, width + 2 * pad, channels)
  padded = np.zeros(shape, image.dtype)
  padded[pad : pad + height, pad : pad + width] = image
  top, left = rng.integers(0, 2 * pad + 1, size=2)
  return padded[top : top + height, left : left + width]


def flip_lr(image: Image, *, rng: Rng) -> Image:
  """Mirrors left and right with probability one half."""
  if rng.random() < 0.5:
    return cv2.flip(image, 1).reshape(image.shape)
  return image


def rgb(image: Image) -> Image:
  """Makes three equal channels of one; three stay as they are."""
  return image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)


def value_range(images: Image, low: float, high: float) -> np.ndarray:
  """Maps uint8 0..255 linearly to float32 low..high; an image or a batch."""
  table = np.linspace(low, high, 256, dtype=np.float32)
  rows = images.reshape(len(images), -1)
  return cv2.LUT(rows, table).reshape(images.shape)


OPS: dict[str, Callable[..., Any]] = {
  op.__name__: op
  for op in (
    resize,
    resize_small,
    central_crop,
    inception_crop,
    pad_crop,
    flip_lr,
    randaug,
    rgb,
    value_range,
  )
}


@dataclasses.dataclass(frozen=True)
class Op:
  """One operation with its arguments."""

  name: str
  args: tuple[Any, ...]
  is_random: bool

  def __call__(self, image: Image, rng: Rng | None) -> Image:
    if self.is_random:
      return OPS[self.name](image, *self.args, rng=rng)
    return OPS[self.name](image, *self.args)


@dataclasses.dataclass(frozen=True)
class Ops:
  """A parsed chain of operations.

  Attributes:
    steps: what is done to one image.
    value_range: the range of the finished batch, which is float32.
  """

  steps: tuple[Op, ...]
  value_range: tuple[float, float] = (0.0, 255.0)

  @property
  def is_random(self) -> bool:
    """Whether any operation draws random numbers."""
    return any(step.is_random for step in self.steps)

  def __call__(self, image: Image, rng: Rng | None = None) -> Image:
    """Applies every step to a uint8 (H, W, C) image.

    Raises:
      ImageError: the image is too small for an operation.
    """
    for step in self.steps:
      image = step(image, rng)
    return image

  def finish(self, images: Image) -> np.ndarray:
    """Turns uint8 images into float32 in `value_range`."""
    return value_range(images, *self.value_range)


def parse_ops(text: str) -> Ops:
  """Parses "name|name(1, 2)|..." into a chain of operations.

  Raises:
    ValueError: bad syntax, an unknown name or wrong arguments; lists what is
      known. Also a value_range that is not last.
  """
  *steps, last = [_parse_op(part.strip()) for part in text.split("|")]
  if any(step.name == "value_range" for step in steps):
    raise ValueError(
      f"operations {text!r}: value_range must come last: move it to the end"
    )
  if last.name == "value_range":
    return Ops(tuple(steps), last.args)
  return Ops((*steps, last))


def _parse_op(text: str) -> Op:
  try:
    node = ast.parse(text, mode="eval").body
    name = node.func.id if isinstance(node, ast.Call) else node.id
    args = [ast.literal_eval(arg) for arg in getattr(node, "args", ())]
  except (SyntaxError, AttributeError, ValueError) as error:
    raise ValueError(
      f"operation {text!r} is not of the form name or name(1, 2.5); separate"
      " operations by |"
    ) from error
  if name not in OPS:
    raise ValueError(
      f"unknown operation {name!r}; known are {', '.join(sorted(OPS))}"
    )
  signature = inspect.signature(OPS[name])
  is_random = "rng" in signature.parameters
  try:
    signature.bind(None, *args, **({"rng": None} if is_random else {}))
  except TypeError as error:
    raise ValueError(
      f"operation {text!r}: {error}; its form is {name}{signature}"
    ) from error
  return Op(name, tuple(args), is_random)
