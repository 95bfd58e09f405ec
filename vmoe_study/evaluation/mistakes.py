"""Images that a model takes for something else."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_SHOWN = 48


class Mistake(NamedTuple):
  """An image, with what it is and what it was taken for.

  Attributes:
    where: its file, and the place in it.
    image: as the model gets it, before the value range.
    labels: names of its classes.
    label_probability: of its class; None unless it has one.
    found: the most probable classes, with probabilities, in order.
  """

  where: str
  image: UInt8[np.ndarray, "H W C"]
  labels: Sequence[str]
  label_probability: float | None
  found: Sequence[tuple[str, float]]

  @property
  def png(self) -> bytes:
    """The image as the content of a PNG file."""
    content = io.BytesIO()
    grey = self.image.shape[-1] == 1
    pixels = self.image[..., 0] if grey else self.image
    Image.fromarray(pixels).save(content, format="png")
    return content.getvalue()
