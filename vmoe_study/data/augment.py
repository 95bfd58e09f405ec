"""Image operations as plain functions, and the strings that name them.

An operation takes an image and its arguments; one that draws random numbers
also takes `rng`. Images are uint8 (H, W, C) with C = 1 or 3 (RGB) until
`value_range` makes them float32; before `decode` an image may be the bytes of
a JPEG or PNG file. A configuration names operations in the field's manner:
"inception_crop(224)|flip_lr|value_range(-1, 1)".
"""

import ast
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

Image = np.ndarray
Rng = np.random.Generator


class ImageError(ValueError):
  """An image that cannot be decoded or used."""


def decode(image: bytes | Image) -> Image:
  """Decodes JPEG or PNG bytes to uint8 (H, W, C); an array passes through.

  Grey images keep one channel; anything else becomes RGB. The orientation tag
  of cameras is ignored, as TensorFlow's decoder does.

  Raises:
    ImageError: the bytes are no image, or a JPEG that was cut short.
  """
  if isinstance(image, np.ndarray):
    return image
  if image[:2] == b"\xff\xd8" and not _jpeg_is_whole(image):
    raise ImageError("the JPEG data is cut short")
  flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
  decoded = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
  if decoded is None:
    raise ImageError(f"{len(image)} bytes that are no readable image")
  if decoded.ndim == 2:
    return decoded[..., None]
  return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _jpeg_is_whole(data: bytes) -> bool:
  """Whether an end-of-image marker follows the last start of scan.

  OpenCV fills what is missing with grey and only warns. Inside a scan 0xFF is
  always followed by a zero or a restart marker, so both markers are real.
  """
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
    ratio = rng.uniform(*aspect)
    tallest = int(min(np.sqrt(high / ratio), height, (width + 0.5) / ratio))
    shortest = max(1, int(np.ceil(np.sqrt(low / ratio))))
    if shortest > tallest:
      continue
    crop_height = int(rng.integers(shortest, tallest + 1))
    crop_width = round(crop_height * ratio)
    if crop_width <= width and low <= crop_height * crop_width <= high:
      top = int(rng.integers(0, height - crop_height + 1))
      left = int(rng.integers(0, width - crop_width + 1))
      return top, left, crop_height, crop_width
  return 0, 0, height, width


def inception_crop(
  image: Image, size: int, min_area: float = 0.05, *, rng: Rng
) -> Image:
  """A random crop (`sample_box`) resized to (size, size), bilinear."""
  top, left, height, width = sample_box(
    *image.shape[:2], rng, area=(min_area, 1.0)
  )
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
  return image[:, ::-1] if rng.random() < 0.5 else image


def value_range(image: Image, low: float, high: float) -> Image:
  """Maps 0..255 linearly to float32 low..high."""
  scale = np.float32((high - low) / 255)
  return image * scale + np.float32(low)


OPS: dict[str, Callable[..., Any]] = {
  op.__name__: op
  for op in (
    decode,
    resize,
    resize_small,
    central_crop,
    inception_crop,
    pad_crop,
    flip_lr,
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
  """A parsed chain of operations; call it with an image and a generator."""

  steps: tuple[Op, ...]

  @property
  def is_random(self) -> bool:
    """Whether any operation draws random numbers."""
    return any(step.is_random for step in self.steps)

  def __call__(self, image: bytes | Image, rng: Rng | None = None) -> Image:
    """Decodes if need be, applies every step, returns float32 (H, W, C).

    Raises:
      ImageError: the image cannot be decoded, is empty, or too small.
    """
    image = decode(image)
    if min(image.shape) == 0:
      raise ImageError(f"an image of shape {image.shape} has no pixels")
    for step in self.steps:
      image = step(image, rng)
    return np.asarray(image, np.float32)


def parse_ops(text: str) -> Ops:
  """Parses "name|name(1, 2)|..." into a chain of operations.

  Raises:
    ValueError: bad syntax, an unknown name or wrong arguments; lists what is
      known.
  """
  return Ops(tuple(_parse_op(part.strip()) for part in text.split("|")))


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
