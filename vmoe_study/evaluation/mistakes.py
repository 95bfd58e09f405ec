"""Misclassified images."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_SHOWN = 48


class Mistake(NamedTuple):
  """An image with its labels and its predicted classes.

  Attributes:
    where: file of the image, and its place in the file.
    image: the image as the model gets it, before the value range is applied.
    labels: names of its classes.
    label_probability: probability of its class; None unless the image has one
      label.
    found: the most probable classes with probabilities, in order.
  """

  where: str
  image: UInt8[np.ndarray, "H W C"]
  labels: Sequence[str]
  label_probability: float | None
  found: Sequence[tuple[str, float]]

  @property
  def png(self) -> bytes:
    """The content of a PNG file of the image."""
    content = io.BytesIO()
    grey = self.image.shape[-1] == 1
    pixels = self.image[..., 0] if grey else self.image
    Image.fromarray(pixels).save(content, format="png")
    return content.getvalue()
