"""`jft_like/N`: N synthetic JPEGs with long-tailed multiple labels.

For load tests, because JFT is not public: 18,291 classes with frequencies
proportional to 1 / rank, one or a few labels per image, JPEGs of various sizes.
"""

import io
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vmoe_study.data.datasets import unregistered

NUM_CLASSES = 18_291
EXTRA_LABELS = 0.25  # Mean number of labels after the first.
MIN_SIDE, MAX_SIDE = 340, 512  # Pixels.
JPEG_QUALITY = 90
SEED = 0


def synthetic_image(rng: np.random.Generator) -> np.ndarray:
  """Returns uint8 (H, W, 3): coarse colour clouds and fine noise.

  Mean sizes match ImageNet: 180,000 pixels and 108 kB per file.
  """
  height, width = rng.integers(MIN_SIDE, MAX_SIDE + 1, size=2)
  image = np.zeros((height, width, 3), np.float32)
  for cells, strength in ((4, 60.0), (16, 40.0), (64, 20.0)):
    cloud = rng.standard_normal((cells, cells, 3), np.float32) * strength
    image += cv2.resize(cloud, (int(width), int(height)))
  image += rng.standard_normal((height, width, 1), np.float32) * 21.0
  return np.clip(image + 128, 0, 255).astype(np.uint8)


def sample_labels(rng: np.random.Generator) -> list[int]:
  """Draws at least one label, with P(class c) proportional to 1 / (c + 1)."""
  count = 1 + rng.poisson(EXTRA_LABELS)
  ranks = (NUM_CLASSES + 1.0) ** rng.random(count)
  return sorted({int(rank) - 1 for rank in ranks})


with unregistered():

  class JftLike(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `jft_like/N`: N training and N / 10 test images."""

    name = "jft_like"
    VERSION = tfds.core.Version("1.0.0")

    @classmethod
    def config_from_name(cls, name: str) -> tfds.core.BuilderConfig:
      """The config "N", the number of training images.

      Raises:
        ValueError: N is not a positive integer.
      """
      if not name.isdigit() or int(name) < 1:
        raise ValueError(
          f"data set 'jft_like/{name}': must be jft_like/N with the number of "
          "images. Use jft_like/5000, for example."
        )
      return tfds.core.BuilderConfig(name=name, description=f"{name} images")

    def _info(self) -> tfds.core.DatasetInfo:
      return self.dataset_info_from_configs(
        description="Synthetic JPEGs with long-tailed multiple labels.",
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(
              shape=(None, None, 3), encoding_format="jpeg"
            ),
            "label": tfds.features.Sequence(
              tfds.features.ClassLabel(num_classes=NUM_CLASSES)
            ),
          }
        ),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      count = int(self.builder_config.name)
      return {
        "train": self._generate_examples(0, count),
        "test": self._generate_examples(1, max(1, count // 10)),
      }

    def _generate_examples(
      self, split: int, count: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
      options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
      for key in range(count):
        rng = np.random.default_rng([SEED, split, key])
        data = cv2.imencode(".jpg", synthetic_image(rng), options)[1]
        image = io.BytesIO(data.tobytes())
        yield key, {"image": image, "label": sample_labels(rng)}
