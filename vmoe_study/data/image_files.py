"""Images that a user names, without labels: files, folders and URLs."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from vmoe_study.data.decoding import MAX_PIXELS, Image, decode
from vmoe_study.data.image_folder import SUFFIXES
from vmoe_study.data.image_header import ImageError
from vmoe_study.data.ops import Ops
from vmoe_study.files.location import check_reachable, expand, locate

# A path or URL of a file or folder, the bytes of a file, or uint8 (H, W, C).
ImageLike = str | os.PathLike[str] | bytes | Image
READ_THREADS = 16


@dataclasses.dataclass(frozen=True)
class ImageBatch:
  """Images after the operations of a model.

  Attributes:
    names: names of the images that could be read.
    image: uint8 (B, H, W, C), these images, padded with black ones.
    errors: error messages of the other images; each begins with the name.
  """

  names: Sequence[str]
  image: np.ndarray
  errors: Sequence[ImageError]


def name_images(images: Iterable[ImageLike]) -> list[tuple[str, ImageLike]]:
  """Lists images with their names; folders are listed file by file.

  The name of a file is its path or URL; the name of any other image is its
  index in `images`.

  Raises:
    ValueError: there are no images, a path or URL is invalid, or a folder has
      no image files.
    OSError: the store behind a URL does not answer.
  """
  named: list[tuple[str, ImageLike]] = []
  for number, image in enumerate(images):
    if isinstance(image, str | os.PathLike):
      named += [(name, name) for name in list_files(image)]
    else:
      named.append((f"image {number}", image))
  if not named:
    raise ValueError("images: there are none. Name at least one.")
  return named


def list_files(path: str | os.PathLike[str]) -> list[str]:
  """The image files that a path or URL stands for.

  A folder stands for all files with one of `SUFFIXES` below it, sorted; names
  that begin with a dot are ignored. Anything else, such as a web address,
  stands for itself.

  Raises:
    ValueError: the path or URL is invalid, or the folder has no image files.
    OSError: the store behind a URL does not answer.
  """
  text = expand("images", path, any_url=True)
  # Web pages are not searched for links.
  if text.lower().endswith(SUFFIXES) or text.startswith(("http:", "https:")):
    return [text]
  check_reachable(text)
  fs, root = _locate(text)
  if not fs.isdir(root):
    return [text]
  inside = [found[len(root) :].lstrip("/") for found in fs.find(root)]
  files = [name for name in sorted(inside) if _is_image(name)]
  if not files:
    raise ValueError(
      f"images={text!r}: the folder has no image files. Name one with "
      f"{', '.join(SUFFIXES)} files."
    )
  # "zip://FOLDER::FILE.zip" is a folder inside a file.
  first, *outer = text.split("::") if "://" in text else [text]
  folder = first if first.endswith("/") else f"{first}/"
  return ["::".join([folder + name, *outer]) for name in files]


def image_batches(
  named: Sequence[tuple[str, ImageLike]],
  ops: Ops,
  shape: tuple[int, int, int],
  *,
  batch_size: int,
  max_pixels: int = MAX_PIXELS,
) -> Iterator[ImageBatch]:
  """Reads images in order, `batch_size` at a time.

  Args:
    named: images from `name_images`.
    ops: operations applied to each image.
    shape: (H, W, C) that images must have after the operations.
    batch_size: size of every batch.
    max_pixels: maximum number of pixels; larger images are errors.
  """
  read = functools.partial(_read, ops, shape, max_pixels)
  with ThreadPoolExecutor(READ_THREADS) as pool:
    for start in range(0, len(named), batch_size):
      part = named[start : start + batch_size]
      found = list(pool.map(read, part))
      errors = [image for image in found if isinstance(image, ImageError)]
      batch = np.zeros((batch_size, *shape), np.uint8)
      names = []
      for (name, _), image in zip(part, found, strict=True):
        if not isinstance(image, ImageError):
          batch[len(names)] = image
          names.append(name)
      yield ImageBatch(names, batch, errors)


def _read(
  ops: Ops,
  shape: tuple[int, int, int],
  max_pixels: int,
  named: tuple[str, ImageLike],
) -> Image | ImageError:
  name, image = named
  try:
    data = _read_file(name) if isinstance(image, str) else image
    result = ops(decode(data, shape[2], max_pixels))
    if result.shape != shape:
      raise ImageError(
        f"the image has shape {result.shape} after the operations, but must "
        f"have {shape}. Resize it, or give operations that do."
      )
    return result
  except (ImageError, cv2.error) as error:
    return ImageError(f"{name}: {error}")


def _read_file(name: str) -> bytes:
  try:
    fs, path = _locate(name)
    return fs.cat_file(path)
  except Exception as error:  # Every file system raises its own errors.
    reason = getattr(error, "strerror", None) or repr(error)
    raise ImageError(f"cannot be read: {reason}.") from error


def _locate(text: str) -> tuple[AbstractFileSystem, str]:
  """The file system of a path or URL, and the path on it."""
  if "://" not in text:
    return LocalFileSystem(), os.path.abspath(text)
  fs, root = locate(text)
  return fs, root.rstrip("/")


def _is_image(name: str) -> bool:
  hidden = any(part.startswith(".") for part in name.split("/"))
  return name.lower().endswith(SUFFIXES) and not hidden
