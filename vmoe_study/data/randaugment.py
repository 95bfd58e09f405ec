"""RandAugment (arXiv:1909.13719): n random distortions of one strength."""

from typing import Literal

import numpy as np

from vmoe_study.data import distortions, distortions_authors
from vmoe_study.data.distortions import Distortion, Image, Rng

FULL_MAGNITUDE = 10  # The magnitude that corresponds to strength 1.
VARIANTS: dict[str, dict[str, Distortion]] = {
  "pillow": distortions.DISTORTIONS,
  "authors": distortions_authors.DISTORTIONS,
}


def randaug(
  image: Image,
  num_layers: int,
  magnitude: float,
  variant: Literal["pillow", "authors"] = "pillow",
  *,
  rng: Rng,
) -> Image:
  """Applies `num_layers` distortions drawn with replacement.

  Args:
    image: uint8 (H, W, C), C = 1 or 3.
    num_layers: number of distortions.
    magnitude: 10 is the full range of each distortion.
    variant: "pillow", see `data.distortions`; or "authors", as in the public
      V-MoE recipes, see `data.distortions_authors`.
    rng: random generator of this example.
  """
  table = list(VARIANTS[variant].values())
  image = np.ascontiguousarray(image)
  for number in rng.integers(len(table), size=num_layers):
    image = table[number](image, magnitude / FULL_MAGNITUDE, rng)
  return image
