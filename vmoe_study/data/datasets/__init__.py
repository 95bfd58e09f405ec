"""The data sets that this package can build from local files."""

import contextlib
import io
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds


@contextlib.contextmanager
def unregistered() -> Iterator[None]:
  """Within it, builder classes stay out of TFDS's global register.

  Ours are found by `builders.make_builder`, so that a name may repeat TFDS's.
  """
  with tfds.core.registered.skip_registration():
    yield


def as_png(image: np.ndarray) -> io.BytesIO:
  """Encodes a uint8 (H, W, 1) or RGB (H, W, 3) image for a TFDS `Image`.

  Handing TFDS encoded bytes spares it (and us) the import of TensorFlow.
  """
  if image.shape[-1] == 3:
    image = image[..., ::-1]
  return io.BytesIO(cv2.imencode(".png", image)[1].tobytes())
