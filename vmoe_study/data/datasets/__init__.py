"""The data sets that this package can build from local files."""

import contextlib
import io
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds


@contextlib.contextmanager
def unregistered() -> Iterator[None]:
  """Keeps builder classes defined in the block out of TFDS's registry.

  `builders.make_builder` finds them, so they may have the name of a TFDS data
  set.
  """
  with tfds.core.registered.skip_registration():
    yield


def as_png(image: np.ndarray) -> io.BytesIO:
  """Encodes a uint8 (H, W, 1) or RGB (H, W, 3) image for a TFDS `Image`.

  TFDS would import TensorFlow to encode it.
  """
  if image.shape[-1] == 3:
    image = image[..., ::-1]
  return io.BytesIO(cv2.imencode(".png", image)[1].tobytes())
